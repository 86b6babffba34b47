"""Splits that are made: whole, of the right size, with every class that can be there, the same whatever the order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from workbench.datasets.splitting import SplitConfig, complete_splits, divide, quotas
from workbench.errors import ConfigError, DataError

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


@st.composite
def images(draw: st.DrawFn, groups: bool = True) -> tuple[list[str], list[set[int]], list[int]]:
    """Names, classes of each image and groups, at least three of them."""
    count = draw(st.integers(3, 60))
    labels = draw(st.lists(st.sets(st.integers(0, 6), max_size=3), min_size=count, max_size=count))
    group = list(range(count))
    if groups:
        group = draw(st.lists(st.integers(0, count), min_size=count, max_size=count).filter(lambda found: len(set(found)) >= 3))
    return [f"{index:03}.jpg" for index in range(count)], labels, group


shares = st.tuples(st.floats(0.05, 0.45), st.floats(0.05, 0.45)).map(lambda s: {"train": 1 - sum(s), "val": s[0], "test": s[1]})
seeds = st.integers(0, 3)


@given(images(), shares, seeds)
def test_every_image_is_in_exactly_one_split_and_none_is_empty(data, shares: dict[str, float], seed: int) -> None:
    names, labels, groups = data
    made = divide(names, labels, groups, shares, seed)
    assert list(made) == ["train", "val", "test"] and all(made.values())
    assert sorted(itertools.chain(*made.values())) == sorted(names)


@given(images(), shares, seeds)
def test_near_duplicates_are_never_apart(data, shares: dict[str, float], seed: int) -> None:
    names, labels, groups = data
    where = {name: split for split, members in divide(names, labels, groups, shares, seed).items() for name in members}
    for group in set(groups):
        assert len({where[name] for name, own in zip(names, groups, strict=True) if own == group}) == 1


@given(st.integers(3, 500), shares)
def test_quotas_add_up_and_differ_from_the_shares_by_less_than_one_where_these_are_one_image_or_more(total: int, shares: dict) -> None:
    found = quotas(total, shares)
    assert sum(found.values()) == total and min(found.values()) >= 1
    if all(share * total >= 1 for share in shares.values()):
        assert all(abs(found[split] - share * total) < 1 for split, share in shares.items())


@given(images(groups=False), shares, seeds)
def test_sizes_are_the_quotas_if_no_two_images_are_alike(data, shares: dict[str, float], seed: int) -> None:
    names, labels, groups = data
    made = divide(names, labels, groups, shares, seed)
    assert {split: len(members) for split, members in made.items()} == quotas(len(names), shares)


@given(images(), shares, seeds)
def test_shares_are_met_to_less_than_the_largest_group(data, shares: dict[str, float], seed: int) -> None:
    names, labels, groups = data
    largest = max(groups.count(group) for group in groups)
    made, wanted = divide(names, labels, groups, shares, seed), quotas(len(names), shares)
    lone = any(len({groups[names.index(name)] for name in members}) == 1 for members in made.values())
    for split in shares:
        assert abs(len(made[split]) - wanted[split]) < largest or lone, "only a split that would stay empty may cost more"


@given(images(), seeds)
def test_no_exchange_of_two_groups_would_bring_a_class_into_one_more_split(data, seed: int) -> None:
    names, labels, groups = data
    made = divide(names, labels, groups, SHARES, seed)
    where = {name: split for split, members in made.items() for name in members}
    holding = [{label for label, own in zip(labels, groups, strict=True) if own == group for label in label} for group in set(groups)]
    sizes = [groups.count(group) for group in set(groups)]
    place = [where[names[groups.index(group)]] for group in set(groups)]
    common = [label for label in range(7) if sum(label in held for held in holding) >= 3]

    def covered(place: list[str]) -> tuple[int, int]:
        pairs = {(label, split) for held, split in zip(holding, place, strict=True) for label in held}
        training = {label for label, split in pairs if split == "train"}
        return len(training), len({(label, split) for label, split in pairs if split != "train" and label in common})

    now = covered(place)
    for a, b in itertools.combinations(range(len(place)), 2):
        if sizes[a] == sizes[b] and place[a] != place[b]:
            other = list(place)
            other[a], other[b] = place[b], place[a]
            assert covered(other) <= now


@given(st.lists(st.integers(3, 12), min_size=1, max_size=5), seeds)
def test_a_class_with_three_images_or_more_is_in_every_split(counts: list[int], seed: int) -> None:
    """With one class in each image; the smallest split has room for one image of each."""
    labels = [{label} for label, count in enumerate(counts) for _ in range(count)]
    names = [f"{index}.jpg" for index in range(len(labels))]
    made = divide(names, labels, range(len(labels)), {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3}, seed)
    for members in made.values():
        assert set().union(*(labels[names.index(name)] for name in members)) == set(range(len(counts)))


@given(images(), seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_files_and_the_numbers_of_the_groups_make_no_difference(data, seed: int, random) -> None:
    names, labels, groups = data
    order = list(range(len(names)))
    random.shuffle(order)
    again = divide([names[i] for i in order], [labels[i] for i in order], [f"g{groups[i]}" for i in order], SHARES, seed)
    assert again == divide(names, labels, groups, SHARES, seed)


def test_the_splits_of_some_names_are_these_on_every_machine() -> None:
    names = [f"{index}.jpg" for index in range(12)]
    made = divide(names, [{index % 3} for index in range(12)], range(12), SHARES, 1)
    assert made == {
        "train": ["10.jpg", "11.jpg", "2.jpg", "3.jpg", "6.jpg", "7.jpg", "8.jpg"],
        "val": ["1.jpg", "5.jpg", "9.jpg"],
        "test": ["0.jpg", "4.jpg"],
    }


def test_another_seed_gives_other_splits_of_the_same_sizes() -> None:
    names = [f"{index}.jpg" for index in range(40)]
    first, second = (divide(names, [{0}] * 40, range(40), SHARES, seed) for seed in (0, 1))
    assert first != second and [len(m) for m in first.values()] == [len(m) for m in second.values()] == [24, 8, 8]


def test_a_class_of_one_image_is_learned_even_if_that_image_holds_what_other_splits_lack() -> None:
    names = [f"{index}.jpg" for index in range(5)]
    for rare in range(5):
        labels = [{0, 1, 9} if index == rare else {0, 1} if index == (rare + 1) % 5 else {0} for index in range(5)]
        assert names[rare] in divide(names, labels, range(5), SHARES)["train"]


def test_a_rare_class_goes_to_training_first() -> None:
    names = [f"{index}.jpg" for index in range(20)]
    made = divide(names, [{1} if index == 7 else {0} for index in range(20)], range(20), SHARES)
    assert "7.jpg" in made["train"]


@pytest.mark.parametrize(
    ("count", "groups", "message"),
    [
        (1, [0], "cannot be made of 1 image:"),
        (2, [0, 1], "of 2 images"),
        (9, [0] * 5 + [1] * 4, "2 groups of near-duplicates .* of 9"),
    ],
)
def test_fewer_groups_than_splits_are_refused(count: int, groups: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        divide([f"{index}.jpg" for index in range(count)], [{0}] * count, groups, SHARES)


@pytest.mark.parametrize("values", [{"val": 0.5, "test": 0.5}, {"val": 0, "test": 0}, {"val": -0.1}, {"val": 1.0}])
def test_shares_that_leave_nothing_to_train_on_or_make_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SplitConfig.model_validate(values)


def test_the_split_that_is_divided_must_be_named_among_several() -> None:
    assert SplitConfig().pool(("cells",)) == "all" and SplitConfig().pool(("train", "all")) == "all"
    assert SplitConfig(of="train").pool(("train", "val")) == "train"
    with pytest.raises(ConfigError, match=r"data\.splits\.of is missing: the data has the splits train, val"):
        SplitConfig().pool(("train", "val"))


@pytest.mark.parametrize(
    ("there", "names", "config"),
    [
        (("train", "valid", "test"), ("train", "val", "test"), None),
        (("train2017", "val2017"), ("train", "val", "test"), {"of": "train2017", "val": 0.0, "test": 0.2}),
        (("train", "test", "all"), ("train", "val", "test"), {"of": "train", "val": 0.2, "test": 0.0}),
        (("train", "all"), ("train", "val", "test"), {"of": "train", "val": 0.2, "test": 0.2}),
        (("all",), ("train", "val", "test"), {"of": None, "val": 0.2, "test": 0.2}),
        (("cells",), ("train", "val", "test"), {"of": None, "val": 0.2, "test": 0.2}),
        (("train",), ("train", "val", "test"), {"of": None, "val": 0.2, "test": 0.2}),
        (("val", "all"), ("train", "val", "test"), {"of": None, "val": 0.2, "test": 0.2}),
    ],
)
def test_only_the_splits_that_the_files_lack_are_made(there: tuple[str, ...], names: tuple[str, ...], config: dict | None) -> None:
    used, made = complete_splits(there)
    assert tuple(used.values()) == names
    assert (made.model_dump(exclude={"seed"}) if made is not None else None) == config


def test_without_a_share_for_the_test_there_is_none_and_validation_needs_one() -> None:
    assert complete_splits(("train", "val"), test=0) == ({"train": "train", "val": "val", "test": None}, None)
    assert complete_splits(("all",), test=0)[0]["test"] is None
    with pytest.raises(ConfigError, match="give a share above 0"):
        complete_splits(("train",), val=0)
    with pytest.raises(ConfigError, match="none of them is called train"):
        complete_splits(("a", "b"))
