"""Defines the switches of CLoCKDistill. Every choice that no source states is one of them."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from workbench.methods.levels import Feature, feature_needs
from workbench.methods.method import ClassTeachingConfig


class MemoryConfig(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Configures the location-and-context-aware distillation of the memory (section 3.1)."""

    feature: Feature = "auto"
    """Which feature maps are compared. ``memory`` is the encoder's output (paper), ``neck`` is the backbone's levels projected to the
    detector's width, ``backbone`` is the backbone's own output, and ``head`` is what the prediction head reads; ``auto`` takes the
    memory where both detectors have one, the neck where both or neither have queries, and ``head`` otherwise.
    """
    channel_reduce: Literal["sum", "mean"] = "sum"
    """How the squared errors of a cell are combined over channels. ``mean`` is what a second-hand source does; ``sum`` gives the published
    weights the size of FGD's.
    """
    batch_reduce: Literal["mean", "sum"] = "mean"
    """How the errors are combined over images. ``mean`` averages them, as FGD does; ``sum`` adds them up. The paper does not say."""
    adaptor: Literal["auto", "always"] = "auto"
    """When a 1x1 convolution takes the student's maps to the teacher's width. ``auto`` adds it where widths differ, ``always`` adds it
    everywhere.
    """
    position_embedding: bool = False
    """Adds the sine embedding of a target's box to both maps in the cells of that target, and standardises the channels of every cell,
    before the maps are compared. It is our reading of a component of which no more than the name is known.
    """


class LogitsConfig(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Configures the target-aware consistent distillation of logits (section 3.2)."""

    weights: tuple[float, float, float] = (1.0, 5.0, 2.0)
    """Weights of the class, L1 and GIoU part of the loss."""
    kl_form: Literal["bernoulli", "softmax"] = "bernoulli"
    """Form of the class divergence. ``bernoulli`` compares what the head predicts: one divergence per class, or one of the whole
    distribution where both heads have a no-object class; ``softmax`` compares distributions over the classes' logits, whatever the head.
    """
    kl_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature that logits are divided by. The divergence is multiplied by its square."""
    norm: Literal["sum_w", "count"] = "sum_w"
    """What the sum over targets is divided by. ``sum_w`` is the sum of the teacher's confidences, ``count`` is the number of targets."""
    layers: Literal["all", "last"] = "all"
    """Which decoder layers of the student are taught. ``all`` teaches every layer, ``last`` the last one alone."""
    box_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of the noise on the targets' boxes (DN-DETR's). A box moves by up to this share of half its sides and is scaled by up to
    this share.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the box noise and of the table of query contents."""


class CLoCKDistillConfig(ClassTeachingConfig, frozen=True):
    """Configures CLoCKDistill, which distils the encoder's memory around the targets, and the answers to queries made from targets."""

    published_weights = {"memory_foreground": 5e-5, "memory_background": 1e-7}  # noqa: RUF012
    alone = {"memory": {"logits": None}}  # noqa: RUF012

    method: Literal["clockdistill"] = "clockdistill"
    """Selects the method."""
    memory: MemoryConfig | None = MemoryConfig()
    """Distillation of the memory. Null leaves it out."""
    logits: LogitsConfig | None = LogitsConfig()
    """Distillation of the logits. Null leaves it out."""

    @model_validator(mode="after")
    def _something(self) -> "CLoCKDistillConfig":
        if self.memory is None and self.logits is None:
            raise ValueError("memory and logits are both null, so there is nothing to distil")
        return self

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        memory = ("memory_foreground", "memory_background") if self.memory is not None else ()
        return (*memory, "logits") if self.logits is not None else memory

    @property
    def needs(self) -> frozenset[str]:
        """See ``BaseMethodConfig``. The same queries go through both decoders."""
        needs = {feature_needs(self.memory.feature)} if self.memory is not None else set()
        return frozenset(needs | ({"queries", "decode"} if self.logits is not None else set()))

    @property
    def needs_all_classes(self) -> bool:
        """See ``BaseMethodConfig``. The memory part reads no class score."""
        return self.logits is not None

    @property
    def teaches_classes(self) -> bool:
        """See ``ClassTeachingConfig``. A comparison over the classes' logits alone does not include no-object."""
        return self.logits is not None and self.logits.kl_form == "bernoulli"
