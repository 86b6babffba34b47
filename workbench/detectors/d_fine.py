"""Adapts D-FINE (Peng et al., ICLR 2025) from transformers: an RT-DETR whose boxes are distributions that every layer refines."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import DFineConfig, DFineForObjectDetection

from workbench.datasets.targets import TargetBatch
from workbench.detectors.attention import Recorded
from workbench.detectors.detector import InputSpec
from workbench.detectors.distribution import bin_positions, distribution_losses
from workbench.detectors.output import AuxGroup, DetectorOutput, Queries, QueryOutput, query_output
from workbench.detectors.rt_detr import QUALITY_WEIGHTS, HybridModelConfig, Layers, RtDetr
from workbench.detectors.rt_detr_v2 import sampled_points_map
from workbench.detectors.whole_batch import over_processes
from workbench.errors import CheckpointError
from workbench.matching import match_targets

DISTRIBUTION_WEIGHTS = {"fgl": 0.15, "ddf": 1.5}


class RefinedModelConfig(HybridModelConfig):
    """Describes the architecture of a detector that refines box distributions; the defaults are D-FINE-L's."""

    # transformers ties the heads of later layers to the first layer's, and finds nothing to tie in a decoder of one layer
    decoder_layers: int = Field(6, ge=2)
    """Number of decoder layers. Each of them predicts classes and boxes."""
    points: int | tuple[int, ...] = 4
    """Number of points that each head of the deformable attention samples: one number for all levels, or one for each."""
    depth: float = Field(1.0, gt=0)
    """Depth of the encoder's fusion blocks, as a share of the published depth."""
    bins: int = Field(32, ge=4, multiple_of=2)
    """Number of intervals of a distribution; it is even."""
    scale: float = Field(4.0, gt=0)
    """Curvature of the bins' positions, which lie closer together near zero."""

    def refined_arguments(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Returns the arguments that the configurations of these models have in common."""
        return {
            **self.shared_arguments(classes),
            "decoder_n_points": self.points if isinstance(self.points, int) else list(self.points),
            "depth_mult": self.depth,
            "max_num_bins": self.bins,
            "reg_scale": self.scale,
        }


class DFineModelConfig(RefinedModelConfig):
    """Describes the architecture of a D-FINE."""

    family: Literal["d_fine"] = "d_fine"
    """Selects the family."""

    def transformers_config(self, classes: tuple[str, ...]) -> DFineConfig:
        """Returns the transformers configuration of this model."""
        return DFineConfig(**self.refined_arguments(classes))


@dataclass(frozen=True)
class RefinedLayers(Layers):
    """Decoder predictions that include the box distributions and the initial prediction that they are measured from.

    Attributes:
        distribution: ``[L, B, M, 4, bins + 1]`` logits of the distance of each edge.
        first_logits: ``[1, B, M, C]`` class logits of the initial prediction.
        first_boxes: ``[1, B, M, 4]`` boxes of the initial prediction.
    """

    distribution: Tensor
    first_logits: Tensor
    first_boxes: Tensor


class DFine(RtDetr):
    """Adapter around ``DFineForObjectDetection``.

    transformers' own loss pairs the boxes of layer l with the distributions of layer l + 1 and omits the classes of the last layer
    but one, because its lists start at different layers. Here every layer is trained with its own, as in the published code
    (Peterande/D-FINE@4a1f73a). On the same outputs every term is equal to that code's; but that code does not clip boxes to the image.
    """

    family = "d_fine"
    model_class: ClassVar[type] = DFineForObjectDetection
    provides = RtDetr.provides | {"box_distribution"}

    def __init__(self, model: Any, spec: InputSpec, trainable_norm: bool):
        if model.config.eval_idx not in (-1, model.config.decoder_layers - 1):
            raise CheckpointError(
                f"{self.family}: eval_idx {model.config.eval_idx} is not the last decoder layer. Only models whose final predictions come "
                "from the last layer are supported."
            )
        super().__init__(model, spec, trainable_norm)
        if model.config.decoder_method != "default":
            self.provides = self.provides - {"attentions"}

    @torch.no_grad()
    def reset_heads(self) -> None:
        """See ``RtDetr.reset_heads``. Gates and quality estimators start neutral."""
        super().reset_heads()
        decoder = self.model.model.decoder
        gates = [layer.gateway.gate for layer in decoder.layers if layer.gateway is not None]
        last: list[Any] = [decoder.pre_bbox_head.layers[-1], *gates]
        for linear in [*last, *(estimator.reg_conf.layers[-1] for estimator in decoder.lqe_layers)]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``. The initial prediction has the weight of a decoder layer."""
        ends = ["", *(["_denoising"] if self.model.config.num_denoising > 0 else [])]
        first = {f"{name}{end}_first": weight for end in ends for name, weight in QUALITY_WEIGHTS.items()}
        return super().loss_weights | first | {f"{name}{end}": weight for end in ends for name, weight in DISTRIBUTION_WEIGHTS.items()}

    @property
    def shares_matching(self) -> bool:
        """True if the box terms of all layers are trained on the union of their matchings (section 4.2)."""
        return True

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``. Adds ``fgl`` and ``ddf``.

        The initial prediction and the encoder's proposals belong to the union, and are trained on it. Class terms keep the matching of
        their own layer, and denoising queries their own targets. As in the published code, the two parts of ``ddf_denoising`` are
        weighted by the counts of the ordinary queries.
        """
        if match is None:
            match = match_targets(output.logits, output.boxes, targets, output.activation)
        alike = {group.name: match_targets(group.logits, group.boxes, targets) for group in output.aux if group.match is None}
        own = tuple(replace(group, match=alike.get(group.name, group.match)) for group in output.aux)
        terms = super().losses(replace(output, aux=own), targets, num_boxes, match)
        pairs = num_boxes
        if self.shares_matching:
            union = united(torch.cat([match, *alike.values()]), targets.labels.shape[1])
            pairs = over_processes((union >= 0).sum().to(output.logits), least=1)
            match = _spread(union, output.logits)
            shared = tuple(replace(group, match=_spread(union, group.logits)) for group in own if group.name in alike)
            found = super().losses(replace(output, aux=shared), targets, pairs, match)
            terms |= {name: value for name, value in found.items() if not name.startswith("class")}
        positions, scale = self.bin_positions(), self.model.model.decoder.reg_scale
        assert output.box_distribution is not None
        reference = query_output(output).context["reference"]
        terms |= distribution_losses(
            output.box_distribution, output.logits, output.boxes, reference, match, targets, pairs, positions, scale
        )
        # those of the last layer that has a divergence, which are the ones that the published code still holds by then
        counts = torch.stack([(match[-2] >= 0).sum(), (match[-2] < 0).sum()])
        for group in own:
            if group.distribution is None or group.reference is None or group.match is None:
                continue
            found = distribution_losses(
                group.distribution, group.logits, group.boxes, group.reference, group.match, targets, num_boxes * group.copies, positions,
                scale, counts,
            )  # fmt: skip
            terms |= {f"{name}_{group.name}": value for name, value in found.items()}
        return terms

    def bin_positions(self) -> Tensor:
        """Returns the distance from the reference box, in its sides over the scale, of each bin of ``box_distribution``."""
        decoder = self.model.model.decoder
        return bin_positions(decoder.max_num_bins, decoder.up, decoder.reg_scale)

    @contextmanager
    def every_layer(self) -> Iterator[None]:
        """Makes the decoder return all layers in eval mode too, by setting its training flag. Its submodules keep their mode."""
        decoder = self.model.model.decoder
        before, decoder.training = decoder.training, True
        try:
            yield
        finally:
            decoder.training = before

    def layers_of(self, found: Any) -> RefinedLayers:
        """See ``RtDetr.layers_of``. Boxes that exceed the image or have a negative side are clipped, as in transformers' loss."""
        logits = found.intermediate_logits.transpose(0, 1).float()
        boxes = found.intermediate_reference_points.transpose(0, 1).float().clamp(0, 1)
        distribution = found.intermediate_predicted_corners.transpose(0, 1).float().unflatten(-1, (4, -1))
        return RefinedLayers(found.intermediate_hidden_states, logits[1:], boxes[1:], distribution, logits[:1], boxes[:1])

    def output_of(self, layers: Layers, queries: Queries, context: Any, recorded: Recorded, aux: tuple[AuxGroup, ...] = ()) -> QueryOutput:
        """See ``RtDetr.output_of``."""
        assert isinstance(layers, RefinedLayers)
        noisy = layers.states.shape[2] - queries.content.shape[1]
        if aux:
            first = AuxGroup("first", layers.first_logits[:, :, noisy:], layers.first_boxes[:, :, noisy:], match=None)
            aux = (*aux, first)
        context = {**context, "reference": layers.first_boxes[0, :, noisy:].detach()}
        output = super().output_of(layers, queries, context, recorded, aux)
        return replace(output, box_distribution=layers.distribution[:, :, noisy:])

    def denoising_groups(self, layers: Layers, meta: dict[str, Any] | None, targets: TargetBatch) -> tuple[AuxGroup, ...]:
        """See ``RtDetr.denoising_groups``. The initial prediction is a group of its own."""
        assert isinstance(layers, RefinedLayers)
        (group,) = super().denoising_groups(layers, meta, targets)
        assert group.match is not None
        noisy = group.boxes.shape[2]
        first = replace(
            group, name="denoising_first", logits=layers.first_logits[:, :, :noisy], boxes=layers.first_boxes[:, :, :noisy],
            match=group.match[:1],
        )  # fmt: skip
        return (
            replace(group, distribution=layers.distribution[:, :, :noisy], reference=layers.first_boxes[0, :, :noisy].detach()),
            first,
        )

    @staticmethod
    def cross_map(module: Any, arguments: dict[str, Any], output: Any) -> Tensor:
        """See ``sampled_points_map``."""
        return sampled_points_map(module, module.num_points_list, arguments, output[1])


def united(match: Tensor, targets: int) -> Tensor:
    """Merges several matchings: every query that any of them matches gets the target that most of them give it.

    Args:
        match: ``[K, B, N]`` int64, target index or -1.
        targets: number of targets.

    Returns:
        ``[B, N]`` int64. Among targets with equally many votes the first wins.
    """
    if targets == 0:
        return match[0]
    columns = torch.arange(targets, device=match.device)
    votes, best = (match[..., None] == columns).sum(0).max(-1)
    return torch.where(votes > 0, best, -1)


def _spread(match: Tensor, logits: Tensor) -> Tensor:
    """Repeats a matching for every layer of ``logits``."""
    return match.expand(len(logits), -1, -1)
