"""Computes AP and recall of parts of a split: by size of the targets, by their number in the image, and by their overlap."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.analysis.detection.ap import AREAS, Detections
from workbench.analysis.detection.ap_tests import ratio
from workbench.analysis.detection.bootstrap import Interval, draws, interval, mean_ap, with_all
from workbench.analysis.detection.cells import Cells
from workbench.analysis.detection.matches import BOX, Matches, match_detections
from workbench.overlap import pairwise_iou

By = Literal["size", "crowding", "overlap"]
SIZES = tuple(name for name in AREAS if name != "all")
CROWDING = {"1 to 3 targets": (1, 3), "4 to 9 targets": (4, 9), "10 or more targets": (10, np.inf)}
# largest IoU with another target of the image, of any class
OVERLAP = {"apart": (-1, 0), "touching, IoU up to 0.3": (0, 0.3), "crowded, IoU over 0.3": (0.3, 1)}


def slices(
    ground_truth: Mapping[str, Any], detections: Detections, samples: int = 300, seed: int = 0, max_detections: int = 100
) -> pd.DataFrame:
    """Returns AP and recall of every slice, with intervals over resampled images.

    AP by size is COCO's: targets of other sizes are ignored. AP by crowding is AP on the images with that number of targets. Recall is the
    share of the slice's targets that are found at IoU 0.5.

    Returns:
        One row per slice: ``by``, ``slice``, ``targets``, ``images``, ``ap``, ``ap_low``, ``ap_high`` (NaN by overlap, which detections
        do not have), ``recall``, ``recall_low``, ``recall_high``.
    """
    matches = match_detections(ground_truth, detections, max_detections)
    targets = slice_targets(matches)
    counts = with_all(draws(len(matches.images), samples, seed))
    cells = Cells(ground_truth, detections, max_detections)
    aps = {("size", size): mean_ap(cells.classes(size), counts) for size in SIZES}
    per_image = np.bincount(np.searchsorted(matches.images, targets["image_id"]), minlength=len(matches.images))
    everything = list(cells.classes())
    for name, (least, most) in CROWDING.items():
        aps["crowding", name] = mean_ap(everything, counts * ((per_image >= least) & (per_image <= most)))
    rows: list[dict[str, Any]] = []
    for by, name in _slices():
        own = targets[targets[by] == name]
        totals = own.assign(total=own["found_by"] >= 0, n=1)
        recall = interval(ratio(totals, matches.images, counts), len(matches.images))
        ap = interval(aps[by, name], len(matches.images)) if (by, name) in aps else None
        rows.append(
            {
                "by": by,
                "slice": name,
                "targets": len(own),
                "images": own["image_id"].nunique(),
                **_columns("ap", ap),
                **_columns("recall", recall),
            }
        )
    return pd.DataFrame(rows)


def slice_targets(matches: Matches) -> pd.DataFrame:
    """Returns the targets with their slices: the columns of ``Matches.targets``, ``size``, ``crowding`` and ``overlap``."""
    targets = matches.targets
    area = targets["area"].to_numpy()
    size = np.select([area < AREAS["small"][1], area < AREAS["medium"][1]], ["small", "medium"], "large")
    count = targets.groupby("image_id")["target"].transform("size").to_numpy()
    overlap, corners = np.zeros(len(targets)), targets[BOX].to_numpy(float)
    for places in targets.groupby("image_id").indices.values():
        iou = pairwise_iou(corners[places], corners[places])
        np.fill_diagonal(iou, 0)
        overlap[places] = iou.max(axis=1)
    return targets.assign(
        size=size,
        crowding=np.select([(count >= low) & (count <= high) for low, high in CROWDING.values()], list(CROWDING), ""),
        overlap=np.select([(overlap > low) & (overlap <= high) for low, high in OVERLAP.values()], list(OVERLAP), ""),
    )


def _slices() -> Iterator[tuple[By, str]]:
    names: dict[By, Any] = {"size": SIZES, "crowding": CROWDING, "overlap": OVERLAP}
    for by, own in names.items():
        for name in own:
            yield by, name


def _columns(name: str, found: Interval | None) -> dict[str, float]:
    values = (found.value, found.low, found.high) if found is not None else (np.nan, np.nan, np.nan)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
