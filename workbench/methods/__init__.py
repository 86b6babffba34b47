"""Distillation methods by name."""

from workbench.detectors.base import Detector
from workbench.methods.base import BaseMethodConfig, Method, MethodContext, Pairing, make_pairing
from workbench.methods.detrdistill import DETRDistill, DETRDistillConfig

METHODS: dict[str, tuple[type[DETRDistillConfig], type[DETRDistill]]] = {"detrdistill": (DETRDistillConfig, DETRDistill)}

MethodConfig = DETRDistillConfig


def build_method(config: MethodConfig, student: Detector, teacher: Detector, pairing: Pairing) -> Method:
    """A method with its adapters, from torch's global generator.

    Raises:
        IncompatibleError: the method cannot serve this pair.
    """
    return METHODS[config.method][1](config, student, teacher, pairing)


__all__ = ["METHODS", "BaseMethodConfig", "Method", "MethodConfig", "MethodContext", "Pairing", "build_method", "make_pairing"]
