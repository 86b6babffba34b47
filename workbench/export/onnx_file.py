"""Exports a detector as one ONNX file, from pixels to scores and boxes, or to detections."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from workbench import __version__
from workbench.datasets.batches import Batch
from workbench.detectors.detector import Detector
from workbench.detectors.mask_rcnn import MaskRcnn
from workbench.detectors.output import QueryOutput, TwoStageOutput, valid_scores
from workbench.detectors.registry import load_detector
from workbench.errors import ExportError, MissingExtraError, pip_install
from workbench.export.comparison import Agreement, Answer, Found, Progress, Scored, compare, evaluation_split, refuse
from workbench.export.interface import Interface, interface_of
from workbench.export.onnx_nms import chosen_detections, translations
from workbench.export.two_stage_graph import masks_of_boxes, traceable_stages
from workbench.files import replacing
from workbench.recipe.setup import find_detector
from workbench.store.run import Run
from workbench.training.evaluation import DETECTIONS

BOX_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-4
FORMAT_VERSION = 1


def export_onnx(name: str | Run, out: Path, data: str | None = None, progress: Progress | None = None, nms: bool = False) -> Agreement:
    """Writes a detector as one ONNX file for any batch size, after checking onnxruntime's outputs on real images.

    The file takes ``images`` uint8 ``[B, H, W, 3]`` RGB (normalisation is inside) and gives ``scores`` ``[B, N, C]`` and ``boxes``
    ``[B, N, 4]``, cxcywh in 0..1 of the un-padded image, or detections (``docs/formats.md``).

    Args:
        name: an open run, the name or path of a run, a detector folder, or an embedded detector.
        out: the file to write.
        data: dataset folder, or shapes, to check on; None uses the run's own data, or shapes without a run.
        progress: called with the number of images checked and the total.
        nms: put the non-maximum suppression of a detector without queries into the file, which then gives detections.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: the detector cannot be exported, or the export gives other outputs; nothing is written.

    Example:
        >>> print(export_onnx(run, Path("student.onnx")))
    """
    _need_onnx()
    found = find_detector(name)
    detector = load_detector(found.folder).eval()
    dataset = evaluation_split(found.run, data)
    interface = interface_of(detector, dataset, nms)
    with replacing(out) as temporary:
        program = onnx_program(detector, interface)
        program.save(temporary)
        agreement = compare(detector, dataset, interface.height, interface.width, _Session(temporary, interface), progress)
        refuse(f"{found.name} as ONNX", agreement, BOX_TOLERANCE, SCORE_TOLERANCE)
        _describe(temporary, interface, agreement)
    return agreement


def read_interface(path: Path) -> Interface:
    """Returns the interface stored in the metadata of a file that ``export_onnx`` wrote.

    Raises:
        ExportError: the file was not written by ``export_onnx``.
    """
    _need_onnx()
    import onnx

    try:
        properties = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        facts = json.loads(properties["workbench"])
        # files of earlier versions lack the fields that have a default
        values = {field.name: facts[field.name] for field in fields(Interface) if field.default is MISSING or field.name in facts}
    except Exception as error:  # protobuf's errors have no common base class, and other tools do not write this key
        raise ExportError(f"{path} is not an ONNX file written by 'workbench export': {type(error).__name__}. Export it again.") from error
    return Interface(**{**values, "classes": tuple(values["classes"])})


class _Deployed(nn.Module):
    """The detector as a function from pixels to scores and boxes of its last stage, or to detections."""

    scale: Tensor
    shift: Tensor

    def __init__(self, detector: Detector, interface: Interface):
        super().__init__()
        self.detector, self.source = detector, interface.source
        self.rule = interface.rule if interface.nms else None
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (detector.spec.mean, detector.spec.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", mean / std)

    def forward(self, images: Tensor, padding: Tensor | None = None) -> tuple[Tensor, ...]:
        pixels = images.permute(0, 3, 1, 2).float() * self.scale - self.shift
        mask = torch.zeros_like(images[..., 0], dtype=torch.bool) if padding is None else padding
        output = self.detector(pixels.masked_fill(mask[:, None], 0), mask)
        scores = valid_scores(output, -1)
        boxes = output.class_boxes if isinstance(output, TwoStageOutput) and output.class_boxes is not None else output.boxes[-1]
        if self.rule is not None:
            top, labels, corners, count = chosen_detections(scores, boxes, self.rule, DETECTIONS)
            if isinstance(self.detector, MaskRcnn):
                return top, labels, corners, count, masks_of_boxes(self.detector, output, labels, corners)
            return top, labels, corners, count
        return (scores, boxes, output.queries.source) if self.source and isinstance(output, QueryOutput) else (scores, boxes)


def onnx_program(detector: Detector, interface: Interface) -> Any:
    """Returns the detector as an unchecked ``torch.onnx.ONNXProgram``.

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
        with torch.no_grad(), warnings.catch_warnings(), _quiet(), _traceable(detector), traceable_stages(detector):
            warnings.simplefilter("ignore")
            graph = torch.export.export(_Deployed(detector, interface).eval(), tuple(example), dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(graph, dynamo=True, optimize=False, verbose=False,
                                        input_names=interface.inputs, output_names=interface.outputs,
                                        custom_translation_table=translations())  # fmt: skip
            _fold(program)
            return program
    except Exception as error:  # torch raises dozens of exception types here, which mean the same to a user
        raise ExportError(
            f"{interface.family} cannot be exported as ONNX by torch {torch.__version__}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def _fold(program: Any) -> None:
    """Replaces functions by plain operators, and folds constants.

    It does not use torch's ``optimize=True``, whose rewriting (onnxscript 0.7) loses the input of two clamps in a row.
    """
    from onnxscript import optimizer

    optimizer.inline(program.model)
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)


class _Session:
    """Runs onnxruntime and returns the file's outputs in their order and types."""

    def __init__(self, path: Path, interface: Interface):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # Exception is the only base class that onnxruntime's exceptions share
            raise ExportError(
                f"onnxruntime {onnxruntime.__version__} cannot load the exported {interface.family}: {' '.join(str(error).split())[:300]}"
            ) from error
        self.interface = interface

    def __call__(self, pixels: Tensor, batch: Batch) -> Answer:
        feed = {"images": pixels.numpy()} | ({"padding": batch.padding.numpy()} if self.interface.padding else {})
        given = {
            output.name: torch.from_numpy(value)
            for output, value in zip(self.session.get_outputs(), self.session.run(None, feed), strict=True)
        }
        if self.interface.nms:
            return Found(given["scores"], given["labels"], given["boxes"], given["count"], given.get("masks"))
        return Scored(given["scores"], given["boxes"], given.get("source"), self.interface.rule)


def _describe(path: Path, interface: Interface, agreement: Agreement) -> None:
    """Writes the interface and the measured agreement into the file's metadata."""
    import onnx

    model = onnx.load(path)
    facts = {"format_version": FORMAT_VERSION, "workbench": __version__, **asdict(interface), "checked": asdict(agreement)}
    onnx.helper.set_model_props(model, {"workbench": json.dumps(facts)})
    onnx.save(model, path)


def _need_onnx() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise MissingExtraError(f"export as ONNX needs {error.name}, which is not installed. Run: {pip_install('export')}") from error
    del onnx, onnxruntime, onnxscript


@contextmanager
def _traceable(detector: Detector) -> Iterator[None]:
    """Replaces, inside the block, what transformers' models do that a graph cannot express.

    The models call ``len`` on tensors, which would fix the batch size; here the call returns the symbolic size. Some models check values
    of shapes at run time. These checks are skipped, because the shapes are fixed and the export's own check runs every one of them.
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
    """Silences the exporter's messages about its own steps."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
