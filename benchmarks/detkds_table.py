"""Compares samplers on the table of fitness and says what each choice of a formula is worth.

The command is ``python -m benchmarks.evidence detkds_table``.

A sampler chooses among the formulas of the table (``benchmarks.fitness_table``) through the code of a real search. What it is told is
the mean AP of a formula's seeds. Nothing is trained, so that many sampler seeds can be run.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.fitness_table import DISTANCES, T1, T2, T3, Row, cells, fitness, read_table
from benchmarks.formula_effects import additive_share, effects, interactions, interval
from benchmarks.harness import machine
from workbench.methods.detkds.genotype import Genotype
from workbench.resources import code_commit
from workbench.search.plan import SamplerName
from workbench.search.table import FitnessTable

SAMPLERS: tuple[SamplerName, ...] = ("random", "official", "family", "recommended", "tpe")
SEEDS = 100
BUDGETS = (60, 120)
POSITIONS: dict[str, tuple[str, ...]] = {"t1": T1, "t2": T2, "t3": T3, "distance": DISTANCES}


def means(rows: Sequence[Row]) -> dict[Genotype, float]:
    """Returns the mean AP (0..1) of each cell of the grid over its seeds; a cell whose formula a gate ended is left out.

    Raises:
        ValueError: the table is not complete.
    """
    known = fitness(list(rows))
    seeds = sorted({row.seed for row in rows})
    found: dict[Genotype, float] = {}
    for cell in cells():
        values = [known[cell, seed] for seed in seeds if (cell, seed) in known]
        if len(values) < len(seeds):
            raise ValueError(f"the table of fitness lacks {cell}; complete it with python -m benchmarks.fitness_table")
        kept = [value for value in values if value is not None]
        if len(kept) == len(values):
            found[cell] = fmean(kept)
    return found


def curves(table: FitnessTable, name: SamplerName, seeded: bool, seeds: int = SEEDS, trials: int = max(BUDGETS)) -> np.ndarray:
    """Returns the best AP (0..1) so far of each sampler seed after each trial, ``[seeds, trials]``."""
    runs = [[record.value or 0.0 for record in table.search(name, trials, seed, seeded)] for seed in range(seeds)]
    return np.maximum.accumulate(runs, axis=1)


def trials_to_reach(found: np.ndarray, value: float) -> np.ndarray:
    """Returns the first trial (from 1) at which each seed's curve has reached ``value``, infinite where it never does."""
    reached = found >= value
    return np.where(reached.any(1), reached.argmax(1) + 1.0, np.inf)


def record() -> dict[str, Any]:
    """Returns the numbers of the comparison and the Markdown that docs/search.md shows."""
    header, rows = read_table()
    table, searched = means(rows), FitnessTable.read()
    results: list[dict[str, Any]] = []
    for seeded in (False, True):
        names: tuple[SamplerName, ...] = ("random", "recommended", "tpe") if seeded else SAMPLERS
        found = {name: curves(searched, name, seeded) for name in names}
        for name in names:
            for budget in BUDGETS:
                at = found[name][:, budget - 1]
                aim = float(np.median(found["random"][:, budget - 1]))
                share = trials_to_reach(found[name], aim) / budget
                results.append(
                    {"sampler": name, "seeded": seeded, "trials": budget, "ap": float(np.median(at)), "ap_interval": interval(at),
                     "random": aim, "share": _finite(float(np.median(share))), "share_interval": [_finite(v) for v in interval(share)]}
                )  # fmt: skip
    without = [row.ap for row in rows if row.genotype is None and row.ap is not None]
    made = {
        "results": results,
        "effects": effects(list(table.items()), POSITIONS),
        "interactions": interactions(list(table.items())),
        "additive": additive_share(list(table.items())),
        "undistilled": without,
        "best": max(table.values()),
    }
    return {
        "table": "detkds_table", "command": "python -m benchmarks.evidence detkds_table", "plan_hash": header["plan_hash"],
        "seeds": SEEDS, "commits": sorted({str(row.commit) for row in rows} | {str(code_commit())}), "machine": machine(), **made,
        "markdown": f"{sampler_table(results)}\n\n{effect_table(made['effects'])}",
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def sampler_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the comparison of samplers as Markdown."""
    lines = [
        "| sampler | begins with known formulas | trials | best AP | trials to reach random's best, as a share |",
        "|---|---|---|---|---|",
    ]
    for row in results:
        low, high = row["ap_interval"]
        share = " ".join((_share(row["share"]), f"[{_share(row['share_interval'][0])}, {_share(row['share_interval'][1])}]"))
        ap = f"{100 * row['ap']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
        lines.append(f"| {row['sampler']} | {'yes' if row['seeded'] else 'no'} | {row['trials']} | {ap} | {share} |")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def effect_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns what each choice is worth as Markdown."""
    lines = ["| position | choice | mean AP of its formulas | best |", "|---|---|---|---|"]
    for row in rows:
        mean = f"{100 * row['ap']:.2f} [{100 * row['low']:.2f}, {100 * row['high']:.2f}]"
        lines.append(f"| {row['position']} | `{row['choice']}` | {mean} | {100 * row['best']:.2f} |")
    return "\n".join(lines)
