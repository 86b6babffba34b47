"""Runs are found among many: each answer is compared with a loop over the same runs."""

import random
from pathlib import Path

import pytest

from workbench.store.labels import Labels
from workbench.store.run import Run
from workbench.views.catalog import Entry, catalog
from workbench.views.run_list import FACETS, ORDERS, UNTAGGED, Wanted, grouped, list_table, matching, offered


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    rng = random.Random(0)
    return [
        Entry(
            Run(Path(f"/runs/{recipe}-{arm}-seed{seed}")), recipe=recipe, arm=arm, seed=seed, schedule="equal steps",
            state=rng.choice(["done", "failed"]), steps=100, step=rng.randrange(100), created=f"2026-11-{rng.randrange(1, 29):02d}T10:00",
            dataset=rng.choice(["shapes", "Cells"]), family="gfl", ap=rng.choice([None, rng.random()]), split=rng.choice(["val", "test"]),
            labels=Labels(tuple(rng.sample(["paper", "bad", "2"], rng.randrange(3))), rng.choice(["", "Odd loss at step 40"]),
                          rng.random() < 0.2),
        )
        for recipe in ("small", "large") for arm in ("undistilled", "cwd") for seed in range(10)
    ]  # fmt: skip


def test_archived_runs_are_wanted_alone_or_not_at_all(entries: list[Entry]):
    shown, away = matching(entries, Wanted()), matching(entries, Wanted(archived=True))
    assert shown and away and len(shown) + len(away) == len(entries)
    assert not any(entry.labels.archived for entry in shown)


@pytest.mark.parametrize(("words", "part"), [("LARGE cwd", "large-cwd"), ("odd STEP", "Odd loss"), ("paper", "paper"), ("cells", "Cells")])
def test_a_run_is_found_by_all_words_wherever_they_stand_in_whatever_case(entries: list[Entry], words: str, part: str):
    found = matching(entries, Wanted(search=words))
    expected = [
        e for e in entries if not e.labels.archived and any(part in text for text in (e.run.name, e.dataset, e.labels.note, *e.labels.tags))
    ]
    assert found == expected and 0 < len(found) < len(entries)


def test_a_facet_wants_any_of_its_values_and_all_facets_are_wanted(entries: list[Entry]):
    facets = {"seed": ["1", "3"], "tag": ["paper", "bad"], "state": ["done"], "arm": []}
    found = matching(entries, Wanted(facets=facets))
    expected = [
        e for e in entries if not e.labels.archived and e.seed in (1, 3) and e.state == "done" and {"paper", "bad"} & set(e.labels.tags)
    ]
    assert found == expected and found


def test_days_of_creation_are_both_included(entries: list[Entry]):
    found = matching(entries, Wanted(since="2026-11-05", until="2026-11-20"))
    assert {entry.created[8:10] for entry in found} == {f"{d:02d}" for d in range(5, 21)} & {
        entry.created[8:10] for entry in entries if not entry.labels.archived}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_keeps_every_run(entries: list[Entry], order: str):
    found = matching(entries, Wanted(), order)
    assert sorted(entry.run.name for entry in found) == sorted(entry.run.name for entry in entries if not entry.labels.archived)
    aps = [entry.ap for entry in found]
    if order == "AP":
        known = [ap for ap in aps if ap is not None]
        assert known == sorted(known, reverse=True) and aps[len(known) :] == [None] * (len(aps) - len(known))
    if order == "newest":
        assert [entry.created for entry in found] == sorted((entry.created for entry in found), reverse=True)


def test_values_are_offered_sorted_numbers_as_numbers(entries: list[Entry]):
    values = offered(entries)
    assert set(values) == set(FACETS)
    assert values["seed"] == [str(number) for number in range(10)]
    assert values["tag"] == ["2", "bad", "paper"]


def test_a_group_holds_its_runs_and_the_mean_of_their_ap_on_one_split(entries: list[Entry]):
    table, groups = grouped(entries, "arm")
    assert table["arm"].tolist() == ["undistilled", "cwd"]
    for row, own in zip(table.to_dict("records"), groups, strict=True):
        assert own == [entry for entry in entries if entry.arm == row["arm"]]
        known = [100 * e.ap for e in own if e.ap is not None and e.split == row["split"]]
        other = [e for e in own if e.ap is not None and e.split != row["split"]]
        assert len(known) >= len(other)
        assert row["ap"] == pytest.approx(sum(known) / len(known))
        assert (row["lowest"], row["highest"]) == (min(known), max(known))
        assert (row["runs"], row["done"], row["seeds"]) == (20, sum(e.state == "done" for e in own), 10)


def test_a_run_of_several_tags_is_in_several_groups_and_one_of_none_in_its_own(entries: list[Entry]):
    table, groups = grouped(entries, "tag")
    by = dict(zip(table["tag"], groups, strict=True))
    assert by[UNTAGGED] == [entry for entry in entries if not entry.labels.tags]
    assert sum(map(len, groups)) == sum(max(len(entry.labels.tags), 1) for entry in entries)


def test_the_table_shows_ap_in_percent_and_what_is_unknown_as_null(entries: list[Entry]):
    table = list_table(entries)
    for row, entry in zip(table.to_dict("records"), entries, strict=True):
        assert row["run"] == entry.run.name and row["progress"] == entry.step / 100
        assert row["ap"] == pytest.approx(100 * entry.ap) if entry.ap is not None else row["ap"] != row["ap"]
    assert list(list_table([]).columns) == list(table.columns)


def test_the_catalog_knows_the_family_the_data_and_the_ap_that_represents_a_run(shared_stored: Path):
    (entry,) = [entry for entry in catalog(shared_stored) if entry.run.name == "distilled"]
    tested = [line for line in entry.run.evaluations() if line["split"] == "test"]
    assert entry.ap == tested[-1]["coco"]["ap"] and entry.split == "test"
    assert entry.family == "deformable_detr" and entry.dataset == entry.run.info()["dataset"]


@pytest.fixture
def shared_stored() -> Path:
    return Path(__file__).parents[1] / "stored" / "saved"
