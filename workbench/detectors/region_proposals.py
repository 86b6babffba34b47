"""Implements the region proposal network of Faster R-CNN (Ren et al., NeurIPS 2015) on a feature pyramid, on torchvision's parts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from workbench.datasets.targets import TargetBatch
from workbench.detectors.dense_detector import IGNORED, at_positives, pixel_boxes, relative_boxes, with_ignored
from workbench.detectors.grid import anchor_grid, flat
from workbench.detectors.iou_matching import matched
from workbench.detectors.output import DenseOutput, HeadMap
from workbench.detectors.pyramid import WEIGHT_SPREAD, PyramidConfig, Tower, levels_with_padding, sides_of
from workbench.detectors.whole_batch import over_processes

POSITIVE, NEGATIVE = 0.7, 0.3  # an anchor is positive from this IoU with a target on, and background below that one (section 3.1.2)
POSITIVE_SHARE = 0.5
SMALLEST = 1e-3  # shortest side of a proposal in input pixels
BETA = 1 / 9  # where the smooth L1 loss of both stages becomes linear, as in torchvision


class ProposalConfig(PyramidConfig):
    """Holds the fields of a detector with a region proposal network. Defaults are torchvision's, for 800 x 1333 pixels."""

    anchor_scales: tuple[float, ...] = (8.0,)
    """Sides of the square anchors in strides of their level: 8 makes anchors of 32 pixels at stride 4."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors; each ratio is combined with each scale, and the area stays that of the square."""
    anchor_samples: int = Field(256, gt=0)
    """Number of anchors of an image that the proposals learn from in a step, at most half of them positive."""
    proposal_threshold: float = Field(0.7, gt=0, le=1)
    """IoU above which the worse of two proposals of one level is suppressed."""
    proposals: int = Field(1000, gt=0)
    """Highest number of proposals of an image in inference."""
    training_candidates: int = Field(2000, gt=0)
    """In training, highest number of anchors of each level that go into the suppression; ``candidates`` in inference."""
    training_proposals: int = Field(2000, gt=0)
    """In training, highest number of proposals of an image, from which those that the second stage learns from are drawn."""

    @model_validator(mode="after")
    def _anchors(self) -> "ProposalConfig":
        if not self.anchor_scales or not self.anchor_ratios or min(*self.anchor_scales, *self.anchor_ratios) <= 0:
            raise ValueError("anchor_scales and anchor_ratios each need at least one number, all above 0")
        # torchvision rounds the sides of anchors to whole pixels
        if not all(anchors.all() for anchors in self.generator().cell_anchors):
            raise ValueError("anchor_scales and anchor_ratios make an anchor without area. Choose larger scales or ratios nearer to 1")
        return self

    def generator(self) -> AnchorGenerator:
        """Returns torchvision's generator of the anchors of all levels."""
        sizes = tuple(tuple(stride * scale for scale in self.anchor_scales) for stride in self.strides)
        return AnchorGenerator(sizes, (self.anchor_ratios,) * len(sizes))  # pyright: ignore[reportArgumentType] - its hint says one tuple


class RegionProposals(nn.Module):
    """The first stage: says of every anchor whether it holds an object, moves it, and keeps the best as proposals.

    Args:
        config: anchors, depth and norm of the head, and how many proposals are kept.
    """

    def __init__(self, config: ProposalConfig):
        super().__init__()
        self.config = config
        self.generator = config.generator()
        shapes = self.generator.num_anchors_per_location()[0]
        self.tower = Tower(config, len(config.strides))
        self.object_head, self.box_head = nn.Conv2d(config.width, shapes, 1), nn.Conv2d(config.width, 4 * shapes, 1)
        for head in (self.object_head, self.box_head):
            nn.init.normal_(head.weight, std=WEIGHT_SPREAD)
            assert head.bias is not None
            nn.init.zeros_(head.bias)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(POSITIVE, NEGATIVE, allow_low_quality_matches=True)
        self.sampler = BalancedPositiveNegativeSampler(config.anchor_samples, POSITIVE_SHARE)

    def forward(self, levels: Sequence[Tensor], padding: Tensor) -> tuple[DenseOutput, Tensor]:
        """Predicts objectness and box of every anchor.

        Args:
            levels: ``[B, width, h, w]`` of each level of the pyramid.
            padding: ``[B, H, W]`` bool.

        Returns:
            The output of the first stage, and its boxes as xyxy in input pixels without gradient, ``[B, A, 4]``.
        """
        maps: list[HeadMap] = []
        for index, (stride, level) in enumerate(zip(self.config.strides, levels, strict=True)):
            features = self.tower(level, index)
            maps.append(HeadMap(stride, self.object_head(features), self.box_head(features)))
        grid = anchor_grid(self.generator, self.config.strides, [_size(level.logits) for level in maps], padding.device)
        sides, numbers = sides_of(padding), flat([level.boxes for level in maps], 4).float()
        boxes = self.coder.decode_single(numbers.flatten(0, 1), grid.anchors.repeat(numbers.shape[0], 1)).view(numbers.shape)
        output = DenseOutput(
            logits=flat([level.logits for level in maps], 1).float()[None],
            boxes=relative_boxes(boxes, sides)[None],
            activation="sigmoid",
            valid=(grid.centres < sides[:, None]).all(-1),
            neck=levels_with_padding(list(levels), self.config.strides, padding),
            grid=grid,
            maps=tuple(maps),
            sides=sides,
        )
        return output, boxes.detach()

    @torch.no_grad()
    def propose(self, output: DenseOutput, boxes: Tensor) -> list[Tensor]:
        """Returns each image's proposals ``[n, 4]`` as xyxy in input pixels, best first, clipped to the un-padded image.

        The anchors with the highest objectness are taken from each level, and suppressed there.

        Args:
            output: result of ``forward``.
            boxes: boxes of the anchors, as ``forward`` returns them.
        """
        config, grid = self.config, output.grid
        most = config.training_candidates if self.training else config.candidates
        kept = config.training_proposals if self.training else config.proposals
        assert output.valid is not None
        logits = output.logits[0, ..., 0].masked_fill(~output.valid, -torch.inf)
        best: list[Tensor] = []
        start = 0
        for height, width in grid.sizes:
            count = height * width * grid.shapes
            best.append(logits[:, start : start + count].topk(min(most, count), dim=1).indices + start)
            start += count
        index = torch.cat(best, 1)
        proposals: list[Tensor] = []
        for image, (width, height) in enumerate(output.sides.int().tolist()):
            own = index[image][output.valid[image, index[image]]]
            clipped = clip_boxes_to_image(boxes[image, own], (height, width))
            large = remove_small_boxes(clipped, SMALLEST)
            own, clipped = own[large], clipped[large]
            left = batched_nms(clipped, logits[image, own].sigmoid(), grid.level[own], config.proposal_threshold)
            proposals.append(clipped[left[:kept]])
        return proposals

    @torch.no_grad()
    def sample(self, output: DenseOutput, targets: TargetBatch) -> Tensor:
        """Draws the anchors that a step learns from.

        Returns:
            ``[B, A]`` target index, -1 for background, -2 for an anchor that is ignored or was not drawn.
        """
        boxes = pixel_boxes(targets.boxes, output.sides)
        assert output.valid is not None
        match = matched(self.matcher, output.grid.anchors.expand(len(boxes), -1, -1), output.valid, boxes, targets.valid)
        return drawn(self.sampler, with_ignored(match, output.grid.centres, output.valid, targets, output.sides))

    def losses(self, output: DenseOutput, anchors: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """Computes the losses of the first stage, as torchvision's ``RegionProposalNetwork.compute_loss`` does.

        Args:
            output: result of ``forward``.
            anchors: result of ``sample``.
            targets: targets of the images.

        Returns:
            ``objectness`` (cross-entropy) and ``rpn_bbox`` (smooth L1), each divided by the number of drawn anchors.
        """
        chosen = anchors > IGNORED
        count = over_processes(chosen.sum(), least=1)
        objects = (anchors[chosen] >= 0).float()
        objectness = F.binary_cross_entropy_with_logits(output.logits[0, ..., 0][chosen], objects, reduction="sum")
        image, anchor, boxes = at_positives(anchors, pixel_boxes(targets.boxes, output.sides))
        numbers = flat([level.boxes for level in output.maps], 4)[image, anchor].float()
        wanted = self.coder.encode_single(boxes, output.grid.anchors[anchor])
        return {
            "objectness": objectness / count,
            "rpn_bbox": F.smooth_l1_loss(numbers, wanted, beta=BETA, reduction="sum") / count,
        }


def drawn(sampler: BalancedPositiveNegativeSampler, match: Tensor) -> Tensor:
    """Returns an assignment ``[B, N]`` with -2 for the candidates that torchvision's sampler does not draw from torch's generator."""
    labels = (match >= 0).float().masked_fill(match == IGNORED, -1.0)
    positive, negative = (torch.stack(part).bool() for part in sampler(list(labels)))
    return match.masked_fill(~(positive | negative), IGNORED)


def _size(level: Tensor) -> tuple[int, int]:
    return level.shape[-2], level.shape[-1]
