"""A table of known fitness, and searches in it."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT
from workbench.errors import RunError
from workbench.methods.detkds.canonical import canonical
from workbench.methods.detkds.genotype import Genotype
from workbench.search.table import FitnessTable

FILE = ROOT / "benchmarks" / "results" / "fitness_table.jsonl"
SAMPLERS = ("random", "official", "family", "recommended", "tpe")


@pytest.fixture(scope="module")
def table() -> FitnessTable:
    return FitnessTable.read()


@pytest.fixture(scope="module")
def lines() -> pd.DataFrame:
    return pd.DataFrame([json.loads(line) for line in FILE.read_text().splitlines()[1:]])


def test_the_mean_of_a_formula_is_over_its_seeds(table: FitnessTable, lines: pd.DataFrame):
    known = lines.dropna(subset=["genotype", "ap"])
    means = known.groupby(known["genotype"].map(tuple))["ap"].mean()
    assert {one.genes: value for one, value in table.means.items()} == pytest.approx(means.to_dict())
    assert table.undistilled == tuple(lines[lines["genotype"].isna()].sort_values("seed")["ap"])
    frame = table.frame()
    assert frame["ap"].tolist() == pytest.approx(sorted(100 * means, reverse=True))
    first = frame.iloc[0]
    assert 100 * means[(first["t1"], first["t2"], first["t3"], first["distance"])] == pytest.approx(first["ap"])


def test_every_point_of_the_space_is_in_the_table(table: FitnessTable):
    points = [Genotype("global", *genes) for genes in product(*table.space.choices.values())]
    assert len(points) == 384
    assert {canonical(point, "corrected") for point in points} == set(table.means)
    assert table.space.size == 305


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_trial_reaches_the_mean_of_its_formula(table: FitnessTable, sampler):
    trials = table.search(sampler, trials=25, seed=3)
    assert len(trials) == 25
    for trial in trials:
        assert trial.value == table.means[Genotype("global", **trial.genes)]
        assert trial.candidate == str(Genotype("global", **trial.genes))
    assert [trial.value for trial in table.search(sampler, trials=25, seed=3)] == [trial.value for trial in trials]


def test_a_seeded_search_begins_with_known_formulas_of_the_table(table: FitnessTable):
    first = [trial.candidate for trial in table.search("random", trials=12, seeded=True)]
    assert "global: no > no > batchnorm, l2" in first[:4]  # PKD
    assert first != [trial.candidate for trial in table.search("random", trials=12)]


def test_curves_are_medians_of_the_best_so_far_within_their_interval(table: FitnessTable):
    curves = table.race(["random", "tpe"], trials=15, seeds=5)
    for sampler, own in curves.groupby("sampler"):
        runs = [[trial.value for trial in table.search(sampler, trials=15, seed=seed)] for seed in range(5)]  # type: ignore[arg-type]
        for trial in range(1, 16):
            row = own[own["trial"] == trial].iloc[0]
            assert row["ap"] == pytest.approx(100 * sorted(max(run[:trial]) for run in runs)[2])
            assert row["low"] <= row["ap"] <= row["high"]
            assert row["low"] >= 100 * min(max(run[:trial]) for run in runs)
    assert (curves["n"] == 5).all()
    assert (np.diff(curves[curves["sampler"] == "tpe"]["ap"]) >= 0).all()


def test_a_missing_and_a_foreign_file_are_named(tmp_path: Path):
    with pytest.raises(RunError, match=r"cannot read the table .*none\.jsonl"):
        FitnessTable.read(tmp_path / "none.jsonl")
    (tmp_path / "own.jsonl").write_text("no table\n")
    with pytest.raises(RunError, match="is not a table of fitness"):
        FitnessTable.read(tmp_path / "own.jsonl")
