"""Defines the switches of DetKDS: one formula for each input that is compared, and how it is computed."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, model_validator

from workbench.methods.detkds.genotype import (
    FEATURES,
    INPUTS,
    BoxDistance,
    BoxTransform,
    First,
    Genotype,
    Input,
    Mode,
    Second,
    Third,
    refusal,
)
from workbench.methods.levels import Feature, feature_needs
from workbench.methods.method import BaseMethodConfig, NotNegative

RESPONSES = "queries|rois"


class _Formula(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Holds what the formulas of all inputs have."""

    weight: NotNegative = 1.0
    """Weight of the formula's term (gamma). ``background`` has half of it. ``balance`` takes its place."""

    @model_validator(mode="before")
    @classmethod
    def _no_without_quotes(cls, values: Any) -> Any:
        """Reads ``t1: no``, which YAML takes for false, as the transformation of that name."""
        return {key: "no" if value is False else value for key, value in values.items()} if isinstance(values, dict) else values


class FeatureFormula(_Formula, frozen=True):
    """Configures how feature maps are compared: ``z = t3(t2(t1(x)))`` of both sides, then a distance."""

    t1: First = "no"
    """Attention or mask: over cells (``satt``), channels (``catt``) or the batch (``natt``); ``mask`` keeps 35 % of the cells."""
    t2: Second = "no"
    """Scale: maximum of 2x2 (``scale_r2``) or 4x4 cells (``multi_scale_r4``), patches of 1, 2 or 4 cells as channels (``local_s...``), or
    (x + 1) / 2 (``scale``).
    """
    t3: Third = "no"
    """Shape or normalisation: flattening (``batch``, ``channel``), norm, softmax or its logarithm over N, C or HW, ``min_max_normalize``,
    ``batchnorm``, or the square (``pow2``).
    """
    distance: Literal["l1", "l2", "kl", "smooth_l1", "cos", "pear", "cor", "ssim"] = "l2"
    """Distance between the two results. ``cos`` and ``pear`` are over channels and ``cor`` over the images of a batch."""


class LogitsFormula(_Formula, frozen=True):
    """Configures how class probabilities are compared."""

    t3: Third = "no"
    """Shape or normalisation, see the formulas of features. C stands for the classes, HW for cells or matched queries."""
    distance: Literal["l1", "l2", "kl", "smooth_l1", "cos", "pear", "cor"] = "l2"
    """Distance between the two results, see the formulas of features."""


class BoxFormula(_Formula, frozen=True):
    """Configures how boxes are compared, as corners in 0..1 and weighted by the teacher's best class score."""

    t3: BoxTransform = "no"
    """Normalisation of the corners. N stands for the boxes of the batch, C for the four numbers of a box; ``norm_HW`` changes nothing."""
    distance: BoxDistance = "l1"
    """Distance between the two results; ``iou`` and ``giou`` are one minus the overlap."""


class DetKDSConfig(BaseMethodConfig, frozen=True):
    """Configures DetKDS, which compares up to five inputs of student and teacher, each by a formula of its own.

    The defaults are the formulas of the released distiller of FCOS (lliai/DetKDS@a7d2127,
    configs/distillers/detkds/fcos_r101_distill_fcos_r50_2x_coco.py).
    """

    method: Literal["detkds"] = "detkds"
    """Selects the method."""
    mode: Mode = "corrected"
    """How formulas are computed. ``official`` does what the released code does, faults included; ``corrected`` makes every distance
    smallest where student and teacher are equal, leaves padding out and draws one mask for both sides.
    """
    feature: Feature = "auto"
    """Which feature maps are compared: ``memory``, ``neck``, ``backbone``, or what the ``head`` reads. ``auto`` takes the memory where both
    detectors have one, the neck where both or neither have queries, and ``head`` otherwise.
    """
    global_: FeatureFormula | None = FeatureFormula(t1="catt", t2="scale_r2", t3="norm_N", distance="l1", weight=5.0)
    """Formula of the whole feature maps (input ``global``). Null leaves them out."""
    foreground: FeatureFormula | None = FeatureFormula(t1="mask", t2="scale_r1", t3="norm_C", distance="l1", weight=2.0)
    """Formula of the maps weighted inside the targets, and once more outside of them. Null leaves both out."""
    instance: FeatureFormula | None = None
    """Formula of the maps pooled in each target's box to 14 x 14 cells. Null leaves them out."""
    logits: LogitsFormula | None = None
    """Formula of the class probabilities of cells, of a two-stage detector (``logits_of``), or of paired queries. Null leaves them out."""
    logits_of: Literal["first_stage", "teacher_proposals", "student_proposals"] = "first_stage"
    """Which class probabilities of two two-stage detectors are compared. ``first_stage`` takes those of objects in the cells, as the
    released code does. The others take what both second stages say of the same boxes: the teacher's proposals, which a cache can keep, or
    the proposals that the student learns from in the step, which need the live teacher.
    """
    localization: BoxFormula | None = None
    """Formula of the predicted boxes, of which the released code has none. Null leaves them out."""
    correspondence: Literal["match", "teacher_queries"] = "match"
    """Which queries of two DETRs are compared. ``match`` matches those of the student with those of the teacher (Hungarian);
    ``teacher_queries`` sends the teacher's through the student's decoder too.
    """
    layers: Literal["all", "last"] = "last"
    """Which decoder layers of the student are compared: the ``last`` one, or ``all``, summed."""

    @model_validator(mode="after")
    def _formulas_work(self) -> "DetKDSConfig":
        if self.logits is None and self.logits_of != "first_stage":
            raise ValueError(f"logits_of: {self.logits_of} has no formula; give logits")
        if not self.formulas:
            raise ValueError(f"no input has a formula; give one of {', '.join(map(field_of, INPUTS))}")
        for input, genotype in self.genotypes.items():
            reason = refusal(genotype, self.mode)
            if (input, self.mode) == ("foreground", "official") and genotype.distance != "l1":
                reason = "the released code compares foreground and background with l1, whatever is configured"
            if reason is not None:
                raise ValueError(f"{field_of(input)}: {genotype} cannot work in mode {self.mode}: {reason}")
        return self

    @classmethod
    def of(cls, formulas: Mapping[Genotype, float], **settings: Any) -> "DetKDSConfig":
        """Returns the configuration with these formulas and their weights, at most one for each input, and no other input.

        Args:
            formulas: weight of each formula.
            settings: other fields.
        """
        parts: dict[str, Any] = {field_of(input): None for input in INPUTS}
        for genotype, weight in formulas.items():
            genes = {"t1": genotype.t1, "t2": genotype.t2} if genotype.input in FEATURES else {}
            parts[field_of(genotype.input)] = {**genes, "t3": genotype.t3, "distance": genotype.distance, "weight": weight}
        return cls.model_validate(settings | parts)

    @property
    def formulas(self) -> dict[Input, FeatureFormula | LogitsFormula | BoxFormula]:
        """Returns the formulas that are configured, by input."""
        return {input: part for input in INPUTS if (part := getattr(self, field_of(input))) is not None}

    @property
    def genotypes(self) -> dict[Input, Genotype]:
        """Returns the formulas that are configured as points of the search space, by input."""
        return {input: Genotype(input, **part.model_dump(exclude={"weight"})) for input, part in self.formulas.items()}

    @property
    def published_weight(self) -> dict[str, float]:
        """Returns the weight of each term as its formula states it."""
        weights: dict[str, float] = {}
        for input, part in self.formulas.items():
            weights[input] = part.weight
            if input == "foreground":
                weights["background"] = part.weight / 2
        return weights

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return tuple(self.published_weight)

    @property
    def reads_features(self) -> bool:
        """True if an input is made from feature maps."""
        return any(input in FEATURES for input in self.formulas)

    @property
    def reads_responses(self) -> bool:
        """True if class scores or boxes are compared."""
        return self.logits is not None or self.localization is not None

    @property
    def needs(self) -> frozenset[str]:
        """See ``BaseMethodConfig``. Class scores and boxes are compared between detectors of one kind."""
        needs = {feature_needs(self.feature)} if self.reads_features else set[str]()
        # boxes count by the class scores
        needs |= {f"dense_logits|{RESPONSES}"} if self.reads_responses and not self._proposals_alone else set()
        needs |= {"rois"} if self.shares_proposals else set()
        return frozenset(needs | ({f"dense_boxes|{RESPONSES}"} if self.localization is not None else set()))

    @property
    def needs_student(self) -> frozenset[str]:
        """See ``BaseMethodConfig``."""
        return self.needs | ({"decode"} if self.sends_queries else frozenset())

    @property
    def shares_proposals(self) -> bool:
        """True if both second stages are asked about the same boxes."""
        return self.logits is not None and self.logits_of != "first_stage"

    @property
    def _proposals_alone(self) -> bool:
        return self.shares_proposals and self.localization is None

    @property
    def asks_teacher(self) -> str:
        """See ``BaseMethodConfig``."""
        own = self.shares_proposals and self.logits_of == "student_proposals"
        return "asks the teacher about the student's own proposals (logits_of: student_proposals)" if own else ""

    @property
    def sends_queries(self) -> bool:
        """True if the teacher's queries go through the student's decoder."""
        return self.reads_responses and self.correspondence == "teacher_queries"

    @property
    def needs_all_classes(self) -> bool:
        """See ``BaseMethodConfig``. Boxes read the best class score alone."""
        return self.logits is not None

    @property
    def least_images(self) -> int:
        """See ``BaseMethodConfig``. Where boxes are the rows, a batch without enough of them leaves the term out."""
        return max((g.least_rows for input, g in self.genotypes.items() if input not in ("instance", "localization")), default=1)


def field_of(input: Input) -> str:
    """Returns the field of an input's formula; ``global`` is a word of the language."""
    return "global_" if input == "global" else input
