"""Evaluates a detector on a split: the twelve COCO numbers with intervals, the cost of its errors, and on KITTI data KITTI's AP."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from workbench.analysis.detection.ap import ClassAP, coco_ap
from workbench.analysis.detection.bootstrap import Interval
from workbench.analysis.detection.calibration import calibration_error
from workbench.analysis.detection.intervals import coco_intervals
from workbench.analysis.detection.kitti_ap import is_kitti, kitti_ap
from workbench.analysis.detection.mask_ap import coco_mask_ap
from workbench.analysis.detection.matches import match_detections
from workbench.analysis.detection.tide import LABELS, error_table, find_errors
from workbench.analysis.of_run import open_data
from workbench.datasets.base import Dataset
from workbench.datasets.opening import open_dataset
from workbench.datasets.transforms import Transform, TransformConfig
from workbench.detectors.registry import load_detector
from workbench.device import resolve_device
from workbench.errors import IncompatibleError
from workbench.recipe.setup import find_detector
from workbench.store.detections import MASK
from workbench.store.run import Run
from workbench.training.evaluation import detect


@dataclass(frozen=True)
class Evaluation:
    """Numbers of a detector on a split.

    Attributes:
        images: Number of images of the split.
        detections: Rows of ``store.detections``.
        coco: The twelve COCO numbers by name.
        per_class: AP by class name.
        errors: Result of ``tide.error_table``.
        calibration: The expected calibration error.
        kitti: Result of ``kitti_ap``; None if the data is not KITTI's.
        masks: The twelve COCO numbers of the masks by name; None if the detector predicts none or the data has none.
        mask_classes: AP of the masks by class name; empty without them.
    """

    images: int
    detections: pd.DataFrame
    coco: dict[str, Interval]
    per_class: dict[str, ClassAP]
    errors: pd.DataFrame
    calibration: Interval
    kitti: pd.DataFrame | None
    masks: dict[str, Interval] | None = None
    mask_classes: dict[str, ClassAP] = field(default_factory=dict[str, ClassAP])

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per number: ``what``, ``value``, ``low``, ``high`` (may be None), ``n`` and ``of`` (what n counts)."""
        rows = [_row(name, one.value, one.low, one.high, self.images, "images") for name, one in self.coco.items()]
        rows += [_row(f"AP of {name}", one.ap, None, None, one.targets, "targets") for name, one in self.per_class.items()]
        rows += [_row(f"mask {name}", one.value, one.low, one.high, self.images, "images") for name, one in (self.masks or {}).items()]
        rows += [_row(f"mask AP of {name}", one.ap, None, None, one.targets, "targets") for name, one in self.mask_classes.items()]
        for error in self.errors.to_dict("records"):
            what = "targets" if error["error"] in ("missed", "false_negative") else "detections"
            rows.append(_row(f"AP50 lost to {LABELS[error['error']]}", error["cost"], error["low"], error["high"], error["count"], what))
        calibration = self.calibration
        rows.append(_row("calibration error", calibration.value, calibration.low, calibration.high, self.images, "images"))
        for one in self.kitti.to_dict("records") if self.kitti is not None else ():
            name = f"KITTI AP of {one['class']}, {one['difficulty']}"
            rows.append(_row(name, one["ap"], one["low"], one["high"], one["targets"], "targets"))
        return rows


def evaluate(
    name: str | Run, data: str | None = None, split: str = "val", step: int | None = None, device: str = "auto", samples: int = 300
) -> Evaluation:
    """Evaluates any detector on any dataset; classes are matched by name.

    Args:
        name: an open run, the name or path of a run, a detector folder, or an embedded detector.
        data: dataset folder, or shapes. None uses the run's own data as its recipe reads it, or shapes for a detector without a run.
        split: split of the data.
        step: checkpoint of a run; None uses the run's result.
        device: auto, cpu, cuda or cuda:N.
        samples: number of resamples of the images for the intervals.

    Raises:
        CheckpointError: there is no such detector.
        DataError: there is no such data.
        DeviceError: this machine does not have the device.
        IncompatibleError: the detector has none of the dataset's classes.
        RunError: there is no such checkpoint, or the run's data has changed.

    Example:
        >>> evaluate(run, split="test").coco["ap"]
    """
    place = resolve_device(device)
    found = find_detector(name, step)
    detector = load_detector(found.folder)
    masks = "masks" in detector.provides
    if found.run is not None and data is None:
        dataset = open_data(found.run.info(), split, masks)
    else:
        dataset = open_dataset(data or "shapes", split, masks=masks)
    spec = detector.spec
    if not set(spec.classes) & set(dataset.classes):
        raise IncompatibleError(
            f"'{found.name}' detects {', '.join(spec.classes)}, but the data has {', '.join(dataset.classes)}. They share no class; "
            "choose data with one of the detector's classes."
        )
    transform = Transform(TransformConfig.model_validate({"resize": spec.resize, "mean": spec.mean, "std": spec.std}))
    return judge_detections(dataset, detect(detector.to(place), dataset, transform, place).to_pandas(), samples)


def judge_detections(dataset: Dataset, detections: pd.DataFrame, samples: int = 300) -> Evaluation:
    """Returns the numbers of an ``Evaluation`` computed from detections.

    Args:
        dataset: the images and targets.
        detections: detections as for ``coco_ap``, with ``query``.
        samples: number of resamples of the images.
    """
    truth = dataset.coco()
    masks = dataset.has_masks and MASK.name in detections
    return Evaluation(
        len(dataset),
        detections,
        coco_intervals(truth, detections, samples),
        coco_ap(truth, detections).per_class,
        error_table(find_errors(truth, detections), samples),
        calibration_error(match_detections(truth, detections), samples),
        kitti_ap(dataset, detections, samples) if is_kitti(dataset) else None,
        coco_intervals(truth, detections, samples, iou="mask") if masks else None,
        coco_mask_ap(truth, detections).per_class if masks else {},
    )


def _row(what: str, value: float | None, low: float | None, high: float | None, n: int, of: str) -> dict[str, Any]:
    numbers = {
        name: None if number is None or pd.isna(number) else float(number)
        for name, number in (("value", value), ("low", low), ("high", high))
    }
    return {"what": what, **numbers, "n": int(n), "of": of}
