"""What our adapters add to a forward of the bare model.

Each family at 320x320 pixels with a ResNet-18 (or its own small backbone), batch 1, eval, one thread: the adapter's forward against the
transformers model alone on the same images, interleaved. DINO and AdaMixer are written here and have no bare model.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.harness import Figure, interleaved, median_ratio
from workbench.detectors import FAMILIES, InputSpec
from workbench.detectors.adapter import TransformersDetector

SIDE, REPEATS = 320, 15
SPEC = InputSpec(tuple(f"class {i}" for i in range(80)), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_VIT: dict[str, Any] = {"side": SIDE, "patch": 16, "width": 192, "heads": 3, "depth": 6, "windows": 2, "levels": [2, 4, 6]}


def figures() -> Iterator[Figure]:
    """One ratio a family, and the largest of them."""
    torch.set_num_threads(1)
    ratios: list[float] = []
    for name, row in FAMILIES.items():
        if not issubclass(row.detector, TransformersDetector):
            continue
        torch.manual_seed(0)
        config = row.config.model_validate({"family": name, "backbone": _backbone(name, row.backbone)})
        detector: Any = row.detector.build(config, SPEC).eval()
        images, padding = torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        mask = (~padding).long()

        def ours(detector: Any = detector, images: torch.Tensor = images, padding: torch.Tensor = padding) -> None:
            with torch.no_grad():
                detector(images, padding)

        def bare(detector: Any = detector, images: torch.Tensor = images, mask: torch.Tensor = mask) -> None:
            with torch.no_grad():
                detector.model(images, pixel_mask=mask)

        # process seconds of one thread: what other processes do meanwhile does not count
        seconds = interleaved({"ours": ours, "bare": bare}, REPEATS, warmup=2, clock=time.process_time)
        ratio = median_ratio(seconds["ours"], seconds["bare"])
        ratios.append(ratio.value)
        yield Figure(f"{name}: bare forward", float(torch.tensor(seconds["bare"]).median()) * 1000, "ms", repeats=REPEATS)
        yield Figure(f"{name}: adapter / bare forward", ratio.value, "x", "<= 1.03", (ratio.low, ratio.high), REPEATS)
    yield Figure("largest ratio of all families", max(ratios), "x", "<= 1.03")


def _backbone(name: str, published: dict[str, Any] | None) -> dict[str, Any]:
    if name in ("lw_detr", "rf_detr"):
        return _VIT
    return (published or {}) | {"name": "resnet18"}
