"""Switches of DETRDistill: every difference between the paper and the released code is one of them, and a profile sets them all."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from workbench.methods.levels import Feature, feature_needs
from workbench.methods.method import ClassTeachingConfig
from workbench.methods.query_masks import QueryMask
from workbench.methods.selection import QUALITY_GAMMA, Quality, SelectionConfig


class LogitsConfig(BaseModel, extra="forbid", frozen=True):
    """Hungarian-matching logits distillation (equations 3 and 4).

    Attributes:
        split: match teacher queries with an object and the others apart (paper) or all together (released code).
        negatives: what teacher queries without an object teach: box only (paper), class and box (released code), the box of the
            ``k`` with the best scores, which bounds the matching, or nothing.
        k: of ``negatives: top_k``.
        weights: of class, L1 and GIoU (released code; the paper gives none).
        layers: all student layers, or the last only.
        clamp_boxes: cut teacher boxes to the image before matching and regression (released code; the paper does not say).
    """

    split: bool = True
    negatives: Literal["box", "class_and_box", "top_k", "off"] = "box"
    k: Annotated[int, Field(ge=1)] = 50
    weights: tuple[float, float, float] = (1.0, 5.0, 2.0)
    layers: Literal["all", "last"] = "all"
    clamp_boxes: bool = True

    @model_validator(mode="after")
    def _joint_keeps_negatives(self) -> "LogitsConfig":
        if not self.split and self.negatives != "class_and_box":
            raise ValueError("a joint matching (split: false) trains class_and_box on every query")
        return self


class FeaturesConfig(BaseModel, extra="forbid", frozen=True):
    """Target-aware feature distillation (equations 6 to 9).

    Attributes:
        feature: memory (encoder output; paper, Fig. 3), neck (released code), or auto: memory where both have it, else neck.
        mask: product: equation 9, un-normalised F Q^T squared, weighted by quality; cosine: released code, one mixture of cosines over
            the 100 best (query, class) pairs, floor 0.01, divided by its maximum; uniform: every cell counts 1 (FitNet).
        quality: paper: score^gamma IoU^(1-gamma) with the matched target, 0 if unmatched (equation 8); official_code: score times
            the largest IoU with any target, the score alone where there is none.
        gamma: of equation 8; the paper gives no value.
        layers: teacher layers whose queries make the mask: all taught ones (released code), or the last (the paper does not say).
        mask_padding: leave padded cells out (the released code counts them).
        adaptor: auto: a 1x1 convolution where widths differ (the paper names no layer; the released pair has equal widths);
            always: a convolution even where they are equal.
    """

    feature: Feature = "auto"
    mask: Literal["product", "cosine", "uniform"] = "product"
    quality: Quality = "paper"
    gamma: Annotated[float, Field(ge=0, le=1)] = QUALITY_GAMMA
    layers: Literal["all", "last"] = "last"
    mask_padding: bool = True
    adaptor: Literal["auto", "always"] = "auto"

    @property
    def query_mask(self) -> QueryMask:
        """Settings of the mask that weights the cells.

        Raises:
            ValueError: the mask is uniform, so there is none.
        """
        if self.mask == "uniform":
            raise ValueError("a uniform mask is made of no queries")
        return QueryMask(mask=self.mask, quality=self.quality, gamma=self.gamma, mask_padding=self.mask_padding)


class AssignmentConfig(BaseModel, extra="forbid", frozen=True):
    """Query-prior assignment distillation (equation 10): the teacher's queries as an extra group through the student's decoder.

    The group is a second call of the decoder on the student's own memory. The released code runs the encoder a second time for it,
    which gives the same numbers but for another draw of dropout.

    Attributes:
        assign_source: whose matching with the targets the group is trained on: the teacher's own (paper), or the student's of the
            group (released code, where the teacher's matching is computed and then lost).
        reference: where the group's reference points come from: the teacher's, or the student's own layer on the teacher's position
            embeddings (released code).
    """

    assign_source: Literal["teacher", "student"] = "teacher"
    reference: Literal["teacher", "student"] = "teacher"


class ContrastiveConfig(BaseModel, extra="forbid", frozen=True):
    """Contrastive term between matched queries, which only the released code has; its published weight is 0.2.

    Attributes:
        width: of the projections.
        temperature: of the InfoNCE loss.
    """

    width: Annotated[int, Field(gt=0)] = 512
    temperature: Annotated[float, Field(gt=0)] = 0.07


PROFILES: dict[str, dict[str, Any]] = {
    "paper": {"logits": {}, "features": {}, "assignment": {}},
    "official_code": {
        "logits": {"split": False, "negatives": "class_and_box"},
        "features": {"feature": "neck", "mask": "cosine", "quality": "official_code", "layers": "all", "mask_padding": False},
        "assignment": {"assign_source": "student", "reference": "student"},
        "contrastive": {},
        "depth": "first",
    },
}


class DETRDistillConfig(ClassTeachingConfig, frozen=True):
    """Switches of DETRDistill; ``logits: null``, ``features: null`` or ``assignment: null`` leaves a part out.

    Attributes:
        profile: sets every switch that is not given: the equations as printed, or the released code.
        selection: which teacher queries teach, in every part.
        depth: which teacher layers teach a student layer: groups: the run's layer map, r teacher layers each (paper, Fig. 5); first:
            the teacher layer of the same index (released code).
        depth_reduce: how the teacher layers of one student layer add up (the paper does not say).
    """

    published_weights = {"contrastive": 0.2}  # noqa: RUF012

    method: Literal["detrdistill"] = "detrdistill"
    profile: Literal["paper", "official_code"] = "paper"
    logits: LogitsConfig | None = LogitsConfig()
    features: FeaturesConfig | None = FeaturesConfig()
    assignment: AssignmentConfig | None = AssignmentConfig()
    contrastive: ContrastiveConfig | None = None
    selection: SelectionConfig = SelectionConfig()
    depth: Literal["groups", "first"] = "groups"
    depth_reduce: Literal["mean", "sum"] = "mean"

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for key, defaults in PROFILES.get(values.get("profile", "paper"), {}).items():
            given = values.get(key, {} if isinstance(defaults, dict) else defaults)
            filled[key] = {**defaults, **given} if isinstance(given, dict) and isinstance(defaults, dict) else given
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> "DETRDistillConfig":
        if self.logits is None and self.features is None and self.assignment is None:
            raise ValueError("logits, features and assignment are all null: nothing to distil")
        if self.contrastive is not None and self.logits is None:
            raise ValueError("contrastive compares the pairs of the logits part; it needs logits")
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
        needs: set[str] = set()
        if self.features is not None:
            needs |= {feature_needs(self.features.feature)} | ({"states"} if self.features.mask != "uniform" else set())
        if self.contrastive is not None:
            needs.add("states")
        return frozenset(needs)

    @property
    def needs_student(self) -> frozenset[str]:
        """See ``BaseMethodConfig``; the teacher's queries pass through the student's decoder, not the teacher's."""
        if self.assignment is None:
            return self.needs
        own = {"reference_from_position"} if self.assignment.reference == "student" else set()
        return self.needs | {"decode"} | own

    @property
    def needs_all_classes(self) -> bool:
        """See ``BaseMethodConfig``; the queries that pass through the student's decoder are trained on targets alone."""
        masked = self.features is not None and self.features.mask != "uniform"
        return self.logits is not None or masked or self.selection.rule in ("top_k", "lowest_k", "threshold")

    @property
    def teaches_classes(self) -> bool:
        """See ``ClassTeachingConfig``."""
        return self.logits is not None
