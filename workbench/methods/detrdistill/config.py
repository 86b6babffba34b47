"""Defines the switches of DETRDistill. Every difference between paper and released code is one, and a profile sets them all."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from workbench.methods.levels import Feature, feature_needs
from workbench.methods.method import ClassTeachingConfig
from workbench.methods.query_masks import QueryMask
from workbench.methods.selection import QUALITY_GAMMA, Quality, SelectionConfig


class LogitsConfig(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Configures the Hungarian-matching distillation of logits (equations 3 and 4)."""

    split: bool = True
    """Matches teacher queries with an object and those without one separately (paper) instead of all together (released code)."""
    negatives: Literal["box", "class_and_box", "top_k", "off"] = "box"
    """What teacher queries without an object teach. ``box`` teaches the box alone (paper), ``class_and_box`` both (released code),
    ``top_k`` the boxes of the ``k`` queries with the best scores, and ``off`` nothing (write ``"off"``: without quotes YAML reads false).
    """
    negative_cost: Literal["box", "class_and_box"] = "class_and_box"
    """What teacher queries without an object are matched by. ``box`` takes L1 and GIoU alone, because the class of such a query is always
    background (paper, and what the profile ``paper`` sets); ``class_and_box`` takes the cost of the other queries, which a joint matching
    needs.
    """
    k: Annotated[int, Field(ge=1)] = 50
    """Number of queries that ``negatives: top_k`` keeps, which bounds the cost of the matching."""
    weights: tuple[float, float, float] = (1.0, 5.0, 2.0)
    """Weights of the class, L1 and GIoU part of a term (released code; the paper gives none)."""
    layers: Literal["all", "last"] = "all"
    """Which decoder layers of the student are taught. ``all`` teaches every layer, ``last`` the last one alone."""
    clamp_boxes: bool = True
    """Cuts the teacher's boxes to the image before matching and regression (released code; the paper does not say)."""

    @model_validator(mode="after")
    def _joint_keeps_negatives(self) -> "LogitsConfig":
        if not self.split and self.negatives != "class_and_box":
            raise ValueError("a joint matching (split: false) trains class_and_box on every query")
        if not self.split and self.negative_cost != "class_and_box":
            raise ValueError("a joint matching (split: false) has one cost for every query, negative_cost: class_and_box")
        return self


class FeaturesConfig(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Configures the target-aware distillation of features (equations 6 to 9)."""

    feature: Feature = "auto"
    """Which feature maps are compared. ``memory`` is the encoder's output (paper, Fig. 3), ``neck`` is the backbone's levels projected to
    the detector's width (released code), ``backbone`` is the backbone's own output, and ``head`` is what the prediction head reads;
    ``auto`` takes the memory where both detectors have one, the neck where both or neither have queries, and ``head`` otherwise.
    """
    mask: Literal["product", "cosine", "uniform"] = "product"
    """How cells are weighted. ``product`` is equation 9: F Q^T, not normalised, squared and weighted by quality; ``cosine`` is the released
    code: one mixture of cosines over the 100 best pairs of query and class, at least 0.01, divided by its maximum; ``uniform`` counts
    every cell as 1 (FitNet).
    """
    quality: Quality = "paper"
    """How the quality of a teacher query is measured. ``paper`` is score^gamma IoU^(1-gamma) with the matched target, and 0 without one
    (equation 8); ``official_code`` is the score times the largest IoU with any target, and the score alone in images without targets.
    """
    gamma: Annotated[float, Field(ge=0, le=1)] = QUALITY_GAMMA
    """Exponent of the score in equation 8. The paper gives no value."""
    layers: Literal["all", "last"] = "last"
    """Whose queries make the mask. ``all`` takes those of every teacher layer that teaches (released code, whose pair has equal depths: it
    sums the masks of all the teacher's layers, and those that teach are fewer under ``depth: first`` with a deeper teacher). ``last`` takes
    those of the last one (the paper does not say).
    """
    mask_padding: bool = True
    """Leaves padded cells out; the released code counts them."""
    adaptor: Literal["auto", "always"] = "auto"
    """When a 1x1 convolution takes the student's maps to the teacher's width. ``auto`` adds it where widths differ (the paper names no
    layer, and the released pair has equal widths); ``always`` adds it everywhere.
    """

    @property
    def query_mask(self) -> QueryMask:
        """Returns the settings of the mask that weights the cells.

        Raises:
            ValueError: the mask is ``uniform``, which is not made from queries.
        """
        if self.mask == "uniform":
            raise ValueError("a uniform mask is not made from queries")
        return QueryMask(mask=self.mask, quality=self.quality, gamma=self.gamma, mask_padding=self.mask_padding)


class AssignmentConfig(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Configures the query-prior assignment (equation 10): the teacher's queries as an extra group through the student's decoder.

    The group is a second call of the decoder on the student's own memory. The released code runs the encoder a second time for it,
    which gives the same numbers but for another draw of dropout.
    """

    assign_source: Literal["teacher", "student"] = "teacher"
    """Whose matching with the targets the group is trained on. ``teacher`` takes the teacher's own (paper); ``student`` matches the group's
    predictions (released code, where the teacher's matching is computed and then lost).
    """
    reference: Literal["teacher", "student"] = "teacher"
    """Where the group's reference points come from. ``teacher`` takes the teacher's; ``student`` takes the student's own layer on the
    teacher's position embeddings (released code).
    """


class ContrastiveConfig(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Configures the contrastive term between matched queries, which only the released code has; its published weight is 0.2."""

    width: Annotated[int, Field(gt=0)] = 512
    """Channels of the projections that are compared."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the InfoNCE loss."""


PROFILES: dict[str, dict[str, Any]] = {
    "paper": {"logits": {"negative_cost": "box"}, "features": {}, "assignment": {}},
    "official_code": {
        "logits": {"split": False, "negatives": "class_and_box"},
        "features": {"feature": "neck", "mask": "cosine", "quality": "official_code", "layers": "all", "mask_padding": False},
        "assignment": {"assign_source": "student", "reference": "student"},
        "contrastive": {},
        "depth": "first",
    },
}


class DETRDistillConfig(ClassTeachingConfig, frozen=True):
    """Configures DETRDistill, which distils predictions, target-aware features and the matching of the teacher's queries."""

    published_weights = {"contrastive": 0.2}  # noqa: RUF012
    alone = {  # noqa: RUF012
        "features": {"logits": None, "assignment": None},
        "unmasked features": {"logits": None, "assignment": None, "features": {"mask": "uniform"}},
    }

    method: Literal["detrdistill"] = "detrdistill"
    """Selects the method."""
    profile: Literal["paper", "official_code"] = "paper"
    """Sets every switch that is not given. ``paper`` follows the equations as printed, ``official_code`` the released code."""
    logits: LogitsConfig | None = LogitsConfig()
    """Distillation of class and box predictions. Null leaves it out."""
    features: FeaturesConfig | None = FeaturesConfig()
    """Distillation of feature maps. Null leaves it out."""
    assignment: AssignmentConfig | None = AssignmentConfig()
    """Training of the teacher's queries in the student's decoder. Null leaves it out."""
    contrastive: ContrastiveConfig | None = None
    """Contrastive term between matched queries, which needs ``logits``. Null leaves it out."""
    selection: SelectionConfig = SelectionConfig()
    """Which of the teacher's queries teach, in every part."""
    depth: Literal["groups", "first"] = "groups"
    """Which teacher layers teach a student layer. ``groups`` follows the layer map of the run (paper, Fig. 5); ``first`` takes the teacher
    layer of the same index (released code). With a deeper teacher, ``first`` leaves the later layers out of every part, the masks
    included; the released code would sum masks over all of them, but its contrastive term fails on such a pair.
    """
    depth_reduce: Literal["mean", "sum"] = "mean"
    """How the terms of several teacher layers of one student layer are combined. ``mean`` averages them, ``sum`` adds them up (the paper
    does not say).
    """

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for key, defaults in PROFILES.get(str(values.get("profile", "paper")), {}).items():
            given = values.get(key, {} if isinstance(defaults, dict) else defaults)
            if isinstance(given, dict) and (given.get("split") is False or given.get("negatives") == "off"):
                # no negatives are matched by themselves, so the profile has nothing to say about their cost
                defaults = {name: value for name, value in defaults.items() if name != "negative_cost"}
            filled[key] = {**defaults, **given} if isinstance(given, dict) and isinstance(defaults, dict) else given
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> "DETRDistillConfig":
        if self.logits is None and self.features is None and self.assignment is None:
            raise ValueError("logits, features and assignment are all null, so there is nothing to distil")
        if self.contrastive is not None and self.logits is None:
            raise ValueError("contrastive compares the pairs of the logits part, so it needs logits")
        return self

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        names: list[str] = []
        if self.logits is not None:
            names += ["logits_positive"] if self.logits.split else ["logits"]
            if self.logits.split and self.logits.negatives != "off":
                names.append("logits_negative")
        names += ["contrastive"] if self.contrastive is not None else []
        names += ["features"] if self.features is not None else []
        names += ["assignment"] if self.assignment is not None else []
        return tuple(names)

    @property
    def needs(self) -> frozenset[str]:
        """See ``BaseMethodConfig``."""
        needs = {"queries"} if self.logits is not None or self.assignment is not None else set()
        if self.features is not None:
            needs.add(feature_needs(self.features.feature))
        if self.contrastive is not None:
            needs.add("states")
        return frozenset(needs)

    @property
    def needs_student(self) -> frozenset[str]:
        """See ``BaseMethodConfig``. The teacher's queries pass through the student's decoder, not the teacher's."""
        if self.assignment is None:
            return self.needs
        own = {"reference_from_position"} if self.assignment.reference == "student" else set()
        return self.needs | {"decode"} | own

    @property
    def needs_teacher(self) -> frozenset[str]:
        """See ``BaseMethodConfig``. Masks are made from the teacher's queries alone, and a rule other than ``all`` chooses among them."""
        masked = self.features is not None and self.features.mask != "uniform"
        chooses = {"queries"} if self.selection.rule != "all" else set()
        return self.needs | ({"queries", "states"} if masked else set()) | chooses

    @property
    def needs_all_classes(self) -> bool:
        """See ``BaseMethodConfig``. The queries that pass through the student's decoder are trained on targets alone."""
        masked = self.features is not None and self.features.mask != "uniform"
        return self.logits is not None or masked or self.selection.rule in ("top_k", "lowest_k", "threshold")

    @property
    def teaches_classes(self) -> bool:
        """See ``ClassTeachingConfig``."""
        return self.logits is not None
