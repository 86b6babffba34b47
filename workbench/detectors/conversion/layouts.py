"""Lists the layouts of public checkpoints and the functions that convert them, one file per layout.

Each function takes a state dict and returns it renamed. Names that no rule matches stay unchanged, so that loading, which is strict,
reports them.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from workbench.detectors.conversion import adamixer, deformable_detr, dino
from workbench.errors import ConfigError


class Layout(NamedTuple):
    """A checkpoint layout: how to convert it, and the family that loads the result."""

    family: str
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]


LAYOUTS: dict[str, Layout] = {
    "adamixer_mmdet": Layout("adamixer", adamixer.convert),
    "deformable_detr_mmdet": Layout("deformable_detr", deformable_detr.convert_mmdet),
    "deformable_detr_detrdistill": Layout("deformable_detr", deformable_detr.convert_detrdistill),
    "dino_official": Layout("dino", dino.convert),
}


def layout(name: str) -> Layout:
    """Returns the layout with this name.

    Raises:
        ConfigError: no layout has this name; the message lists those that exist.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"unknown layout '{name}'. Layouts: {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]
