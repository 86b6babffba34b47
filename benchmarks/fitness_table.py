"""Fills the table of fitness: what every formula of a small grid is worth on one pair, so that samplers can be compared without training.

``python -m benchmarks.fitness_table [--count N] [--seeds 2] [--jobs 2]`` continues where it stopped and appends one line a trial to
``benchmarks/results/fitness_table.jsonl``. The search is that of ``recipes/search/shapes_fcos.yaml``.

The grid is a full factorial over whole maps: 4 x 3 x 8 x 4 = 384 cells, all of which pass gate R0. Cells that are one formula under
several names (``canonical``) are one trial, that of the canonical form, which is itself a cell. 305 remain, and whoever looks up a cell
looks up its canonical form. A trial that a gate ended is a line with ``gate`` and without ``ap``. Seed 0 comes first for every formula, in
an order that was drawn once, so that an unfinished table is a fair sample. One line a seed has no distillation (``genotype`` null).
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from workbench.files import hash_json
from workbench.methods.detkds.canonical import canonical
from workbench.methods.detkds.genotype import Distance, First, Genotype, Second, Third

RESULT = Path(__file__).resolve().parent / "results" / "fitness_table.jsonl"
PLAN = Path(__file__).resolve().parent.parent / "recipes" / "search" / "shapes_fcos.yaml"
T1: tuple[First, ...] = ("no", "satt", "catt", "mask")
T2: tuple[Second, ...] = ("no", "scale_r2", "local_s4")
T3: tuple[Third, ...] = ("no", "norm_C", "norm_HW", "norm_N", "softmax_C", "softmax_HW", "min_max_normalize", "batchnorm")
DISTANCES: tuple[Distance, ...] = ("l1", "l2", "cos", "kl")


def cells() -> list[Genotype]:
    """Returns all formulas of the grid, in the order of its positions."""
    return [Genotype("global", *genes) for genes in product(T1, T2, T3, DISTANCES)]


def distinct() -> list[Genotype]:
    """Returns the canonical forms of the grid, in the order in which they are trained."""
    found = sorted({canonical(cell, "corrected") for cell in cells()}, key=str)
    random.Random(0).shuffle(found)
    return found


@dataclass(frozen=True)
class Row:
    """One trial of the table.

    Attributes:
        genotype: Genes of the canonical form; None without distillation.
        seed: Seed of the trial.
        ap: AP (0..1) at the end; None if a gate ended the trial.
        rungs: AP by step.
        gate: What ended the trial early.
        reason: Why.
        seconds: CPU seconds.
        ratio: Gradient norm at weight 1 over that of detection.
        commit: Commit of the code.
    """

    genotype: tuple[str, str, str, str] | None
    seed: int
    ap: float | None
    rungs: dict[str, float]
    gate: str | None
    reason: str
    seconds: float
    ratio: float | None
    commit: str | None


def read_table(path: Path = RESULT) -> tuple[dict[str, Any], list[Row]]:
    """Returns what the table was made with, and its rows; both empty if there is none. A line that a kill cut off is left out."""
    if not path.exists():
        return {}, []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    rows = [Row(**line | {"genotype": tuple(line["genotype"]) if line["genotype"] else None}) for line in lines[1:]]
    return lines[0], rows


def fitness(rows: list[Row]) -> dict[tuple[Genotype, int], float | None]:
    """Returns the AP of every cell of the grid that has been trained, by formula and seed; cells of one canonical form are equal."""
    known = {(row.genotype, row.seed): row.ap for row in rows}
    seeds = sorted({row.seed for row in rows})
    found = {(cell, seed): (canonical(cell, "corrected").genes, seed) for cell in cells() for seed in seeds}
    return {key: known[place] for key, place in found.items() if place in known}


def main(arguments: list[str]) -> int:
    """Trains what the table lacks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fitness_table", description=__doc__)
    parser.add_argument("--count", type=int, default=len(distinct()), help="number of formulas")
    parser.add_argument("--seeds", type=int, default=2, help="trials of each formula")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    options = parser.parse_args(arguments)
    header, rows = read_table()
    if not header:
        _append(_header())
    elif header["plan_hash"] != (wanted := _header()["plan_hash"]):
        print(f"{RESULT} was made with another plan ({header['plan_hash']}, now {wanted}). Remove it to make it again.", file=sys.stderr)
        return 2
    done = {(row.genotype, row.seed) for row in rows}
    left = [place for place in _places(options.count, options.seeds) if (place[0].genes if place[0] else None, place[1]) not in done]
    print(f"{len(done)} trials there, {len(left)} to come", flush=True)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(left[number :: options.jobs],)) for number in range(options.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(abs(worker.exitcode or 0) for worker in workers)


def _places(count: int, seeds: int) -> Iterator[tuple[Genotype | None, int]]:
    for seed in range(seeds):
        yield None, seed
        for genotype in distinct()[:count]:
            yield genotype, seed


def _header() -> dict[str, Any]:
    """Returns what the table is made with. Its hash tells whether it can be continued."""
    from benchmarks.harness import machine
    from workbench.search.plan import load_plan
    from workbench.search.trainer import trial_recipe

    plan = load_plan(PLAN)
    recipe = trial_recipe(plan)
    fields = ("mode", "settings", "steps", "rungs", "share", "fitness", "seed")
    decisive = {"recipe": recipe.hash(), "plan": plan.model_dump(mode="json", include=set(fields)), "grid": [T1, T2, T3, DISTANCES]}
    return {"plan": plan.name, "plan_hash": hash_json(decisive)[:16], "steps": plan.steps, "share": plan.share, "machine": machine()}


def _work(places: list[tuple[Genotype | None, int]]) -> None:
    """Trains some of the trials and appends each as soon as it has ended."""
    from workbench.resources import code_commit
    from workbench.search.candidate import Candidate
    from workbench.search.plan import load_plan
    from workbench.search.trainer import TrialTrainer

    plan, commit = load_plan(PLAN), code_commit()
    with tempfile.TemporaryDirectory() as folder:
        trainer = TrialTrainer(plan, "cpu", Path(folder), lambda text: print(text, flush=True))
        for genotype, seed in places:
            candidate = None if genotype is None else Candidate(((genotype, plan.share),))
            made = trainer.train(candidate, seed)
            rungs = {str(step): round(ap, 6) for step, ap in made.rungs.items()}
            ap = None if made.ap is None else round(made.ap, 6)
            ratio = next((float(f"{value:.4g}") for value in made.ratios.values()), None)
            genes = None if genotype is None else genotype.genes
            row = Row(genes, seed, ap, rungs, made.gate, made.reason, round(made.seconds, 2), ratio, commit)
            _append(asdict(row))
            print(f"{genotype} seed {seed}: {made.gate or ap} ({made.seconds:.1f} s)", flush=True)


def _append(line: Mapping[str, Any]) -> None:
    """Appends one line with one write, which no other process can fall into."""
    RESULT.parent.mkdir(exist_ok=True)
    with open(RESULT, "ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
