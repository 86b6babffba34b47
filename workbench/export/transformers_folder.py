"""Exports a detector as a plain transformers folder, which can be loaded without the workbench."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from workbench.datasets.batches import Batch
from workbench.detectors.backbone import bare_backbone
from workbench.detectors.backbone_stages import cut_unused_stages
from workbench.detectors.registry import load_detector
from workbench.detectors.transformers_adapter import TransformersDetector
from workbench.errors import ExportError
from workbench.export.comparison import Agreement, Progress, Scored, compare, evaluation_split, refuse
from workbench.export.image_processor import check_image_processor, write_image_processor
from workbench.export.interface import interface_of, transform_of
from workbench.files import replacing_folder
from workbench.recipe.setup import find_detector
from workbench.store.run import Run

TOLERANCE = 1e-5  # of boxes and scores; transformers' frozen BatchNorm multiplies in another order, which gives 2e-6 over 300 images


def export_transformers(name: str | Run, out: Path, data: str | None = None, progress: Progress | None = None) -> Agreement:
    """Writes a folder for ``AutoModelForObjectDetection`` and ``AutoImageProcessor``, after checking its outputs on real images.

    Args:
        name: an open run, the name or path of a run, a detector folder, or an embedded detector.
        out: the folder to write; an existing one is replaced.
        data: dataset folder, or shapes, to check on; None uses the run's own data, or shapes without a run.
        progress: called with the number of images checked and the total.

    Raises:
        ExportError: transformers has no model of this family, or loads another model from the folder; nothing is written.

    Example:
        >>> print(export_transformers(run, Path("student")))
    """
    found = find_detector(name)
    detector = load_detector(found.folder).eval()
    if not isinstance(detector, TransformersDetector):
        raise ExportError(
            f"{found.name} is of the family {detector.family}, and transformers has no model for it. Export it as ONNX (--onnx)."
        )
    if detector.exact_norms:
        raise ExportError(
            f"transformers builds the timm backbone of {found.name} without the activations in its norm layers, so it would give other "
            "outputs. Nothing was written. Export it as ONNX (--onnx)."
        )
    dataset = evaluation_split(found.run, data)
    interface = interface_of(detector, dataset)
    with replacing_folder(out) as temporary:
        detector.save(temporary)
        transform = transform_of(detector)
        write_image_processor(temporary, detector, transform)
        check_image_processor(temporary, dataset, transform)
        loaded = _plain_transformers(temporary, detector)
        agreement = compare(detector, dataset, interface.height, interface.width, loaded, progress)
        refuse(f"{found.name} as transformers loads it", agreement, TOLERANCE, TOLERANCE)
    return agreement


def _plain_transformers(folder: Path, detector: TransformersDetector) -> Callable[[Tensor, Batch], Scored]:
    """Returns a function that gives the outputs of the model that transformers itself loads from a folder."""
    from transformers import AutoModelForObjectDetection
    from transformers import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except ValueError as error:
        raise ExportError(
            f"transformers cannot build this {detector.family}: {str(error)[:200]} Nothing was written. Export it as ONNX (--onnx)."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
    backbone = bare_backbone(detector.conv_encoder(model))
    inside = next(name for name, module in model.named_modules() if module is backbone)
    # transformers builds stages that no level needs; their weights are not in the folder, and change nothing
    unneeded = {f"{inside}.{name}" for name in cut_unused_stages(backbone)}
    unfit = [*report["missing_keys"], *report["unexpected_keys"], *(str(key) for key in report["mismatched_keys"])]
    if unfit := [key for key in unfit if not key.endswith("num_batches_tracked") and key not in unneeded]:
        raise ExportError(
            f"transformers cannot load this {detector.family} unchanged: {len(unfit)} weights do not fit its model, such as "
            f"{', '.join(sorted(unfit)[:3])}. Nothing was written. Export it as ONNX (--onnx)."
        )
    model.eval()

    def answer(pixels: Tensor, batch: Batch) -> Scored:
        found = model(pixel_values=batch.images, pixel_mask=(~batch.padding).long())
        scores = found.logits.sigmoid() if detector.activation == "sigmoid" else found.logits.softmax(-1)[..., :-1]
        return Scored(scores, found.pred_boxes)

    return answer
