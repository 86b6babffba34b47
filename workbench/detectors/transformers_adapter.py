"""Holds what the adapters around transformers' detection models share: hooks, saving and loading, class heads, levels."""

import functools
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.detectors.backbone import bare_backbone
from workbench.detectors.backbone_norms import make_trainable, restore_norms
from workbench.detectors.backbone_stages import cut_unused_stages, freeze_early_stages, freeze_stages
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Level
from workbench.detectors.pretrained import load_backbone_weights
from workbench.detectors.query_detector import QueryDetector
from workbench.detectors.weights import EXACT_NORMS, load_plain, load_weights, plain_spec, read_config, read_spec, save_weights

CLASS_PRIOR = 0.01
_HEADS = r"(class_embed|bbox_embed|pre_bbox_head|lqe_layers|reg_scale|up$)"


class TransformersDetector(QueryDetector):
    """An adapter around one of transformers' models, which stays a plain transformers model on disk.

    A subclass sets ``model_class``, registers in its constructor what it wants to see (``keep_inputs``, ``keep_output``), and reads it
    inside ``with self.watching() as seen``. Nothing is kept between two forwards.

    Args:
        model: the transformers model.
        spec: what the model was trained to see.
        trainable_norm: True replaces frozen BatchNorm by trainable layers with the same values, and unfreezes the backbone.

    Attributes:
        frozen_stages: Number of the backbone's stages with fixed weights, as the recipe says; None if it does not.
    """

    frozen_stages: int | None = None
    model_class: ClassVar[type]
    parts = {  # noqa: RUF012
        "backbone": r"model\.model\.(backbone\.(?!projector\.)|conv_encoder\.(model|backbone)\.)",
        "neck": r"model\.model\.(input_proj|encoder_input_proj|backbone\.projector|conv_encoder\.(?!(model|backbone)\.))",
        "encoder": r"model\.model\.(encoder\.|level_embed)",
        # the head of a family that refines boxes is known under two names, of which one lies in the decoder
        "decoder": rf"model\.model\.(decoder\.(?!{_HEADS})|decoder_input_proj)",
        "head": rf"model\.(?!model\.)|model\.model\.decoder\.{_HEADS}",
        # what chooses queries among the encoder's cells, and the label table of denoising, stand for learned queries
        "queries": r"model\.model\.(query_|reference_point|enc_|pos_trans|denoising_class_embed)",
    }
    decoder_layer = r"\.(?:decoder\.layers|lqe_layers|class_embed|bbox_embed)\.(\d+)\."

    def __init__(self, model: Any, spec: InputSpec, trainable_norm: bool):
        super().__init__()
        self.model = model
        self.spec = spec
        self.trainable_norm = trainable_norm
        if trainable_norm:
            make_trainable(self.conv_encoder(model))
        else:
            freeze_early_stages(bare_backbone(self.conv_encoder(model)))
        self._seen: dict[str, Any] | None = None

    @classmethod
    def build(cls, config: Any, spec: InputSpec) -> Self:
        """Builds a model with random weights from torch's global generator, with heads initialised as in the published code.

        Args:
            config: the family's model configuration.
            spec: classes and normalisation.

        Raises:
            ConfigError: the backbone is unknown.
            CheckpointError: the backbone's weights are missing or do not fit.
        """
        model: Any = cls.model_class(config.transformers_config(spec.classes))
        backbone = bare_backbone(cls.conv_encoder(model))
        exact_norms = restore_norms(backbone, model.config.backbone_config)
        cut_unused_stages(backbone)
        load_backbone_weights(cls.conv_encoder(model), config.backbone)
        detector = cls(model, spec, trainable_norm=config.backbone.norm == "batch")
        detector.exact_norms = exact_norms
        detector.freeze_stages(config.backbone.freeze)
        detector.reset_heads()
        return detector

    def freeze_stages(self, count: int | None) -> None:
        """Fixes the weights of the backbone's first stages; None leaves them as the constructor did.

        Raises:
            ConfigError: the stages of this backbone are not known.
        """
        self.frozen_stages = count
        if count is not None:
            freeze_stages(bare_backbone(self.conv_encoder(self.model)), count)

    @staticmethod
    def conv_encoder(model: Any) -> nn.Module:
        """Returns the part of a transformers model that holds the backbone."""
        return model.model.backbone

    @abstractmethod
    def reset_heads(self) -> None:
        """Initialises class and box heads as the published code does."""

    @abstractmethod
    def class_heads(self) -> Sequence[tuple[nn.Module, int | str]]:
        """Returns every place that holds a class head, as its owner and the index or attribute there. A shared head occurs repeatedly."""

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """See ``Detector.reset_classes``."""
        for key, value in label_names(spec.classes).items():
            setattr(self.model.config, key, value)
        fresh: dict[int, nn.Module] = {}
        extra = 1 if self.activation == "softmax" else 0
        for owner, key in self.class_heads():
            head: Any = owner[key] if isinstance(key, int) else getattr(owner, key)  # pyright: ignore[reportIndexIssue]
            if id(head) not in fresh:
                fresh[id(head)] = nn.Linear(head.in_features, len(spec.classes) + extra)
                fresh_class_head(fresh[id(head)], self.activation == "sigmoid")
            if isinstance(key, int):
                owner[key] = fresh[id(head)]  # pyright: ignore[reportIndexIssue]
            else:
                setattr(owner, key, fresh[id(head)])
        self.spec = spec
        self.model.tie_weights()
        made = {id(parameter) for head in fresh.values() for parameter in head.parameters()}
        return [name for name, parameter in self.model.named_parameters() if id(parameter) in made]

    def save(self, folder: Path) -> None:
        """Writes a plain transformers folder, with our ``workbench.json`` beside it."""
        extra: dict[str, Any] = {"trainable_norm": self.trainable_norm}
        extra |= {EXACT_NORMS: True} if self.exact_norms else {}
        extra |= {"frozen_stages": self.frozen_stages} if self.frozen_stages is not None else {}
        save_weights(folder, self.model, self.family, self.spec, extra)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """See ``Detector.load``. It also reads a transformers folder without our ``workbench.json`` (ImageNet mean and std)."""
        kind: Any = cls.model_class
        written_here = read_spec(folder)
        if written_here is None:
            model = load_plain(folder, kind)
            cut_unused_stages(bare_backbone(cls.conv_encoder(model)))
            return cls(model, plain_spec(model.config), trainable_norm=False)
        spec, extra = written_here
        model = kind(read_config(folder, kind.config_class))
        backbone = bare_backbone(cls.conv_encoder(model))
        exact_norms = bool(extra.get(EXACT_NORMS, False)) and restore_norms(backbone, model.config.backbone_config)
        inside = next(name for name, module in model.named_modules() if module is backbone)
        load_weights(folder, model, [f"{inside}.{name}" for name in cut_unused_stages(backbone)])
        detector = cls(model, spec, trainable_norm=bool(extra.get("trainable_norm", False)))
        detector.exact_norms = exact_norms
        detector.freeze_stages(extra.get("frozen_stages"))
        return detector

    def keep_inputs(self, name: str, module: nn.Module) -> None:
        """Makes the keyword arguments of ``module``'s next call available as ``seen[name]``."""
        # a partial of a bound method, unlike a closure, follows the module into a deep copy
        module.register_forward_pre_hook(functools.partial(self._see_inputs, name), with_kwargs=True)

    def keep_output(self, name: str, module: nn.Module) -> None:
        """Makes the result of ``module`` available as ``seen[name]``."""
        module.register_forward_hook(functools.partial(self._see_output, name))

    @contextmanager
    def watching(self) -> Iterator[dict[str, Any]]:
        """Collects what the hooks see while the block runs. Outside it they record nothing."""
        seen: dict[str, Any] = {}
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    def _see_inputs(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._seen is not None:
            self._seen[name] = dict(kwargs)

    def _see_output(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._seen is not None:
            self._seen[name] = output


@torch.no_grad()
def fresh_class_head(head: Any, sigmoid: bool = True) -> None:
    """Draws small weights, and sets a sigmoid head's bias to the focal loss's class prior 0.01 (Lin et al., ICCV 2017, section 4.1)."""
    nn.init.normal_(head.weight, std=0.02)
    nn.init.constant_(head.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR) if sigmoid else 0.0)


def fresh_box_head(head: Any) -> None:
    """Initialises a box head so that its output is 0 and boxes start at their reference (official code of several families)."""
    *first, last = head.layers
    for layer in first:
        layer.reset_parameters()
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def label_names(classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the classes in the fields of a transformers configuration."""
    return {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}


def stride_of(images: Tensor, features: Tensor | tuple[int, ...]) -> int:
    """Returns the input pixels per cell.

    Every halving rounds up, so it is the smallest power of two that is not below the ratio of the sides.

    Args:
        images: ``[B, 3, H, W]``.
        features: ``[..., h, w]``, or ``(h, w)``.
    """
    shape = features if isinstance(features, tuple) else tuple(features.shape[-2:])
    return 1 << (-(-max(images.shape[-2:]) // max(shape)) - 1).bit_length()


def padding_at(padding: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the padding mask ``[B, H, W]`` at the cells of a map of ``shape`` (h, w): ``[B, h, w]`` bool."""
    return F.interpolate(padding[:, None].float(), size=tuple(shape))[:, 0].bool()


def split_levels(cells: Tensor, shapes: Sequence[tuple[int, ...]], padding: Tensor, images: Tensor) -> tuple[Level, ...]:
    """Splits flattened levels into maps.

    Args:
        cells: ``[B, sum of H W, D]``.
        shapes: (H, W) of each level.
        padding: ``[B, sum of H W]`` bool, True for padding.
        images: input images, from which the strides are computed.
    """
    sizes = [h * w for h, w in shapes]
    return tuple(
        Level(part.transpose(1, 2).unflatten(2, shape), stride_of(images, shape), mask.unflatten(1, shape))
        for part, mask, shape in zip(cells.split(sizes, dim=1), padding.split(sizes, dim=1), shapes, strict=True)
    )


def unique(modules: Sequence[Any]) -> list[Any]:
    """Returns each module once, in order."""
    return list({id(module): module for module in modules}.values())
