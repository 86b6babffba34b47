"""Searches in a table of formulas whose AP is known, so that a search of hours takes seconds."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import RunError
from workbench.methods.detkds.canonical import canonical
from workbench.methods.detkds.genotype import Genotype
from workbench.resources import checkout_root
from workbench.search.candidate import Candidate
from workbench.search.genes import FormulaSpace
from workbench.search.plan import SamplerName
from workbench.search.records import TrialRecord
from workbench.search.samplers import simulate
from workbench.search.space import positions

RESAMPLES = 2000
_IMAGES = 16  # in a batch; no formula of the table is illegal for it


@dataclass(frozen=True, eq=False)
class TableSpace(FormulaSpace):
    """The formulas of a table, as a space that samplers choose from.

    Attributes:
        known: The choices at each position.
    """

    known: Mapping[str, tuple[str, ...]] | None = None

    @cached_property
    def choices(self) -> dict[str, tuple[Any, ...]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return dict(self.known or {})

    def starts(self, seeded: bool) -> list[dict[str, Any]]:
        return [one for one in super().starts(seeded) if all(gene in self.choices[position] for position, gene in one.items())]


class FitnessTable:
    """Formulas over whole maps with the AP (0..1) that each reached, by seed.

    Attributes:
        ap: AP of each seed, by formula in canonical form; a formula that a gate ended has none.
        undistilled: AP of each seed without distillation.
        plan: Name of the search whose trials fill the table.
    """

    def __init__(self, ap: Mapping[Genotype, tuple[float, ...]], undistilled: tuple[float, ...] = (), plan: str = ""):
        self.ap, self.undistilled, self.plan = dict(ap), undistilled, plan

    @classmethod
    def read(cls, path: Path | None = None) -> "FitnessTable":
        """Reads the table that ``python -m benchmarks.fitness_table`` has written, as far as it is filled.

        Args:
            path: the file; by default the one that comes with the checkout.

        Raises:
            RunError: there is no table, or it is not one.
        """
        if path is None:
            root = checkout_root()
            if root is None:
                raise RunError("the table of fitness comes with a checkout of the workbench, and this is installed: name a file.")
            path = root / "benchmarks" / "results" / "fitness_table.jsonl"
        try:
            header, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            ap: dict[Genotype, tuple[float, ...]] = {}
            for row in rows:
                genotype = Genotype("global", *row["genotype"]) if row["genotype"] else None
                if genotype is not None and row["ap"] is not None:
                    ap[genotype] = (*ap.get(genotype, ()), row["ap"])
            return cls(ap, tuple(row["ap"] for row in rows if row["genotype"] is None and row["ap"] is not None), header["plan"])
        except OSError as error:
            raise RunError(f"cannot read the table {path}: {error.strerror}. 'python -m benchmarks.fitness_table' fills one.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is not a table of fitness: {error}. 'python -m benchmarks.fitness_table' fills one.") from error

    @cached_property
    def means(self) -> dict[Genotype, float]:
        """Returns the mean AP of each formula over its seeds."""
        return {genotype: float(np.mean(values)) for genotype, values in self.ap.items()}

    @cached_property
    def space(self) -> TableSpace:
        """Returns the space of the table's formulas."""
        there = {name: {getattr(genotype, name) for genotype in self.ap} for name in positions("global")}
        known = {name: tuple(gene for gene in genes if gene in there[name]) for name, genes in positions("global").items()}
        return TableSpace("global", "corrected", _IMAGES, known=known)

    def frame(self) -> pd.DataFrame:
        """Returns the formulas, the best first: the choice at each position, ``ap`` (mean in points), ``n`` (seeds)."""
        rows = [{**asdict(genotype), "ap": 100 * ap, "n": len(self.ap[genotype])} for genotype, ap in self.means.items()]
        return pd.DataFrame(rows).drop(columns="input").sort_values("ap", ascending=False, kind="stable", ignore_index=True)

    def search(self, sampler: SamplerName, trials: int = 60, seed: int = 0, seeded: bool = False) -> list[TrialRecord]:
        """Runs one search on the table and returns its trials; a trial reaches the mean AP of its formula.

        Args:
            sampler: what proposes the trials.
            trials: trials that are trained.
            seed: seed of the sampler.
            seeded: whether the search begins with known formulas.
        """
        found: list[Genotype] = []

        def told(candidate: Candidate) -> float | None:
            genotype = canonical(candidate.shares[0][0], "corrected")
            if genotype in self.means:
                found.append(genotype)
            return self.means.get(genotype)

        values = simulate(sampler, self.space, told, trials, seed, seeded)
        return [_record(number, genotype, value) for number, (genotype, value) in enumerate(zip(found, values, strict=True))]

    def race(self, samplers: Iterable[SamplerName], trials: int = 60, seeds: int = 20, seeded: bool = False) -> pd.DataFrame:
        """Returns how good the best formula is that each sampler has found after each trial.

        Returns:
            ``sampler``, ``trial`` (from 1), ``ap`` (points, median over the seeds of the sampler), ``low``, ``high`` (95 % bootstrap
            interval of the median), ``n`` (seeds).
        """
        tables: list[pd.DataFrame] = []
        for sampler in samplers:
            runs = [[record.value or 0.0 for record in self.search(sampler, trials, seed, seeded)] for seed in range(seeds)]
            best = 100 * np.maximum.accumulate([run[: min(map(len, runs))] for run in runs], axis=1)
            draws = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))
            low, high = np.quantile(np.median(best[draws], axis=1), [0.025, 0.975], axis=0)
            table = {"trial": range(1, best.shape[1] + 1), "ap": np.median(best, axis=0), "low": low, "high": high, "n": seeds}
            tables.append(pd.DataFrame({"sampler": sampler, **table}))
        return pd.concat(tables, ignore_index=True)


def _record(number: int, genotype: Genotype, value: float) -> TrialRecord:
    genes = {name: getattr(genotype, name) for name in ("t1", "t2", "t3", "distance")}
    return TrialRecord(
        study="global", number=number, state="COMPLETE", candidate=str(genotype), canonical=str(genotype), genes=genes,
        formulas=(asdict(genotype) | {"share": 1.0},), seed=None, value=value, rungs={}, gate=None, reason="", seconds=0.0, worker="",
        commit=None, role="", unpruned=True, repeat_of=None, retry_of=None, same_as=None, started=None, ended=float(number),
    )  # fmt: skip
