"""Detector families by name."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

from workbench.detectors.adamixer import AdaMixer, AdaMixerModelConfig
from workbench.detectors.base import Detections, Detector, InputSpec, probability
from workbench.detectors.conditional_detr import ConditionalDetr, ConditionalDetrModelConfig
from workbench.detectors.d_fine import DFine, DFineModelConfig
from workbench.detectors.dab_detr import DabDetr, DabDetrModelConfig
from workbench.detectors.deformable_detr import DeformableDetr, DeformableDetrModelConfig
from workbench.detectors.deimv2 import Deimv2, Deimv2ModelConfig
from workbench.detectors.detr import Detr, DetrModelConfig
from workbench.detectors.dino import Dino, DinoModelConfig
from workbench.detectors.lw_detr import LwDetr, LwDetrModelConfig
from workbench.detectors.output import AuxGroup, DetectorOutput, Level, Queries
from workbench.detectors.rf_detr import RfDetr, RfDetrModelConfig
from workbench.detectors.rt_detr import RtDetr, RtDetrModelConfig
from workbench.detectors.rt_detr_v2 import RtDetrV2, RtDetrV2ModelConfig
from workbench.errors import CheckpointError, ConfigError
from workbench.files import read_json


class Family(NamedTuple):
    """One row of the registry.

    Attributes:
        detector: the adapter.
        config: its architecture in a recipe.
        backbone: the least to say of the backbone for a detector of published size; None: the family has a default.
    """

    detector: type[Detector]
    config: type[BaseModel]
    backbone: dict[str, Any] | None


_PYRAMID = {"name": "resnet50"}
_ONE_LEVEL = {"name": "resnet50", "levels": [4]}
FAMILIES: dict[str, Family] = {
    "adamixer": Family(AdaMixer, AdaMixerModelConfig, None),
    "conditional_detr": Family(ConditionalDetr, ConditionalDetrModelConfig, _ONE_LEVEL),
    "dab_detr": Family(DabDetr, DabDetrModelConfig, _ONE_LEVEL),
    "d_fine": Family(DFine, DFineModelConfig, _PYRAMID),
    "deimv2": Family(Deimv2, Deimv2ModelConfig, _PYRAMID),
    "deformable_detr": Family(DeformableDetr, DeformableDetrModelConfig, _PYRAMID),
    "dino": Family(Dino, DinoModelConfig, _PYRAMID),
    "detr": Family(Detr, DetrModelConfig, _ONE_LEVEL),
    "lw_detr": Family(LwDetr, LwDetrModelConfig, {}),
    "rf_detr": Family(RfDetr, RfDetrModelConfig, None),
    "rt_detr": Family(RtDetr, RtDetrModelConfig, _PYRAMID),
    "rt_detr_v2": Family(RtDetrV2, RtDetrV2ModelConfig, _PYRAMID),
}


def family(name: str) -> Family:
    """Looks a family up.

    Raises:
        ConfigError: unknown; lists those there are.
    """
    if name not in FAMILIES:
        raise ConfigError(f"unknown detector family '{name}'. Families: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def parameter_count(name: str, classes: int = 80) -> int:
    """Parameters of a family's detector with its published settings; no memory is taken for them.

    Raises:
        ConfigError: unknown family.
    """
    row = family(name)
    spec = InputSpec(tuple(f"class {index}" for index in range(classes)), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    values = {"family": name} | ({} if row.backbone is None else {"backbone": row.backbone})
    with torch.device("meta"):
        detector = row.detector.build(row.config.model_validate(values), spec)
    return sum(parameter.numel() for parameter in detector.parameters())


def load_detector(folder: Path) -> Detector:
    """Loads a detector folder: one of ours, or a plain transformers folder.

    Raises:
        CheckpointError: no such folder, unknown family, or weights that do not fit.
    """
    config = folder / "config.json"
    if not config.exists():
        raise CheckpointError(f"{folder} is no detector: config.json is missing. Give a run, or a folder with config.json and "
                              "model.safetensors.")
    values = read_json(config)
    # transformers writes dab-detr, and the others with an underscore
    name = str(values.get("model_type", "")).replace("-", "_") if isinstance(values, dict) else ""
    if name not in FAMILIES:
        raise CheckpointError(f"{config} has model_type '{name}'; known families: {', '.join(FAMILIES)}.")
    return FAMILIES[name].detector.load(folder)


__all__ = [
    "FAMILIES", "AuxGroup", "Detections", "Detector", "DetectorOutput", "Family", "InputSpec", "Level", "Queries", "family",
    "load_detector", "parameter_count", "probability",
]  # fmt: skip
