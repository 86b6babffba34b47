"""Saves and loads the families that transformers has no model for. Only the workbench can load their folders."""

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel

from workbench.detectors.backbone import Backbone
from workbench.detectors.backbone_norms import has_exact_norms, simplify_norms
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.pretrained import load_backbone_weights
from workbench.detectors.weights import EXACT_NORMS, load_weights, read_own, save_own


class OwnModel(Detector):
    """A detector whose model is implemented in this package.

    Args:
        config: the model's architecture, an instance of ``config_class``.
        spec: what the model is trained to see.
    """

    config_class: ClassVar[type[BaseModel]]
    config: Any
    backbone: Backbone

    def __init__(self, config: Any, spec: InputSpec):
        super().__init__()
        self.config = config
        self.spec = spec

    @classmethod
    def build(cls, config: Any, spec: InputSpec) -> Self:
        """Builds a model with random weights from torch's global generator, initialised as the published code does.

        Raises:
            ConfigError: the backbone is unknown.
            CheckpointError: the backbone's weights are missing or do not fit.
        """
        detector = cls(config, spec)
        detector.exact_norms = has_exact_norms(detector.backbone)
        load_backbone_weights(detector.backbone, config.backbone)
        return detector

    def save(self, folder: Path) -> None:
        """See ``Detector.save``. transformers has no class for this family, so only the workbench can load the folder."""
        save_own(folder, self, self.family, self.spec, self.config, {EXACT_NORMS: True} if self.exact_norms else {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """See ``Detector.load``."""
        config, spec, extra = read_own(folder, cls.config_class)
        detector = cls(config, spec)
        if not extra.get(EXACT_NORMS, False):
            simplify_norms(detector.backbone)
        detector.exact_norms = has_exact_norms(detector.backbone)
        load_weights(folder, detector, [f"backbone.model.{name}" for name in detector.backbone.cut])
        return detector
