"""Switches of CLoCKDistill; each thing that no source states is one of them."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from workbench.methods.levels import Feature, feature_needs
from workbench.methods.method import ClassTeachingConfig


class MemoryConfig(BaseModel, extra="forbid", frozen=True):
    """Location-and-context-aware memory distillation (section 3.1).

    Attributes:
        feature: memory (the paper); auto: memory where both have it, else neck.
        channel_reduce: how squared errors of a cell add up over channels. A second-hand source averages; with the sum the published
            weights have the size of FGD's.
        batch_reduce: over images; not stated, FGD divides by their number.
        adaptor: a 1x1 convolution where widths differ, or always.
    """

    feature: Feature = "auto"
    channel_reduce: Literal["sum", "mean"] = "sum"
    batch_reduce: Literal["mean", "sum"] = "mean"
    adaptor: Literal["auto", "always"] = "auto"


class LogitsConfig(BaseModel, extra="forbid", frozen=True):
    """Target-aware consistent logit distillation (section 3.2).

    Attributes:
        weights: of class, L1 and GIoU.
        kl_form: bernoulli: K divergences of the head as it is (one of the whole distribution where both heads are softmax); softmax:
            over the classes' logits, whatever the head.
        kl_temperature: logits are divided by it, the divergence multiplied by its square.
        norm: sum_w: by the sum of the teacher's confidences; count: by the number of targets.
        layers: all student layers, or the last only.
        box_noise: targets are moved by up to this share of half their sides and scaled by up to this share (DN-DETR's noise).
        seed: of the noise and of the table of contents.
    """

    weights: tuple[float, float, float] = (1.0, 5.0, 2.0)
    kl_form: Literal["bernoulli", "softmax"] = "bernoulli"
    kl_temperature: Annotated[float, Field(gt=0)] = 1.0
    norm: Literal["sum_w", "count"] = "sum_w"
    layers: Literal["all", "last"] = "all"
    box_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0)] = 0


class CLoCKDistillConfig(ClassTeachingConfig, frozen=True):
    """Switches of CLoCKDistill; ``memory: null`` or ``logits: null`` leaves a part out."""

    published_weights = {"memory_foreground": 5e-5, "memory_background": 1e-7}  # noqa: RUF012

    method: Literal["clockdistill"] = "clockdistill"
    memory: MemoryConfig | None = MemoryConfig()
    logits: LogitsConfig | None = LogitsConfig()

    @model_validator(mode="after")
    def _something(self) -> "CLoCKDistillConfig":
        if self.memory is None and self.logits is None:
            raise ValueError("memory and logits are both null: nothing to distil")
        return self

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        memory = ("memory_foreground", "memory_background") if self.memory is not None else ()
        return (*memory, "logits") if self.logits is not None else memory

    @property
    def needs(self) -> frozenset[str]:
        """See ``BaseMethodConfig``; the same queries go through both decoders."""
        needs = {feature_needs(self.memory.feature)} if self.memory is not None else set()
        return frozenset(needs | ({"decode"} if self.logits is not None else set()))

    @property
    def needs_all_classes(self) -> bool:
        """See ``BaseMethodConfig``; the memory part reads no class score."""
        return self.logits is not None

    @property
    def teaches_classes(self) -> bool:
        """See ``ClassTeachingConfig``; over the classes' logits alone no-object is not compared."""
        return self.logits is not None and self.logits.kl_form == "bernoulli"
