"""Finds detector families by name. A family's module, and with it transformers' model, is imported when the family is first used.

Example:
    >>> list(FAMILIES)[:3]
    ['adamixer', 'conditional_detr', 'dab_detr']
    >>> model = family("detr").config(backbone={"name": "resnet18", "levels": [4]}, queries=20)
    >>> detector = family("detr").detector.build(model, InputSpec(("cat", "dog"), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
"""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from workbench.detectors.detector import Detector, InputSpec
from workbench.errors import CheckpointError, ConfigError
from workbench.files import read_json


@dataclass(frozen=True)
class Family:
    """One detector family of the registry.

    Attributes:
        module: Name of its module in this package.
        class_name: Name of the detector class. The class of its configuration is called ``<class_name>ModelConfig``.
        backbone: Smallest backbone description that makes a detector of published size; None if the family has a default.
    """

    module: str
    class_name: str
    backbone: dict[str, Any] | None = field(default=None, hash=False)

    @property
    def detector(self) -> type[Detector]:
        """Returns the detector class, which is imported on first use."""
        return getattr(self._imported(), self.class_name)

    @property
    def config(self) -> type[BaseModel]:
        """Returns the pydantic model of the family's architecture, as written below ``student:`` in a recipe."""
        return getattr(self._imported(), f"{self.class_name}ModelConfig")

    def _imported(self) -> Any:
        return import_module(f"{__package__}.{self.module}")


_PYRAMID = {"name": "resnet50"}
_ONE_LEVEL = {"name": "resnet50", "levels": [4]}
FAMILIES: dict[str, Family] = {
    "adamixer": Family("adamixer", "AdaMixer"),
    "conditional_detr": Family("conditional_detr", "ConditionalDetr", _ONE_LEVEL),
    "dab_detr": Family("dab_detr", "DabDetr", _ONE_LEVEL),
    "d_fine": Family("d_fine", "DFine", _PYRAMID),
    "deimv2": Family("deimv2", "Deimv2", _PYRAMID),
    "deformable_detr": Family("deformable_detr", "DeformableDetr", _PYRAMID),
    "dino": Family("dino", "Dino", _PYRAMID),
    "detr": Family("detr", "Detr", _ONE_LEVEL),
    "faster_rcnn": Family("faster_rcnn", "FasterRcnn", {"name": "resnet50", "levels": [1, 2, 3, 4]}),
    "fcos": Family("fcos", "Fcos", _PYRAMID),
    "gfl": Family("gfl", "Gfl", _PYRAMID),
    "lw_detr": Family("lw_detr", "LwDetr", {}),
    "mask_rcnn": Family("mask_rcnn", "MaskRcnn", {"name": "resnet50", "levels": [1, 2, 3, 4]}),
    "retinanet": Family("retinanet", "RetinaNet", _PYRAMID),
    "reppoints": Family("reppoints", "RepPoints", _PYRAMID),
    "rf_detr": Family("rf_detr", "RfDetr"),
    "rt_detr": Family("rt_detr", "RtDetr", _PYRAMID),
    "rt_detr_v2": Family("rt_detr_v2", "RtDetrV2", _PYRAMID),
}


def family(name: str) -> Family:
    """Returns the family with this name.

    Raises:
        ConfigError: no family has this name; the message lists those that exist.
    """
    if name not in FAMILIES:
        raise ConfigError(f"unknown detector family '{name}'. Families: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def parameter_count(name: str, classes: int = 80) -> int:
    """Counts the parameters of a family's detector at its published settings, without allocating memory for them.

    Raises:
        ConfigError: the family is unknown.
    """
    row = family(name)
    spec = InputSpec(tuple(f"class {index}" for index in range(classes)), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    values = {"family": name} | ({} if row.backbone is None else {"backbone": row.backbone})
    with torch.device("meta"):
        detector = row.detector.build(row.config.model_validate(values), spec)
    return sum(parameter.numel() for parameter in detector.parameters())


def load_detector(folder: Path) -> Detector:
    """Loads a detector from a folder of the workbench or a plain transformers folder.

    Raises:
        CheckpointError: the folder is missing, its family is unknown, or its weights do not fit.
    """
    return family_in(folder).detector.load(folder)


def family_in(folder: Path) -> Family:
    """Returns the family of the detector in a folder.

    Raises:
        CheckpointError: the folder is missing or its family is unknown.
    """
    config = folder / "config.json"
    if not config.exists():
        raise CheckpointError(
            f"{folder} is not a detector folder: config.json is missing. Give a run, or a folder with config.json and model.safetensors."
        )
    values = read_json(config)
    # transformers writes dab-detr, but all other names with an underscore
    name = str(values.get("model_type", "")).replace("-", "_") if isinstance(values, dict) else ""
    if name not in FAMILIES:
        raise CheckpointError(f"{config} has model_type '{name}'; known families: {', '.join(FAMILIES)}.")
    return FAMILIES[name]
