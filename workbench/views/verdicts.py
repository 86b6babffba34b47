"""Draws verdicts on arms, whose seeds are pooled: which runs are compared, a table of the outcomes, and figures of them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.detection.ap_tests import LEAST_SEEDS
from workbench.store.groups import EQUAL_STEPS, UNDISTILLED
from workbench.views.catalog import Entry, finished
from workbench.views.style import GREY, VERDICTS, Chart, interval, plain, quiet, reach, with_names

CAPTION = (
    "Mean over the seeds of an arm minus the mean of the undistilled arm of the same recipe, at the last evaluation, with 95 % intervals "
    "over resampled images. The verdict is better or worse only if the interval excludes 0. "
    f"With {LEAST_SEEDS} or more pairs of seeds a verdict is about the method, otherwise only about these runs."
)


def arms_against_baseline(chosen: Sequence[Entry], entries: Sequence[Entry]) -> list[tuple[str, list[Entry], list[Entry]]]:
    """Returns the comparisons to make: every distilled arm among the chosen runs with the undistilled arm of its recipe.

    Args:
        chosen: runs whose arms are compared.
        entries: all evaluated runs; of each seed the newest counts.

    Returns:
        Name of the arm, runs of the baseline, runs of the arm.
    """
    newest = finished(entries)
    found: list[tuple[str, list[Entry], list[Entry]]] = []
    arms = [(entry.recipe, entry.data, entry.arm, entry.schedule) for entry in chosen if entry.arm != UNDISTILLED]
    for recipe, data, arm, schedule in dict.fromkeys(arms):
        own = [entry for entry in newest if (entry.recipe, entry.data) == (recipe, data)]
        other = [entry for entry in own if (entry.arm, entry.schedule) == (arm, schedule)]
        untaught = [entry for entry in own if entry.arm == UNDISTILLED]
        # a shortened run is compared with the undistilled run of full length if there is no shortened undistilled run
        against = schedule if any(entry.schedule == schedule for entry in untaught) else EQUAL_STEPS
        baseline = [entry for entry in untaught if entry.schedule == against]
        if other and baseline:
            found.append((f"{recipe} · {arm} · {schedule}", baseline, other))
    return found


def verdicts_figure(table: pd.DataFrame) -> go.Figure:
    """Draws differences with their intervals, one small plot per number because units differ; ``table`` is of ``verdict_table``.

    Numbers that are not defined have no plot; the table says so.
    """
    table = table[table["verdict"].isin(list(VERDICTS))]
    quantities = list(dict.fromkeys(table["quantity"]))
    figure = make_subplots(
        1, max(len(quantities), 1), subplot_titles=quantities, shared_yaxes=True, horizontal_spacing=0.03, figure=Chart()
    )
    shown: set[str] = set()
    arms = table["arm"].unique().tolist()
    for column, quantity in enumerate(quantities, 1):
        for word, (colour, symbol, _) in VERDICTS.items():
            own = table[(table["quantity"] == quantity) & (table["verdict"] == word)]
            if own.empty:
                continue
            figure.add_scatter(
                x=own["difference"], y=[arms.index(arm) for arm in own["arm"]], mode="markers", name=word, legendgroup=word,
                row=1, col=column,
                showlegend=word not in shown, marker={"color": colour, "symbol": symbol, "size": 10},
                error_x=interval([own[name].to_numpy(float) for name in ("difference", "low", "high")], colour),
                text=[plain(sentence) for sentence in own["sentence"]], hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
            shown.add(word)
        ends = reach(np.zeros(1), table.loc[table["quantity"] == quantity, ["difference", "low", "high"]].to_numpy(float))
        figure.update_xaxes(range=ends, nticks=4, tickangle=0, row=1, col=column)
        figure.add_vline(0, line={"color": GREY, "width": 1}, row=1, col=column)  # pyright: ignore[reportArgumentType] - numbers are allowed
    return with_names(quiet(figure, max(240, 130 + 30 * len(arms))), [plain(arm) for arm in arms])
