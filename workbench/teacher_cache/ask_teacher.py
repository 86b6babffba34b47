"""Computes the rows of a teacher cache: one per image and variant, numbered variant by variant."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.datasets.batches import variant_batch
from workbench.datasets.transforms import Op
from workbench.detectors.output import DetectorOutput, QueryOutput
from workbench.errors import NonFiniteError
from workbench.methods.context import MethodContext
from workbench.methods.recorded import drawing_method, recorded_masks
from workbench.methods.selection import QUALITY_GAMMA, query_quality
from workbench.recipe.setup import Setup
from workbench.store.masks import quantise
from workbench.teacher_cache.cached_outputs import PREPARED, learned_queries, pack, split_constants
from workbench.teacher_cache.dense_outputs import ANCHORS, dense_form, dense_part
from workbench.teacher_cache.fields import CacheFields


@dataclass(frozen=True)
class Rows:
    """Some rows of a cache.

    Attributes:
        tensors: ``[B, ...]`` tensors by name.
        constants: Tensors that are the same for all rows: queries ``[1, ...]``, anchors ``[N, 4]``.
        ops: Augmentation of each image.
        image_ids: Image ids in the dataset's records.
    """

    tensors: dict[str, Tensor]
    constants: dict[str, Tensor]
    ops: tuple[list[Op], ...]
    image_ids: tuple[int, ...]


class RowMaker:
    """Runs the teacher and returns its outputs as rows.

    Args:
        setup: models and data, with teacher, methods and variants.
        contents: the fields to keep.
        device: device to run on.
    """

    def __init__(self, setup: Setup, contents: CacheFields, device: torch.device):
        assert setup.teacher is not None and setup.pairing is not None and setup.variants is not None
        self.setup, self.contents, self.device = setup, contents, device
        self.teacher, self.pairing, self.variants = setup.teacher.to(device), setup.pairing, setup.variants
        self.count = len(setup.train) * setup.variants.count
        self.drawing = drawing_method(setup.methods)
        taught = sorted({t for group in self.pairing.layer_map for t in group})
        self.mask_layers = taught[-1:] if self.drawing is None else list(self.drawing.mask_layers)

    @property
    def form(self) -> dict[str, object]:
        """Activation and number of columns of the class head, and the grid of a teacher without queries; see ``Manifest``."""
        detector = self.teacher.detector
        softmax = detector.activation == "softmax"
        form: dict[str, object] = {"activation": detector.activation, "columns": len(detector.spec.classes) + softmax}
        return form if "queries" in detector.provides else form | dense_form(self._blank_output())

    @torch.no_grad()
    def _blank_output(self) -> DetectorOutput:
        height, width = self.variants.canvas
        blank = torch.zeros(1, 3, height, width, device=self.device)
        return self.teacher(blank, torch.zeros(1, height, width, dtype=torch.bool, device=self.device))

    @torch.no_grad()
    def rows(self, numbers: Sequence[int]) -> Rows:
        """Returns the teacher's outputs for some rows; those of queries with matching to the targets, quality and selection masks.

        Raises:
            DataError: an image cannot be decoded.
            NonFiniteError: a value is NaN, infinite, or too large for half precision.
        """
        images = len(self.setup.train)
        batch = variant_batch(self.variants, [row % images for row in numbers], [row // images for row in numbers])
        batch = batch.to(self.device)
        output = self.teacher(batch.images.contiguous(memory_format=torch.channels_last), batch.padding)
        packed = pack(output, self.contents)
        targets = batch.targets
        context = MethodContext(student=self.setup.student, pairing=self.pairing, targets=targets)
        if isinstance(output, QueryOutput):
            packed["match"] = context.teacher_match(output).transpose(0, 1).to(torch.int16).contiguous()
            quality = query_quality("paper", QUALITY_GAMMA, output, list(range(len(output.boxes))), targets, context)
            packed["quality"] = quality.transpose(0, 1).to("cpu", torch.float16).contiguous()
            packed |= self._masks(output, context)
        for method in self.setup.methods:
            for name, value in method.prepare(output, context).items():
                packed[f"{PREPARED}{method.name}/{method.prepared_by}/{name}"] = value.to("cpu", torch.float32).contiguous()
        for name, value in packed.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                bad = [i for i, row in zip(batch.image_ids, value, strict=True) if not torch.isfinite(row).all()]
                raise NonFiniteError(
                    f"the teacher's {name} of images {bad[:5]} is NaN, infinite or too large for {self.contents.precision}. "
                    "Set cache.precision: fp32, or check these images."
                )
        tensors, constants = split_constants(packed, learned_queries(self.teacher.detector))
        if (dense := dense_part(output)) is not None:
            constants[ANCHORS] = dense.grid.anchors.cpu().contiguous()
        return Rows(tensors, constants, batch.ops, batch.image_ids)

    def _masks(self, output: QueryOutput, context: MethodContext) -> dict[str, Tensor]:
        """Returns selection masks as uint8 ``[B, layers, H, W]`` with (offset, scale) ``[B, layers, 2]``; see ``store.masks``."""
        packed: dict[str, Tensor] = {}
        kind = "memory" if output.memory else "neck"
        for level, masks in recorded_masks(self.drawing, output, self.mask_layers, context, None):
            stored, scale, offset = quantise(masks.transpose(0, 1).cpu().numpy())
            packed[f"mask/{kind}/{level.stride}"] = torch.from_numpy(stored)
            packed[f"mask/{kind}/{level.stride}/range"] = torch.from_numpy(np.stack([offset, scale], -1).astype(np.float32))
        return packed
