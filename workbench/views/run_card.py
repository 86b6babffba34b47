"""Shows a run as a card in a notebook: its state, arm and seed, how AP rose, and a link to the dashboard."""

from typing import NamedTuple
from urllib.parse import quote

from workbench.analysis.report.summary import run_result
from workbench.errors import WorkbenchError
from workbench.services.dashboard import dashboard_address
from workbench.store.labels import read_labels
from workbench.store.run import Run
from workbench.views.rendering import render
from workbench.views.style import COLOURS

WIDTH, HEIGHT = 260, 64  # of the curve in pixels


class Curve(NamedTuple):
    """The AP curve of a run.

    Attributes:
        points: ``x,y`` of each evaluation in pixels, from the left; y is 0 at the top.
        first: step of the first evaluation.
        last: step of the last one.
        best: highest AP in percent, at the top of the curve, whose bottom is 0.
    """

    points: list[str]
    first: int
    last: int
    best: float


def run_card(run: Run) -> str:
    """Returns a run as HTML; names from files are text in it. A run that cannot be read shows why."""
    try:
        info, result, state = run.info(), run_result(run), run.state()
        labels = read_labels(run)
    except WorkbenchError as error:
        return render("run_card.html.j2", name=run.name, problem=str(error))
    group, train = info.get("group") or {}, info.get("recipe", {}).get("train", {})
    facts = {"recipe": group.get("recipe"), "arm": group.get("arm"), "schedule": group.get("schedule"),
             "seed": group.get("seed", info.get("seed")), "data": info.get("dataset"), "teacher": info.get("teacher"),
             "steps": train.get("steps"), "tags": ", ".join(labels.tags), "note": labels.note}  # fmt: skip
    facts = {name: value for name, value in facts.items() if value not in (None, "")}
    return render(
        "run_card.html.j2", name=run.name, problem="", state=state, facts=facts,
        ap=f"{100 * result['coco']['ap']:.1f}" if result and result["coco"]["ap"] is not None else "", split=result.get("split", ""),
        step=result.get("step", ""), curve=ap_curve(run), width=WIDTH, height=HEIGHT, colour=COLOURS[0],
        link=dashboard_address(f"/?run={quote(run.name)}"),
    )  # fmt: skip


def ap_curve(run: Run, split: str = "val") -> Curve | None:
    """Returns AP over the evaluations of a split; None if there are fewer than two."""
    seen = {line["step"]: line["coco"]["ap"] for line in run.evaluations() if line["split"] == split and line["coco"]["ap"] is not None}
    steps = sorted(seen)
    if len(steps) < 2:
        return None
    best = max(seen.values()) or 1.0
    points = [f"{WIDTH * (step - steps[0]) / (steps[-1] - steps[0]):.1f},{HEIGHT * (1 - seen[step] / best):.1f}" for step in steps]
    return Curve(points, steps[0], steps[-1], 100 * max(seen.values()))
