"""Names the formulas of DetKDS: what a point of the search space is, which are known by name, and where one cannot work."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

Mode = Literal["official", "corrected"]
Input = Literal["global", "foreground", "instance", "logits", "localization"]
First = Literal["no", "satt", "natt", "catt", "mask"]
Second = Literal["no", "scale_r1", "scale_r2", "multi_scale_r4", "local_s1", "local_s2", "local_s4", "scale"]
Third = Literal[
    "no", "batch", "channel", "norm_HW", "norm_C", "norm_N", "softmax_N", "softmax_C", "softmax_HW", "logsoftmax_N", "logsoftmax_C",
    "logsoftmax_HW", "min_max_normalize", "batchnorm", "pow2",
]  # fmt: skip
Distance = Literal["l1", "l2", "kl", "smooth_l1", "cos", "pear", "cor", "ssim", "iou", "giou"]
BoxTransform = Literal["no", "norm_N", "norm_C", "norm_HW", "pow2"]
BoxDistance = Literal["l1", "kl", "iou", "giou"]

INPUTS: tuple[Input, ...] = get_args(Input)
FEATURES: tuple[Input, ...] = ("global", "foreground", "instance")
ADDED = frozenset({"pow2", "ssim", "iou", "giou"})
"""Entries that the released tables lack."""
EXTRA: Mapping[Input, tuple[str, ...]] = {
    "global": ("pow2", "ssim"), "foreground": ("pow2", "ssim"), "instance": ("pow2", "ssim"), "logits": ("pow2",), "localization": ("no",),
}  # fmt: skip
"""Entries that a plan may add to the formulas of an input; those of the paper's figure are there without."""
LOCAL = frozenset({"local_s1", "local_s2", "local_s4"})
BATCH_AXIS = frozenset({"natt", "norm_N", "softmax_N", "logsoftmax_N"})
"""Transformations over the first axis, which is constant if it holds one row."""
CHANNEL_AXIS = frozenset({"norm_C", "softmax_C", "logsoftmax_C"})
FLATTENING = frozenset({"batch", "channel", "softmax_HW", "logsoftmax_HW"})
"""Transformations behind which there are no maps any more."""


@dataclass(frozen=True)
class Genotype:
    """One formula of the search: the same chain on student and teacher, ``z = t3(t2(t1(x)))``, then a distance.

    Example:
        >>> str(Genotype("global", "catt", "scale_r2", "norm_N", "l1"))
        'global: catt > scale_r2 > norm_N, l1'

    Attributes:
        input: What is compared.
        t1: First transformation: attention or a random mask. Logits and boxes have none.
        t2: Second transformation: scale or patches. Logits and boxes have none.
        t3: Third transformation: shape or normalisation.
        distance: How the two results are compared.
    """

    input: Input
    t1: First = "no"
    t2: Second = "no"
    t3: Third = "no"
    distance: Distance = "l2"

    def __str__(self) -> str:
        chain = f"{self.t1} > {self.t2} > {self.t3}" if self.input in FEATURES else self.t3
        return f"{self.input}: {chain}, {self.distance}"

    @property
    def genes(self) -> tuple[str, str, str, str]:
        """Returns the choice at each of the four positions."""
        return self.t1, self.t2, self.t3, self.distance

    @property
    def least_rows(self) -> int:
        """Returns the shortest first axis with which the formula has a gradient: images, or boxes where boxes are the rows.

        With two rows every correlation and every standardised value is 1 or -1, whatever the values are.
        """
        if self.distance == "cor" or (self.t2, self.t3) == ("local_s1", "batchnorm"):
            return 3
        names_rows = self.distance == "kl" and self.t3 == "norm_N"
        return 2 if names_rows or BATCH_AXIS & {self.t1, self.t3} else 1


NAMED: Mapping[str, Genotype] = {
    "released_global": Genotype("global", "catt", "scale_r2", "norm_N", "l1"),
    "released_foreground_retinanet": Genotype("foreground", "no", "local_s4", "norm_HW", "l1"),
    "released_foreground_fcos": Genotype("foreground", "mask", "scale_r1", "norm_C", "l1"),
    "released_instance_retinanet": Genotype("instance", "catt", "scale_r1", "norm_C", "l1"),
    "released_instance_faster_rcnn": Genotype("instance", "mask", "scale_r1", "norm_C", "pear"),
    "released_logits_faster_rcnn": Genotype("logits", t3="softmax_C", distance="pear"),
    "fitnet": Genotype("global", distance="l2"),
    "cwd": Genotype("global", t3="softmax_HW", distance="kl"),
    "pkd": Genotype("global", t3="batchnorm", distance="l2"),
    "fgd_like": Genotype("foreground", t1="satt", distance="l2"),
    "mgd_like": Genotype("global", t1="mask", distance="l2"),
}
"""Formulas that a search may start from: those of the released configurations, and methods made by hand, which are points of the space
(in corrected mode ``fitnet`` and ``cwd`` are those methods, ``pkd`` is twice PKD) or lie near one. FGD also weights channels and adds
relations; MGD also has a generator."""


Added = bool | Collection[str]
"""Which entries a space has that the released tables and the paper's figure lack: all, none, or those of some names."""


def genotypes(input: Input, added: Added = False) -> Iterator[Genotype]:
    """Yields the formulas of an input: 5 x 8 x 14 x 7 for features, 14 x 7 for logits, 4 x 4 for localization.

    Args:
        input: what is compared.
        added: see ``Added``.
    """
    names = EXTRA[input] if added is True else added or ()
    if input == "localization":
        for t3, distance in product(get_args(BoxTransform), get_args(BoxDistance)):
            if t3 != "no" or t3 in names:
                yield Genotype(input, t3=t3, distance=distance)
        return
    feature = input in FEATURES
    firsts: tuple[First, ...] = get_args(First) if feature else ("no",)
    seconds: tuple[Second, ...] = get_args(Second) if feature else ("no",)
    thirds: list[Third] = [name for name in get_args(Third) if name not in ADDED or (name in EXTRA[input] and name in names)]
    distances: list[Distance] = [name for name in get_args(Distance) if name not in ADDED or (name in EXTRA[input] and name in names)]
    for genes in product(firsts, seconds, thirds, distances):
        yield Genotype(input, *genes)


def refusal(genotype: Genotype, mode: Mode, rows: int | None = None, channels: int | None = None) -> str | None:
    """Returns why a formula cannot work, as the end of a sentence; None if it can.

    Args:
        genotype: the formula.
        mode: ``official`` computes as the released code does.
        rows: length of the first axis: images in a batch of one process. None if it is not known, as for the boxes of a batch.
        channels: length of the second axis, such as the classes that logits are compared over; None if it is large.
    """
    return _of_mode(genotype, mode) or _of_kind(genotype) or _of_size(genotype, rows, channels)


def _of_mode(genotype: Genotype, mode: Mode) -> str | None:
    """Says what the released code cannot do."""
    if mode == "corrected":
        return None
    if genotype.input == "localization":
        return "the released code takes the boxes and ignores them"
    if added := ADDED & set(genotype.genes):
        return f"the released tables have no {', '.join(sorted(added))}"
    if genotype.input == "instance":
        if genotype.t2 in LOCAL:
            return f"the released code pools the boxes behind the chain, and {genotype.t2} has cut the map into patches"
        if genotype.t3 in FLATTENING:
            return f"the released code pools the boxes behind the chain, and {genotype.t3} leaves no map to pool from"
    return None


def _of_kind(genotype: Genotype) -> str | None:
    """Says where chain and distance do not fit."""
    if genotype.distance == "ssim" and genotype.input not in FEATURES:
        return "ssim compares maps, and there are none"
    if genotype.distance == "ssim" and genotype.t3 in FLATTENING:
        return f"ssim compares maps, and {genotype.t3} leaves none"
    if genotype.distance in ("iou", "giou"):
        if genotype.input != "localization":
            return f"{genotype.distance} compares boxes"
        if genotype.t3 == "norm_N":
            return f"{genotype.distance} compares boxes, and norm_N divides the corners of a box by different numbers"
    return None


def _of_size(genotype: Genotype, rows: int | None, channels: int | None) -> str | None:
    """Says which axis is too short."""
    if rows is not None and rows < genotype.least_rows:
        over = [name for name in genotype.genes if name in BATCH_AXIS | {"cor", "batchnorm"}] or [genotype.distance]
        return f"{', '.join(over)} needs a batch of {genotype.least_rows} images or more, and this one has {rows}"
    if channels is not None and genotype.t3 != "batch":
        axis = genotype.distance in ("cos", "pear") or genotype.t3 in CHANNEL_AXIS or (genotype.distance == "kl" and genotype.t3 == "no")
        least = 3 if genotype.distance == "pear" else 2 if axis else 1
        if channels < least:
            return f"it compares along an axis of {least} classes or more, and this detector has {channels}"
    return None
