"""Divides images into train, val and test: the same on every machine, each class in all of them if possible, near-duplicates together."""

import hashlib
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbench.datasets.reading import match_split
from workbench.errors import ConfigError, DataError

MADE = ("train", "val", "test")
_FIRST = 1000  # a class in training is worth more than any number of them elsewhere
_TRIED = 200_000  # exchanges of two groups, so that ten thousand classes take seconds


class SplitConfig(BaseModel):
    """Makes splits where the files have none."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    of: str | None = None
    """Split of the files that is divided. Null takes ``all``, or the only one."""
    val: float = Field(0.2, ge=0, lt=1)
    """Share of the images that becomes ``val``. 0 makes none; ``val`` is then a split of the files."""
    test: float = Field(0.2, ge=0, lt=1)
    """Share of the images that becomes ``test``. 0 makes none; ``test`` is then a split of the files."""
    seed: int = Field(0, ge=0)
    """Another seed divides the images in another way."""

    @model_validator(mode="after")
    def _leaves_training_images(self) -> "SplitConfig":
        if not 0 < self.val + self.test < 1:
            raise ValueError(f"val {self.val:g} and test {self.test:g} must leave images for training and take at least some")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Returns the share of each split that is made, ``train`` first."""
        shares = {"train": 1 - self.val - self.test, "val": self.val, "test": self.test}
        return {name: share for name, share in shares.items() if share > 0}

    def pool(self, there: Sequence[str]) -> str:
        """Returns the split of the files that is divided.

        Args:
            there: splits of the files.

        Raises:
            ConfigError: the files have several and none of them is named.
        """
        if self.of is not None:
            return self.of
        if "all" in there or len(there) == 1:
            return "all"
        raise ConfigError(f"data.splits.of is missing: the data has the splits {', '.join(there) or 'none'}. Name the one to divide.")


def complete_splits(
    there: Sequence[str], val: float = 0.2, test: float = 0.2, seed: int = 0
) -> tuple[dict[str, str | None], SplitConfig | None]:
    """Returns the splits for training, validation and test, and how those are made that the files lack.

    A missing validation or test split is made from the training split. If that is missing too, all are made from all images.

    Args:
        there: splits of the files.
        val: share of the images for validation.
        test: share of the images for the test; 0 makes none.
        seed: another seed divides the images in another way.

    Returns:
        The values of ``data.train``, ``data.val`` and ``data.test`` of a recipe, and that of ``data.splits``.

    Raises:
        ConfigError: it is not clear which images are for training, or no share is left for validation.
    """
    names = {role: match_split(role, there) for role in MADE}
    pool = names["train"]
    if pool is None and "all" not in there and len(there) != 1:
        raise ConfigError(
            f"the data has the splits {', '.join(there) or 'none'}, and none of them is called train. Name the one with the images for "
            "training: --set data.train=SPLIT, or --set data.splits.of=SPLIT to have val and test made from it."
        )
    if pool is None or len(there) == 1:
        pool, names = None, dict.fromkeys(MADE)
    shares = {"val": 0.0 if names["val"] else val, "test": 0.0 if names["test"] else test}
    if not names["val"] and not val:
        raise ConfigError(f"the data has the splits {', '.join(there)}, so images for validation have to be made: give a share above 0.")
    used: dict[str, str | None] = {role: role if role == "train" or names[role] or shares[role] else None for role in MADE}
    return used, SplitConfig(of=pool, seed=seed, **shares) if any(shares.values()) else None


def divide(
    names: Sequence[str], labels: Sequence[Collection[int]], groups: Sequence[Hashable], shares: Mapping[str, float], seed: int = 0
) -> dict[str, list[str]]:
    """Returns the images of each split, sorted by name. The order of the images in the arguments makes no difference.

    Iterative stratification (Sechidis et al. 2011): the class that fewest groups hold is dealt out first, each group to the split that
    lacks the class or most of its share of it and has room. Then groups of equal size are exchanged as long as that brings a class into a
    split that lacked it, the first one before the others. Sizes are exact if every group has one image; else they differ by less than the
    largest group, unless a split would stay empty.

    Args:
        names: name of each image.
        labels: classes that each image holds.
        groups: group of each image; a group is never divided.
        shares: share of each split, which add up to 1.
        seed: another seed gives other splits.

    Raises:
        DataError: there are fewer groups than splits.
    """
    units = _units(names, labels, groups, seed)
    if len(units) < len(shares):
        alike = "" if len(units) == len(names) else f" {len(units)} groups of near-duplicates (a video of one scene?) of"
        raise DataError(
            f"{' and '.join(shares)} cannot be made of{alike} {len(names)} image{'s' * (len(names) != 1)}: each split needs one that no "
            "other has. Add images, or say yourself in lists or folders which image belongs where."
        )
    hand = _Hand(units, shares, len(names))
    hand.deal()
    hand.exchange()
    return {split: sorted(name for unit in hand.held[split] for name in units[unit].names) for split in shares}


def quotas(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Returns whole numbers of images that add up to ``total``: rounded by the largest remainders, and at least 1 each.

    Args:
        total: number of images, at least that of splits.
        shares: share of each split, which add up to 1.
    """
    exact = {split: share * total for split, share in shares.items()}
    whole = {split: math.floor(value + 1e-9) for split, value in exact.items()}
    for split in sorted(exact, key=lambda split: round(whole[split] - exact[split], 9))[: total - sum(whole.values())]:
        whole[split] += 1
    for split in whole:
        while whole[split] < 1:
            whole[max(whole, key=lambda other: whole[other])] -= 1
            whole[split] += 1
    return whole


@dataclass
class _Unit:
    """A group of near-duplicates, and for each class the number of its images that hold it."""

    names: list[str] = field(default_factory=list)
    images_with: dict[int, int] = field(default_factory=dict)


def _units(names: Sequence[str], labels: Sequence[Collection[int]], groups: Sequence[Hashable], seed: int) -> list[_Unit]:
    """Returns the groups in an order that depends on the seed and the names alone, as any library's shuffle might not."""
    drawn = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
    units: dict[Hashable, _Unit] = {}
    for index in sorted(range(len(names)), key=lambda index: (drawn[index], names[index])):
        unit = units.setdefault(groups[index], _Unit())
        unit.names.append(names[index])
        for label in set(labels[index]):
            unit.images_with[label] = unit.images_with.get(label, 0) + 1
    return list(units.values())


class _Hand:
    """Deals the groups out to the splits.

    Attributes:
        held: Numbers of the groups of each split.
        covered: Number of groups that hold a class, by split and class.
    """

    def __init__(self, units: list[_Unit], shares: Mapping[str, float], images: int):
        self.units = units
        self.shares = shares
        self.room = quotas(images, shares)
        self.held: dict[str, list[int]] = {split: [] for split in shares}
        self.covered: dict[str, dict[int, int]] = {split: {} for split in shares}
        self.holders: dict[int, list[int]] = {}
        for number, unit in enumerate(units):
            for label in unit.images_with:
                self.holders.setdefault(label, []).append(number)
        self.wanted = {split: {label: share * self._images(label) for label in self.holders} for split, share in shares.items()}
        common = {label for label, holders in self.holders.items() if len(holders) >= len(shares)}
        # a class without boxes in training is never learned, so there even the rarest is due
        self.due = {split: set(self.holders) if number == 0 else common for number, split in enumerate(shares)}
        self.worth = {split: _FIRST if number == 0 else 1 for number, split in enumerate(shares)}

    def deal(self) -> None:
        """Gives every group to a split."""
        open_ = set(range(len(self.units)))
        left = {label: len(holders) for label, holders in self.holders.items()}
        queue = [(count, label) for label, count in left.items()]
        heapify(queue)
        while queue:
            count, label = heappop(queue)
            # what has been dealt out with other classes since makes an entry out of date; the newer one is in the queue too
            if count != left.get(label):
                continue
            numbers = [number for number in self.holders[label] if number in open_]
            del left[label]
            for other in self._give(label, numbers, open_, left):
                heappush(queue, (left[other], other))
        self._give(None, sorted(open_), open_, left)

    def _images(self, label: int) -> int:
        return sum(self.units[number].images_with[label] for number in self.holders[label])

    def _give(self, label: int | None, numbers: list[int], open_: set[int], left: dict[int, int]) -> set[int]:
        """Gives groups to splits; returns the other classes that fewer groups are left of now."""
        fewer: set[int] = set()
        for number in sorted(numbers, key=lambda number: (-len(self.units[number].names), number)):
            split = self._best(label, self.units[number], len(open_))
            open_.remove(number)
            self.held[split].append(number)
            self.room[split] -= len(self.units[number].names)
            for other, images in self.units[number].images_with.items():
                self.covered[split][other] = self.covered[split].get(other, 0) + 1
                self.wanted[split][other] -= images
                if other in left:
                    left[other] -= 1
                    fewer.add(other)
        return fewer

    def _best(self, label: int | None, unit: _Unit, open_: int) -> str:
        empty = [split for split, held in self.held.items() if not held]
        fitting = [split for split in self.held if self.room[split] >= len(unit.names)]
        if open_ == len(empty):
            fitting = empty
        if not fitting:
            return max(self.held, key=lambda split: self.room[split])
        if label is None:
            return max(fitting, key=lambda split: self.room[split])

        def merit(split: str) -> tuple[bool, int, float, int]:
            missing = {other for other in unit.images_with if other in self.due[split] and not self.covered[split].get(other)}
            return label in missing, len(missing), round(self.wanted[split][label], 6), self.room[split]

        return max(fitting, key=merit)

    def exchange(self) -> None:
        """Exchanges groups of equal size between two splits as long as that brings classes into splits that lacked them."""
        tried = 0
        place = {number: split for split, held in self.held.items() for number in held}
        again = True
        while again and tried < _TRIED:
            again = False
            for label in sorted(self.holders):
                for split in self.held:
                    lacks = label in self.due[split] and not self.covered[split].get(label)
                    for number in self.holders[label] if lacks else ():
                        size = len(self.units[number].names)
                        for other in [other for other in self.held[split] if len(self.units[other].names) == size]:
                            tried += 1
                            if self._gain(number, place[number], other, split) > 0:
                                self._swap(number, other, place)
                                again = True
                                break
                        if self.covered[split].get(label) or tried >= _TRIED:
                            break

    def _gain(self, number: int, source: str, other: int, target: str) -> int:
        """Returns what an exchange would gain: 1 for each class that comes into a split where it is due, ``_FIRST`` for training."""
        moving, back = self.units[number].images_with.keys(), self.units[other].images_with.keys()
        gain = 0
        for leaving, arriving, origin, goal in ((moving, back, source, target), (back, moving, target, source)):
            for label in leaving - arriving:
                gain += self.worth[goal] * (label in self.due[goal] and self.covered[goal].get(label, 0) == 0)
                gain -= self.worth[origin] * (label in self.due[origin] and self.covered[origin][label] == 1)
        return gain

    def _swap(self, number: int, other: int, place: dict[int, str]) -> None:
        place[number], place[other] = place[other], place[number]
        for moved, before in ((number, place[other]), (other, place[number])):
            self.held[before].remove(moved)
            self.held[place[moved]].append(moved)
            for label in self.units[moved].images_with:
                self.covered[before][label] -= 1
                self.covered[place[moved]][label] = self.covered[place[moved]].get(label, 0) + 1
