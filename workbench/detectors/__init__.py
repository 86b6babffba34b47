"""Detector families by name."""

from pathlib import Path
from typing import NamedTuple

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
    """One row of the registry."""

    detector: type[Detector]
    config: type[BaseModel]


FAMILIES: dict[str, Family] = {
    "adamixer": Family(AdaMixer, AdaMixerModelConfig),
    "conditional_detr": Family(ConditionalDetr, ConditionalDetrModelConfig),
    "dab_detr": Family(DabDetr, DabDetrModelConfig),
    "d_fine": Family(DFine, DFineModelConfig),
    "deimv2": Family(Deimv2, Deimv2ModelConfig),
    "deformable_detr": Family(DeformableDetr, DeformableDetrModelConfig),
    "dino": Family(Dino, DinoModelConfig),
    "detr": Family(Detr, DetrModelConfig),
    "lw_detr": Family(LwDetr, LwDetrModelConfig),
    "rf_detr": Family(RfDetr, RfDetrModelConfig),
    "rt_detr": Family(RtDetr, RtDetrModelConfig),
    "rt_detr_v2": Family(RtDetrV2, RtDetrV2ModelConfig),
}


def family(name: str) -> Family:
    """Looks a family up.

    Raises:
        ConfigError: unknown; lists those there are.
    """
    if name not in FAMILIES:
        raise ConfigError(f"unknown detector family '{name}'. Families: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


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
    "load_detector", "probability",
]  # fmt: skip
