"""Public checkpoints in the names of the models here, one file a layout.

Each layout's function takes a state dict and returns it renamed; names that no rule knows stay as they are, so that loading, which
is strict, reports them.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from workbench.detectors.conversion import adamixer, deformable_detr, dino
from workbench.errors import ConfigError


class Layout(NamedTuple):
    """Whose names a checkpoint has, and the family that loads it afterwards."""

    family: str
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]


LAYOUTS: dict[str, Layout] = {
    "adamixer_mmdet": Layout("adamixer", adamixer.convert),
    "deformable_detr_mmdet": Layout("deformable_detr", deformable_detr.convert_mmdet),
    "deformable_detr_detrdistill": Layout("deformable_detr", deformable_detr.convert_detrdistill),
    "dino_official": Layout("dino", dino.convert),
}


def layout(name: str) -> Layout:
    """Looks a layout up.

    Raises:
        ConfigError: unknown; lists those there are.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"unknown layout '{name}'. Layouts: {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]
