"""A detector for production: one ONNX file, or a plain transformers folder; what does not answer as the detector is not written."""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from workbench import __version__
from workbench.analysis.ap import coco_ap
from workbench.analysis.data import open_data
from workbench.datasets import open_dataset
from workbench.datasets.base import Dataset
from workbench.datasets.loader import Batch, evaluation_batches
from workbench.datasets.transforms import ShortestSide, Transform, TransformConfig
from workbench.detectors import Detector, load_detector, probability
from workbench.detectors.adapter import TransformersDetector
from workbench.detectors.base import best_detections
from workbench.errors import ExportError, MissingExtraError
from workbench.files import replacing, replacing_folder
from workbench.image_processor import check_image_processor, write_image_processor
from workbench.runs import Run, runs_root
from workbench.training.evaluation import DETECTIONS, collect_detections
from workbench.training.setup import find_detector

BATCH = 8
BOX_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-4
AP_TOLERANCE = 0.001  # AP is 0..1 here: a tenth of a point
TRANSFORMERS_TOLERANCE = 1e-5  # transformers freezes BatchNorm, which multiplies in another order: 2e-6 over 300 images
# two roundings of the same encoder scores may part on who is the last query selected; more than that is another model
RESELECTED_SHARE = 0.1
FORMAT_VERSION = 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Interface:
    """What an exported file takes and gives; kept in its metadata as JSON.

    Attributes:
        family: of the detector.
        classes: names by column of the scores.
        height: of the input, in pixels.
        width: likewise.
        padding: whether the file takes a padding mask; without one, images are resized to exactly ``height`` x ``width``.
        resize: the rule that images are resized by, as in a recipe; None leaves them as they are.
        source: whether the encoder cell of each query is given as well, of families that select their queries per image.
    """

    family: str
    classes: tuple[str, ...]
    height: int
    width: int
    padding: bool
    resize: dict[str, Any] | None
    source: bool

    @property
    def inputs(self) -> list[str]:
        return ["images", "padding"] if self.padding else ["images"]

    @property
    def outputs(self) -> list[str]:
        return ["scores", "boxes", "source"] if self.source else ["scores", "boxes"]


@dataclass(frozen=True)
class Agreement:
    """How an export answered next to its detector.

    Attributes:
        images: that both answered.
        split: that they are of.
        boxes: largest difference of a box coordinate, in shares of the image's sides.
        scores: largest difference of a class probability.
        reselected: images of which rounding selected another query; their boxes and scores are not compared.
        ap: of the detector, 0..1.
        exported_ap: of the export.
    """

    images: int
    split: str
    boxes: float
    scores: float
    reselected: int
    ap: float
    exported_ap: float

    def __str__(self) -> str:
        apart = f", queries selected otherwise on {self.reselected}" if self.reselected else ""
        largest = f"boxes differ by up to {self.boxes:.1e} and scores by up to {self.scores:.1e}"
        return f"{self.images} images of {self.split}: {largest}{apart}; AP {100 * self.exported_ap:.2f} against {100 * self.ap:.2f}"


    def holds(self, boxes: float, scores: float) -> bool:
        """Whether the differences are within these tolerances; a difference that is no number never is."""
        same_ap = abs(self.ap - self.exported_ap) <= AP_TOLERANCE
        return self.boxes <= boxes and self.scores <= scores and same_ap and self.reselected <= RESELECTED_SHARE * self.images


def export_onnx(name: str, out: Path, data: str | None = None, progress: Progress | None = None) -> Agreement:
    """Writes a detector as one ONNX file for any batch size, after onnxruntime gave the detector's answers on real images.

    The file takes ``images`` uint8 ``[B, H, W, 3]`` RGB (normalisation is inside) and gives ``scores`` ``[B, N, C]`` and ``boxes``
    ``[B, N, 4]``, cxcywh in 0..1 of the un-padded image (``docs/formats.md``).

    Args:
        name: a run, a detector folder, or an embedded detector.
        out: the file to write.
        data: dataset folder, or shapes, to check on; None: of a run its own data, else shapes.
        progress: called with the images checked and the images in all.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: the detector cannot be exported, or its export answers otherwise; nothing is written.
    """
    _need_onnx()
    detector = load_detector(find_detector(name)).eval()
    dataset = _evaluation_split(name, data)
    interface = interface_of(detector, dataset)
    with replacing(out) as temporary:
        program = onnx_program(detector, interface)
        program.save(temporary)
        agreement = _agreement(detector, dataset, interface.height, interface.width, _Session(temporary, interface), progress)
        _refuse(f"{name} as ONNX", agreement, BOX_TOLERANCE, SCORE_TOLERANCE)
        _describe(temporary, interface, agreement)
    return agreement


def export_transformers(name: str, out: Path, data: str | None = None, progress: Progress | None = None) -> Agreement:
    """Writes a folder that ``AutoModelForObjectDetection`` and ``AutoImageProcessor`` load, after it gave the detector's answers.

    Args:
        name: a run, a detector folder, or an embedded detector.
        out: the folder to write; one that is there is replaced.
        data: dataset folder, or shapes, to check on; None: of a run its own data, else shapes.
        progress: called with the images checked and the images in all.

    Raises:
        ExportError: transformers has no model of this family, or loads another model from the folder; nothing is written.
    """
    detector = load_detector(find_detector(name)).eval()
    if not isinstance(detector, TransformersDetector):
        raise ExportError(f"{name} is of the family {detector.family}, which transformers has no model for. Export it as ONNX (--onnx).")
    dataset = _evaluation_split(name, data)
    interface = interface_of(detector, dataset)
    with replacing_folder(out) as temporary:
        detector.save(temporary)
        transform = _transform(detector)
        write_image_processor(temporary, detector, transform)
        check_image_processor(temporary, dataset, transform)
        loaded = _plain_transformers(temporary, detector)
        agreement = _agreement(detector, dataset, interface.height, interface.width, loaded, progress)
        _refuse(f"{name} as transformers loads it", agreement, TRANSFORMERS_TOLERANCE, TRANSFORMERS_TOLERANCE)
    return agreement


def interface_of(detector: Detector, dataset: Dataset) -> Interface:
    """What an export of ``detector`` takes for images such as those of ``dataset``.

    Raises:
        ExportError: images come in several sizes and the model knows nothing of padding.
    """
    spec = detector.spec
    transform = _transform(detector)
    resize = transform.config.resize
    prepared = {_prepared(transform, record.width, record.height) for record in dataset.records}
    padding = len(prepared) > 1
    width, height = max(w for w, _ in prepared), max(h for _, h in prepared)
    if padding and isinstance(resize, ShortestSide):
        width = height = resize.longest
    step = detector.side_multiple
    if (padding and not detector.reads_padding) or width % step or height % step:
        sides = f" with sides of multiples of {step}" if step > 1 else ""
        raise ExportError(f"{detector.family} takes images of one size only{sides}, and those of '{dataset.name}' come in "
                          f"{len(prepared)} (up to {width}x{height}). Train it with data.transform.resize: {{height: H, width: W}}.")
    with torch.no_grad():
        selected = bool((detector.blank_output().queries.source >= 0).all())
    return Interface(detector.family, spec.classes, height, width, padding, spec.resize, selected)


class _Deployed(nn.Module):
    """The detector from pixels to scores and boxes of its last layer."""

    scale: Tensor
    shift: Tensor

    def __init__(self, detector: Detector, interface: Interface):
        super().__init__()
        self.detector, self.source = detector, interface.source
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (detector.spec.mean, detector.spec.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", mean / std)

    def forward(self, images: Tensor, padding: Tensor | None = None) -> tuple[Tensor, ...]:
        pixels = images.permute(0, 3, 1, 2).float() * self.scale - self.shift
        mask = torch.zeros_like(images[..., 0], dtype=torch.bool) if padding is None else padding
        output = self.detector(pixels.masked_fill(mask[:, None], 0), mask)
        answer = probability(output, -1), output.boxes[-1]
        return (*answer, output.queries.source) if self.source else answer


def onnx_program(detector: Detector, interface: Interface) -> Any:
    """The detector as an unchecked ``torch.onnx.ONNXProgram``.

    Raises:
        ExportError: torch cannot trace or translate it.
    """
    height, width = interface.height, interface.width
    example = [torch.zeros(2, height, width, 3, dtype=torch.uint8)]
    if interface.padding:
        example.append(torch.zeros(2, height, width, dtype=torch.bool))
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in interface.inputs}
    try:
        with torch.no_grad(), warnings.catch_warnings(), _quiet(), _traceable(detector):
            warnings.simplefilter("ignore")
            graph = torch.export.export(_Deployed(detector, interface).eval(), tuple(example), dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(graph, dynamo=True, optimize=False, verbose=False,
                                        input_names=interface.inputs, output_names=interface.outputs)  # fmt: skip
            _fold(program)
            return program
    except Exception as error:  # torch raises dozens of kinds here, none of which a user can tell apart
        raise ExportError(f"{interface.family} cannot be exported as ONNX by torch {torch.__version__}: {type(error).__name__}: "
                          f"{' '.join(str(error).split())[:300]}") from error


def _fold(program: Any) -> None:
    """Plain operators in place of functions, and constants in place of what follows from them.

    Not by torch's ``optimize=True``: its rewriting (onnxscript 0.7) loses the input of two clamps in a row.
    """
    from onnxscript import optimizer

    optimizer.inline(program.model)
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)


class _Session:
    """onnxruntime's answers, in the order and types of the file."""

    def __init__(self, path: Path, interface: Interface):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class but this one
            raise ExportError(f"onnxruntime {onnxruntime.__version__} does not load the exported {interface.family}: "
                              f"{' '.join(str(error).split())[:300]}") from error
        self.interface = interface

    def __call__(self, pixels: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        feed = {"images": pixels.numpy()} | ({"padding": batch.padding.numpy()} if self.interface.padding else {})
        scores, boxes, *source = (torch.from_numpy(value) for value in self.session.run(None, feed))
        return scores, boxes, source[0] if source else None


def _plain_transformers(folder: Path, detector: TransformersDetector) -> Callable[[Tensor, Batch], tuple[Tensor, Tensor, None]]:
    """The answers of what transformers itself makes of a folder."""
    from transformers import AutoModelForObjectDetection
    from transformers import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except ValueError as error:
        raise ExportError(f"transformers does not build this {detector.family}: {str(error)[:200]} Nothing was written; export it as ONNX "
                          "(--onnx).") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
    unfit = [*report["missing_keys"], *report["unexpected_keys"], *(str(key) for key in report["mismatched_keys"])]
    if unfit := [key for key in unfit if not key.endswith("num_batches_tracked")]:
        raise ExportError(f"transformers does not load this {detector.family} as it is: {len(unfit)} weights do not fit its model, "
                          f"{', '.join(sorted(unfit)[:3])}. Nothing was written; export it as ONNX (--onnx).")
    model.eval()

    def answer(pixels: Tensor, batch: Batch) -> tuple[Tensor, Tensor, None]:
        found = model(pixel_values=batch.images, pixel_mask=(~batch.padding).long())
        scores = found.logits.sigmoid() if detector.activation == "sigmoid" else found.logits.softmax(-1)[..., :-1]
        return scores, found.pred_boxes, None

    return answer


@torch.no_grad()
def _agreement(
    detector: Detector, dataset: Dataset, height: int, width: int, exported: Callable[..., Any], progress: Progress | None
) -> Agreement:
    """Both models on every image of the dataset, on the same pixels."""
    transform, done, box, score, reselected = _transform(detector), 0, 0.0, 0.0, 0
    ours, theirs = [], []
    spec = detector.spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    for small in evaluation_batches(dataset, transform, BATCH):
        batch = _on_canvas(small, height, width)
        pixels = ((batch.images * std + mean) * 255).masked_fill(batch.padding[:, None], 0).round().to(torch.uint8)
        output = detector(batch.images, batch.padding)
        scores, boxes = probability(output, -1), output.boxes[-1]
        other_scores, other_boxes, source = exported(pixels.permute(0, 2, 3, 1).contiguous(), batch)
        ours.append((batch, best_detections(scores, boxes, batch.sizes, DETECTIONS)))
        theirs.append((batch, best_detections(other_scores, other_boxes, batch.sizes, DETECTIONS)))
        if source is not None:
            here, there = output.queries.source.sort(1), source.sort(1)
            scores, boxes = (_reordered(values, here.indices) for values in (scores, boxes))
            other_scores, other_boxes = (_reordered(values, there.indices) for values in (other_scores, other_boxes))
            same = (here.values == there.values).all(1)
            scores, boxes, other_scores, other_boxes = scores[same], boxes[same], other_scores[same], other_boxes[same]
            reselected += int((~same).sum())
        box, score = max(box, _largest(boxes - other_boxes)), max(score, _largest(scores - other_scores))
        done += len(batch.image_ids)
        if progress is not None:
            progress(done, len(dataset))
    truth = dataset.coco()
    ap, other_ap = (float(coco_ap(truth, collect_detections(dataset, found, spec.classes).to_pandas()).ap) for found in (ours, theirs))
    return Agreement(done, dataset.split, box, score, reselected, ap, other_ap)


def _refuse(what: str, agreement: Agreement, boxes: float, scores: float) -> None:
    if not agreement.holds(boxes, scores):
        raise ExportError(f"{what} is not the model it was made from. {agreement}. Allowed are {boxes:g}, {scores:g}, other queries on "
                          f"{RESELECTED_SHARE:.0%} of the images and {100 * AP_TOLERANCE:g} AP. Nothing was written.")


def _describe(path: Path, interface: Interface, agreement: Agreement) -> None:
    """Writes the interface and what was measured into the file's metadata."""
    import onnx

    model = onnx.load(path)
    facts = {"format_version": FORMAT_VERSION, "workbench": __version__, **asdict(interface), "checked": asdict(agreement)}
    onnx.helper.set_model_props(model, {"workbench": json.dumps(facts)})
    onnx.save(model, path)


def read_interface(path: Path) -> Interface:
    """The interface in the metadata of a file that ``export_onnx`` wrote.

    Raises:
        ExportError: it is no such file.
    """
    _need_onnx()
    import onnx

    try:
        properties = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        facts = json.loads(properties["workbench"])
        values = {name: facts[name] for name in Interface.__dataclass_fields__}
    except Exception as error:  # protobuf's errors have no common base class, and a file of another tool has no such key
        raise ExportError(f"{path} is no ONNX file written by 'workbench export': {type(error).__name__}.") from error
    return Interface(**{**values, "classes": tuple(values["classes"])})


def _need_onnx() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise MissingExtraError(f"export as ONNX needs {error.name}: pip install 'workbench[export]'.") from error
    del onnx, onnxruntime, onnxscript


def _evaluation_split(name: str, data: str | None) -> Dataset:
    """Test images of a run that has them, else validation images."""
    is_run = (Path(name) / "run.json").is_file() or (runs_root() / name / "run.json").is_file()
    if not is_run or data is not None:
        return open_dataset(data or "shapes", "val")
    info = Run.open(name).info()
    return open_data(info, "test" if info["recipe"]["data"].get("test") else "val")


def _transform(detector: Detector) -> Transform:
    spec = detector.spec
    return Transform(TransformConfig.model_validate({"resize": spec.resize, "mean": spec.mean, "std": spec.std}))


def _prepared(transform: Transform, width: int, height: int) -> tuple[int, int]:
    ops = transform.evaluation_ops(width, height)
    return (ops[0]["width"], ops[0]["height"]) if ops else (width, height)


def _on_canvas(batch: Batch, height: int, width: int) -> Batch:
    """The batch padded to the size of the export."""
    right, below = width - batch.images.shape[-1], height - batch.images.shape[-2]
    if not right and not below:
        return batch
    images = nn.functional.pad(batch.images, (0, right, 0, below))
    return Batch(images, nn.functional.pad(batch.padding, (0, right, 0, below), value=True), batch.targets, batch.image_ids, batch.sizes,
                 batch.ops)  # fmt: skip


def _reordered(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(1, order[..., None].expand_as(values))


def _largest(difference: Tensor) -> float:
    """0 of no numbers; infinite where one of them is no number, which ``max`` would pass over."""
    return float(difference.abs().nan_to_num(nan=torch.inf).max()) if difference.numel() else 0.0


@contextmanager
def _traceable(detector: Detector) -> Iterator[None]:
    """What transformers' models do that no graph can hold, done otherwise.

    They ask tensors for their ``len``, which makes the batch size a constant: here it gets the size itself. Some check the values of
    shapes while they run: these are fixed, and the check of the export runs every one of them.
    """
    module: Any = sys.modules[type(getattr(detector, "model", detector)).__module__]
    with patch.object(module, "len", _length, create=True), patch.object(module, "torch_compilable_check", _nothing, create=True):
        yield


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) else len(value)


def _nothing(*_: Any, **__: Any) -> None:
    pass


@contextmanager
def _quiet() -> Iterator[None]:
    """No lines about the exporter's own steps."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
