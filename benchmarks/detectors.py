"""Measures how much time the adapters add to a forward pass of the bare transformers model.

Each family runs at its published settings (ResNet-50, or its own backbone) on one image of 640x640 pixels, in eval mode on one thread. The
adapter and the bare model run in turns on the same image. The adapter applies the heads of every decoder layer, the bare model only those
of the last. This share is larger in small models, so the family with the largest share also runs at 320 pixels with a ResNet-18.
DINO and AdaMixer are implemented in this project and have no bare model.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.harness import Figure, Ratio, interleaved, median_ratio
from workbench.detectors.detector import InputSpec
from workbench.detectors.registry import FAMILIES
from workbench.detectors.transformers_adapter import TransformersDetector

SIDE, REPEATS = 640, 7
SMALL_SIDE, SMALL_REPEATS, SMALL_FAMILY = 320, 15, "conditional_detr"
SPEC = InputSpec(tuple(f"class {i}" for i in range(80)), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# ViTs whose position embeddings depend on the image size
_OWN: dict[str, dict[str, Any]] = {
    "lw_detr": {"side": SIDE},
    "rf_detr": {"side": SIDE, "patch": 16, "windows": 4, "width": 384, "heads": 6, "depth": 12},
}


def figures() -> Iterator[Figure]:
    """Yields two figures per family, and the largest ratio."""
    torch.set_num_threads(1)
    ratios: list[float] = []
    for name, row in FAMILIES.items():
        if not issubclass(row.detector, TransformersDetector):
            continue
        milliseconds, ratio = _measured(name, _OWN.get(name, row.backbone), SIDE, REPEATS)
        ratios.append(ratio.value)
        yield Figure(f"{name}: bare forward", milliseconds, "ms", repeats=REPEATS)
        yield Figure(f"{name}: adapter / bare forward", ratio.value, "x", "<= 1.03", (ratio.low, ratio.high), REPEATS)
    yield Figure("largest ratio of all families", max(ratios), "x", "<= 1.03")
    backbone = (FAMILIES[SMALL_FAMILY].backbone or {}) | {"name": "resnet18"}
    _, ratio = _measured(SMALL_FAMILY, backbone, SMALL_SIDE, SMALL_REPEATS)
    yield Figure(f"{SMALL_FAMILY} with ResNet-18 at {SMALL_SIDE} pixels: adapter / bare forward", ratio.value, "x", None,
                 (ratio.low, ratio.high), SMALL_REPEATS)  # fmt: skip


def _measured(name: str, backbone: dict[str, Any] | None, side: int, repeats: int) -> tuple[float, Ratio]:
    """Returns the milliseconds of the bare forward pass, and the ratio of the adapter to it."""
    torch.manual_seed(0)
    row = FAMILIES[name]
    detector: Any = row.detector.build(row.config.model_validate({"family": name, "backbone": backbone}), SPEC).eval()
    images, padding = torch.randn(1, 3, side, side), torch.zeros(1, side, side, dtype=torch.bool)
    mask = (~padding).long()

    def ours() -> None:
        with torch.no_grad():
            detector(images, padding)

    def bare() -> None:
        with torch.no_grad():
            detector.model(images, pixel_mask=mask)

    # process time of one thread, so that other processes do not count
    seconds = interleaved({"ours": ours, "bare": bare}, repeats, clock=time.process_time)
    return float(torch.tensor(seconds["bare"]).median()) * 1000, median_ratio(seconds["ours"], seconds["bare"])
