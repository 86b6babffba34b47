"""The comparison of samplers says what the searches say, keeps rows of other machines, and the page shows the committed table."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from benchmarks import detkds_search
from benchmarks.evidence import SEARCH_PAGE, load, with_table
from tests.search.examples import FITNESS, TableTrainer
from workbench.files import write_json
from workbench.search.study import SearchStudy
from workbench.search.workers import work

PAIR = "shapes_gfl"
UNDISTILLED = {0: 0.2, 1: 0.25}


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with three searches of eight trials: two samplers with one seed, and a second seed of one of them."""
    folder = tmp_path_factory.mktemp("searches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_SEARCHES", str(folder))
        for name, value in {
            "PAIRS": {PAIR: "GFL of GFL"}, "SAMPLERS": ("family", "recommended"), "SEEDS": (0, 1), "TRIALS": 8, "REPEATED": 2,
            "LEAST_FORMULAS": 1,
        }.items():  # fmt: skip
            patch.setattr(detkds_search, name, value)
        for _, plan in detkds_search.plans():
            if (plan.sampler, plan.seed) != ("family", 1):
                search = SearchStudy.open(plan, folder / plan.name, FITNESS, other_code=True)
                assert work(search, TableTrainer(noise=0.1))
                write_json(folder / plan.name / "reference.json", {"rungs": {"50": 0.1, "150": UNDISTILLED[plan.seed]}})
        yield folder


def test_a_row_is_the_mean_over_fresh_seeds_of_the_best_candidate(searches: Path):
    rows = {(row["sampler"], row["seed"]): row for row in detkds_search.record()["rows"]}
    assert set(rows) == {("family", 0), ("recommended", 0), ("recommended", 1)}
    for (sampler, seed), row in rows.items():
        records = SearchStudy.read(searches / f"{PAIR}-{sampler}-{seed}").records("global")
        firsts = [r for r in records if not r.repeat]
        fresh = {
            first.candidate: fmean(r.value for r in records if r.repeat and r.repeat_of == first.number and r.value is not None)
            for first in firsts
            if any(r.repeat_of == first.number for r in records if r.repeat)
        }
        assert (row["formula"], row["ap"]) == max(fresh.items(), key=lambda item: item[1])
        assert row["single"] == max(r.value for r in firsts if r.value is not None)
        assert row["undistilled"] == UNDISTILLED[seed]
        assert row["seconds"] == sum(r.seconds for r in records)


def test_formulas_drawn_by_chance_count_as_what_they_gained(searches: Path):
    record = detkds_search.record()
    [row] = [row for row in record["rows"] if row["sampler"] == "family"]
    records = [r for r in SearchStudy.read(searches / f"{PAIR}-family-0").records("global") if r.role == "random" and not r.repeat]
    assert [gain for _, gain in row["drawn"]] == pytest.approx([float(r.value or 0) - 0.2 for r in records if r.trained])
    level = fmean([0.2, 0.2, 0.25])
    values = [float(r.value or 0) - 0.2 + level for r in records if r.trained and r.formulas[0]["distance"] == "l1"]
    effect = next((one for one in record["worth"][PAIR]["effects"] if one["choice"] == "l1" and one["position"] == "distance"), None)
    assert (effect is None) == (not values)
    assert effect is None or effect["ap"] == pytest.approx(fmean(values))


def test_spreads_are_those_of_gains_and_of_the_fresh_seeds_of_one_candidate(searches: Path):
    worth = detkds_search.record()["worth"][PAIR]
    gains, pairs = [], []
    for name in (f"{PAIR}-family-0", f"{PAIR}-recommended-0", f"{PAIR}-recommended-1"):
        records = SearchStudy.read(searches / name).records("global")
        gains += [r.value - 0.2 for r in records if r.role == "random" and not r.repeat and r.value is not None and "family" in name]
        repeats = [r for r in records if r.repeat and r.value is not None]
        pairs += [[r.value for r in repeats if r.repeat_of == number] for number in {r.repeat_of for r in repeats}]
    assert all(len(pair) == 2 for pair in pairs)
    assert worth["between_seeds"] == pytest.approx(np.sqrt(np.mean([(a - b) ** 2 / 2 for a, b in pairs])))
    assert (worth["gain"], worth["between_formulas"]) == (pytest.approx(np.mean(gains)), pytest.approx(np.std(gains)))


def test_rows_of_another_machine_are_kept_and_are_not_searched_again(searches: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    whole = detkds_search.record()
    kept = detkds_search.kept_rows(whole)
    monkeypatch.setenv("WORKBENCH_SEARCHES", str(tmp_path / "empty"))
    assert detkds_search.record()["rows"] == []
    again = detkds_search.record(kept)
    assert {key: again[key] for key in ("rows", "worth", "markdown", "commits")} == {
        key: whole[key] for key in ("rows", "worth", "markdown", "commits")
    }
    begun: list[str] = []
    monkeypatch.setattr(detkds_search.subprocess, "run", lambda command, check: begun.append(Path(command[5]).stem))
    assert list(detkds_search.train(1, kept)) == begun == [f"{PAIR}-family-1"]


def test_rows_made_in_another_way_are_not_kept(searches: Path):
    assert detkds_search.kept_rows(detkds_search.record() | {"trials": 9}) == []


def test_the_table_shows_each_seed_and_means_over_the_seeds_that_all_samplers_have(searches: Path):
    record = detkds_search.record()
    rows = {(row["sampler"], row["seed"]): row for row in record["rows"]}
    lines = record["markdown"].splitlines()
    assert "| GFL of GFL | undistilled | 20.0 | 25.0 | - | - | - | - |" in lines
    aps = [rows["recommended", seed]["ap"] for seed in (0, 1)]
    gain = 100 * (aps[0] - 0.2)
    assert lines[0] == "3 of 4 searches are finished; `-` stands for the others."
    assert any(line.startswith(f"| GFL of GFL | recommended | {100 * aps[0]:.1f} | {100 * aps[1]:.1f} | {gain:+.1f} |") for line in lines)
    assert any(line.startswith(f"| GFL of GFL | family | {100 * rows['family', 0]['ap']:.1f} | - |") for line in lines)


def test_the_page_of_the_search_shows_the_committed_table():
    shown = SEARCH_PAGE.read_text(encoding="utf-8")
    assert "<!-- table:detkds_search -->" in shown
    assert with_table(shown, "detkds_search", load("detkds_search")["markdown"]) == shown
