"""Compares samplers by real training: each searches the formulas of whole maps for two pairs of detectors, with several seeds.

The command is ``python -m benchmarks.evidence detkds_search``. A search that is finished is reused, one that was interrupted goes on, and
the row of one that finished on another machine is kept. The table is written after each search.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, pstdev
from typing import Any

import yaml

from benchmarks.formula_effects import additive_share, effects, interactions
from benchmarks.harness import machine
from workbench.files import read_json, write_text
from workbench.methods.detkds.genotype import Genotype
from workbench.search.family import POPULATION
from workbench.search.plan import SamplerName, SearchPlan, load_plan, plan_path
from workbench.search.records import Mean, TrialRecord, means
from workbench.search.stages import stage
from workbench.search.study import SearchStudy
from workbench.store.searches import searches_root

PAIRS = {"shapes_gfl": "GFL of GFL", "shapes_deformable_detr": "Deformable DETR of Deformable DETR"}
SAMPLERS: tuple[SamplerName, ...] = ("official", "family", "recommended", "tpe")
SEEDS = (0, 1, 2)
TRIALS, STEPS, REPEATED = 60, 150, 3
LEAST_FORMULAS = 5


def plans() -> Iterator[tuple[str, SearchPlan]]:
    """Yields the pair and the plan of each search. Rungs end no trial, so that trials drawn at random are a sample of all formulas."""
    for seed in SEEDS:
        for pair in PAIRS:
            whole = load_plan(plan_path(pair))
            for sampler in SAMPLERS:
                yield pair, whole.model_copy(
                    update={
                        "name": f"{pair}-{sampler}-{seed}", "inputs": ("global",), "sampler": sampler, "seeded": False, "seed": seed,
                        "steps": STEPS, "rungs": (), "trials": TRIALS, "repeated": REPEATED, "shares": (0.0, whole.share),
                    }
                )  # fmt: skip


def train(workers: int, kept: Sequence[Mapping[str, Any]] = ()) -> Iterator[str]:
    """Trains what is missing of all searches; yields the name of each as it is finished.

    Args:
        workers: processes of each search.
        kept: rows of searches that are known already.
    """
    known = {_key(row) for row in kept}
    for pair, plan in plans():
        if (pair, plan.sampler, plan.seed) in known or _done(plan):
            continue
        path = searches_root() / "plans" / f"{plan.name}.yaml"
        write_text(path, yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False))
        command = [sys.executable, "-P", "-m", "workbench", "search", str(path), "--workers", str(workers), "--device", "cpu"]
        subprocess.run(command, check=True)
        yield plan.name


def kept_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of a written table that were made as this module makes them."""
    same = (record.get("steps"), record.get("trials"), record.get("repeated")) == (STEPS, TRIALS, REPEATED)
    return list(record["rows"]) if same else []


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["pair"], row["sampler"], row["seed"]


def _done(plan: SearchPlan) -> bool:
    folder = searches_root() / plan.name
    if not (folder / "study.json").is_file():
        return False
    search = SearchStudy.read(folder)
    return "global" in search.studies and stage(search, "global", plan.trials).done


@dataclass(frozen=True)
class Searched:
    """A finished search.

    Attributes:
        pair: name of the shipped search whose pair it is for.
        sampler: what proposed its trials.
        seed: seed of the held-out images, the proposals and the trials.
        best: the candidate with the best mean over fresh seeds.
        undistilled: AP (0..1) of the student without distillation.
        records: all trials and repeats.
    """

    pair: str
    sampler: str
    seed: int
    best: Mean
    undistilled: float
    records: Sequence[TrialRecord]

    @property
    def trials(self) -> list[TrialRecord]:
        """Returns the trials that were trained to their end, in the order in which they were proposed."""
        return sorted((r for r in self.records if r.trained and r.value is not None), key=lambda r: r.number)

    @property
    def drawn(self) -> list[TrialRecord]:
        """Returns the trials of which chance alone decided: the first population of the two samplers that begin with one."""
        if self.sampler == "official":
            return [r for r in self.trials if r.number < POPULATION]
        return [r for r in self.trials if r.role == "random"] if self.sampler == "family" else []


def searched() -> list[Searched]:
    """Reads the searches that are finished."""
    found: list[Searched] = []
    for pair, plan in plans():
        if _done(plan):
            folder = searches_root() / plan.name
            search = SearchStudy.read(folder)
            rungs = {int(step): ap for step, ap in read_json(folder / "reference.json")["rungs"].items()}
            records = search.records("global")
            found.append(Searched(pair, plan.sampler, plan.seed, means(records)[0], rungs[max(rungs)], records))
    return found


def record(kept: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Returns the numbers of all finished searches and the Markdown that docs/search.md shows.

    Args:
        kept: rows of searches that are not in this machine's folder; one that is there takes their place.
    """
    known = {_key(row): dict(row) for row in kept} | {_key(row): row for row in map(_row, searched())}
    rows = [known[key] for pair, plan in plans() if (key := (pair, plan.sampler, plan.seed)) in known]
    drawn = {pair: _known([row for row in rows if row["pair"] == pair]) for pair in PAIRS}
    worth = {
        pair: {"formulas": len(known), **_spreads([row for row in rows if row["pair"] == pair]),
               "effects": effects(known, least=LEAST_FORMULAS), "interactions": interactions(known), "additive": additive_share(known)}
        for pair, known in drawn.items() if known
    }  # fmt: skip
    planned = len(list(plans()))
    parts = [] if len(rows) == planned else [f"{len(rows)} of {planned} searches are finished; `-` stands for the others."]
    parts += [sampler_table(rows)]
    parts += [f"{_heading(PAIRS[pair], one)}\n\n{worth_table(one)}" for pair, one in worth.items()]
    return {
        "table": "detkds_search", "command": "python -m benchmarks.evidence detkds_search", "steps": STEPS, "trials": TRIALS,
        "repeated": REPEATED, "seeds": list(SEEDS), "commits": sorted({commit for row in rows for commit in row["commits"]}),
        "machine": machine(), "rows": rows, "worth": worth, "markdown": "\n\n".join(parts),
    }  # fmt: skip


def _known(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Genotype, float]]:
    """Returns the formulas that were drawn at random, what they gained over no distillation added to the mean of the undistilled students.

    Searches of other seeds hold out other images, on which all students have another AP.
    """
    level = fmean(row["undistilled"] for row in rows) if rows else 0.0
    return [(Genotype(**formula), gain + level) for row in rows for formula, gain in row["drawn"]]


def _spreads(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean and the standard deviation of what the formulas drawn at random gain, and that between seeds of one candidate."""
    gains = [gain for row in rows for _, gain in row["drawn"]]
    groups = [values for row in rows for values in row["fresh"] if len(values) > 1]
    squares = sum((value - fmean(values)) ** 2 for values in groups for value in values)
    return {"gain": fmean(gains), "between_formulas": pstdev(gains),
            "between_seeds": sqrt(squares / max(sum(len(values) - 1 for values in groups), 1))}  # fmt: skip


def _heading(pair: str, worth: Mapping[str, Any]) -> str:
    gain, formulas, seeds = (100 * worth[name] for name in ("gain", "between_formulas", "between_seeds"))
    return (
        f"{pair}, {worth['formulas']} formulas drawn at random: they gain {gain:+.1f} AP on average and spread by {formulas:.1f}, "
        f"seeds of one formula by {seeds:.1f}."
    )


def _row(one: Searched) -> dict[str, Any]:
    values = [float(r.value or 0) for r in one.trials]
    drawn = [
        ({key: value for key, value in r.formulas[0].items() if key != "share"}, float(r.value or 0) - one.undistilled) for r in one.drawn
    ]
    fresh: dict[int | None, list[float]] = {}
    for record in one.records:
        if record.repeat and record.value is not None:
            fresh.setdefault(record.repeat_of, []).append(record.value)
    return {
        "pair": one.pair, "sampler": one.sampler, "seed": one.seed, "undistilled": one.undistilled, "ap": one.best.mean,
        "formula": one.best.first.candidate, "half": max(values[: TRIALS // 2]), "single": max(values),
        "refused": sum(r.gate is not None for r in one.records if not r.repeat), "seconds": sum(r.seconds for r in one.records),
        "commits": sorted({str(r.commit) for r in one.records}), "drawn": drawn, "fresh": list(fresh.values()),
    }  # fmt: skip


def sampler_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the comparison of samplers as Markdown. Means are over the seeds with which every sampler has finished."""
    seeds = sorted({row["seed"] for row in rows})
    singles = (f"best single trial of {TRIALS // 2}", f"best single trial of {TRIALS}")
    head = ["pair", "sampler", *(f"seed {seed}" for seed in seeds), "mean gain", *singles, "CPU min"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for pair in PAIRS:
        of_pair = {_key(row)[1:]: row for row in rows if row["pair"] == pair}
        if not of_pair:
            continue
        bare = {seed: row["undistilled"] for (_, seed), row in of_pair.items()}
        lines.append(_line(PAIRS[pair], "undistilled", [_percent(bare.get(seed)) for seed in seeds], "-", "-", "-", "-"))
        common = [seed for seed in seeds if all((sampler, seed) in of_pair for sampler in SAMPLERS)]
        for sampler in SAMPLERS:
            own = {seed: of_pair[sampler, seed] for seed in seeds if (sampler, seed) in of_pair}
            aps = [_percent(own[seed]["ap"] if seed in own else None) for seed in seeds]
            lines.append(_line(PAIRS[pair], sampler, aps, *_means([own[seed] for seed in common])))
    return "\n".join(lines)


def _means(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["-"] * 4
    gain = 100 * fmean(row["ap"] - row["undistilled"] for row in rows)
    return [f"{gain:+.1f}", *(_percent(fmean(row[key] for row in rows)) for key in ("half", "single")),
            f"{fmean(row['seconds'] for row in rows) / 60:.0f}"]  # fmt: skip


def _line(pair: str, sampler: str, aps: Sequence[str], *rest: str) -> str:
    return "| " + " | ".join([pair, sampler, *aps, *rest]) + " |"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def worth_table(worth: Mapping[str, Any]) -> str:
    """Returns what each choice is worth, and which pairs of choices do more or less than the two add up to, as Markdown."""
    lines = ["| position | choice | formulas | mean AP | best |", "|---|---|---|---|---|"]
    for row in worth["effects"]:
        mean = f"{100 * row['ap']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        lines.append(f"| {row['position']} | `{row['choice']}` | {row['formulas']} | {mean} | {100 * row['best']:.1f} |")
    return "\n".join(lines)
