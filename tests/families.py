"""A tiny detector of every family, for what must hold whatever the family."""

from typing import Any

import torch

from tests.examples import SMALL, SPEC
from workbench.detectors.dense_detector import DenseDetector
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.query_detector import QueryDetector
from workbench.detectors.registry import FAMILIES
from workbench.detectors.two_stage_detector import TwoStageDetector

# what a family needs besides, or in place of, the fields of SMALL that its configuration has
_TWO_LEVELS = {"backbone": {"stem": 8, "widths": [8, 16], "depths": [1, 1], "levels": [1, 2]}, "denoising": 8}
_VIT = {"side": 64, "patch": 8, "width": 32, "heads": 4, "depth": 3, "windows": 2, "levels": [1, 3]}
_DENSE = {
    "backbone": {"stem": 8, "widths": [8, 16], "depths": [1, 1], "levels": [1, 2]}, "width": 16, "extra_levels": 1, "head_convs": 1,
}  # fmt: skip
_TWO_STAGE = {
    "backbone": {"stem": 8, "widths": [8, 16], "depths": [1, 1], "levels": [1, 2]}, "width": 16, "anchor_scales": [4.0],
    "anchor_samples": 32, "samples": 32, "candidates": 100, "proposals": 40, "training_candidates": 200, "training_proposals": 100,
    "roi_cells": 3, "roi_width": 24, "roi_scale": 48.0,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "d_fine": _TWO_LEVELS | {"bins": 8, "depth": 0.34, "points": [2, 3]},
    "deimv2": _TWO_LEVELS | {"bins": 8, "depth": 0.34, "points": [2, 3]},
    "fcos": _DENSE | {"head_groups": 4},
    "gfl": _DENSE | {"reg_max": 6, "anchor_scale": 4.0, "head_groups": 4},
    "faster_rcnn": _TWO_STAGE,
    "mask_rcnn": _TWO_STAGE | {"mask_cells": 4, "mask_convs": 1, "mask_width": 8},
    "lw_detr": {"backbone": _VIT, "cross_heads": 4, "groups": 3, "scales": [2.0, 1.0]},
    "reppoints": _DENSE | {"head_groups": 4, "score_threshold": 0.005},
    "retinanet": _DENSE,
    "rf_detr": {"backbone": _VIT, "cross_heads": 4, "groups": 3},
    "rt_detr": _TWO_LEVELS,
    "rt_detr_v2": _TWO_LEVELS,
}
NAMES = list(FAMILIES)
QUERY_NAMES = [name for name in NAMES if issubclass(FAMILIES[name].detector, QueryDetector)]
DENSE_NAMES = [name for name in NAMES if issubclass(FAMILIES[name].detector, DenseDetector)]
TWO_STAGE_NAMES = [name for name in NAMES if issubclass(FAMILIES[name].detector, TwoStageDetector)]


def tiny_config(name: str, **changes: Any) -> dict[str, Any]:
    """The family's configuration, as in a recipe: the fields of SMALL that it has."""
    fields = FAMILIES[name].config.model_fields
    return {"family": name} | {k: v for k, v in SMALL.items() if k in fields} | SPECIAL.get(name, {}) | changes


def tiny(name: str, seed: int = 0, spec: InputSpec = SPEC, **changes: Any) -> Detector:
    """A tiny detector in eval mode whose every weight and statistic is random: fresh ones have box heads that answer 0."""
    torch.manual_seed(seed)
    family = FAMILIES[name]
    detector = family.detector.build(family.config.model_validate(tiny_config(name, **changes)), spec).eval()
    with torch.no_grad():
        for key, value in detector.named_buffers():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
        for value in detector.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return detector
