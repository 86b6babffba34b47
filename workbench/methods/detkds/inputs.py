"""Makes the five inputs of DetKDS from the outputs of two detectors: pairs of tensors that a formula compares."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import DenseOutput, DetectorOutput, QueryOutput, TwoStageOutput, dense_output, probability
from workbench.detectors.two_stage_detector import TwoStageDetector
from workbench.matching import QUERY_COST, assign
from workbench.methods.classes import class_targets, pair_costs
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.detkds.distances import RELEASED
from workbench.methods.detkds.genotype import Genotype, Mode
from workbench.methods.detkds.knowledge import Knowledge
from workbench.methods.detkds.operations import chain
from workbench.methods.detkds.pooling import BoxPooling
from workbench.methods.fgd import foreground_and_background
from workbench.methods.maps import MapPair, boxes_in_cells
from workbench.methods.method import gather_queries


@dataclass(frozen=True)
class Compared:
    """One pair that a formula compares.

    Attributes:
        student: Values with gradient.
        teacher: Values of the same shape, without gradient.
        weight: ``[N]``, weights of the first axis; None if all rows count alike.
    """

    student: Knowledge
    teacher: Knowledge
    weight: Tensor | None = None


def whole_maps(pair: MapPair, mode: Mode) -> Compared:
    """Returns the maps of a level as they are."""
    return _maps(pair.student, pair.teacher, pair.inside, mode)


def foreground_maps(pair: MapPair, targets: TargetBatch, mode: Mode) -> tuple[Compared, Compared]:
    """Returns the maps of a level inside the targets, and outside of them.

    A cell of a target weighs 1 over the cells of the smallest target there; the cells outside share a weight of 1 (FGD).
    """
    foreground, background = foreground_and_background(targets, pair.inside)
    one, other = (_maps(pair.student * share, pair.teacher * share, pair.inside, mode) for share in (foreground, background))
    return one, other


def _maps(student: Tensor, teacher: Tensor, inside: Tensor, mode: Mode) -> Compared:
    """The released code knows no padding; without any, sums over everything are cheaper than masked ones."""
    kept = None if mode == "official" or bool(inside.all()) else inside
    return Compared(Knowledge(student, kept), Knowledge(teacher, kept))


def instances(pair: MapPair, targets: TargetBatch) -> Compared:
    """Returns the maps of a level pooled in the box of each target, ``[boxes, C, 14, 14]``, the boxes of all images in a row."""
    pool = target_pooling(pair, targets)
    return Compared(Knowledge(pool(pair.student)), Knowledge(pool(pair.teacher)))


def released_instance_loss(genotype: Genotype, pair: MapPair, targets: TargetBatch, seed: int) -> Tensor:
    """Computes the loss of a formula whose boxes are pooled behind the chain, at the places that they had before it (released code)."""
    generator, boxes = torch.Generator().manual_seed(seed), target_boxes(pair, targets)
    own, other = (chain(genotype, Knowledge(values), "official", generator).values for values in (pair.student, pair.teacher))
    pool = BoxPooling.of(boxes, counts_of(targets), (own.shape[2], own.shape[3]))
    with torch.no_grad():
        wanted = pool(other)
    return RELEASED[genotype.distance](pool(own), wanted).mean()


def target_pooling(pair: MapPair, targets: TargetBatch) -> BoxPooling:
    """Returns what pools maps of a level in the box of each target, rounded outwards to cells."""
    return BoxPooling.of(target_boxes(pair, targets), counts_of(targets), (pair.inside.shape[2], pair.inside.shape[3]))


def target_boxes(pair: MapPair, targets: TargetBatch) -> Tensor:
    """Returns ``[boxes, 4]``: the box of each matchable target in cells of a level, rounded outwards."""
    boxes = boxes_in_cells(targets, pair.inside)
    outwards = torch.cat([boxes[..., :2].floor(), boxes[..., 2:].ceil()], -1)
    image, place = targets.valid_on_host.nonzero(as_tuple=True)
    return outwards[image, place]


def counts_of(targets: TargetBatch) -> list[int]:
    """Returns the number of matchable targets of each image."""
    return targets.valid_on_host.sum(1).tolist()


def first_stage(output: DetectorOutput) -> DenseOutput:
    """Returns the dense predictions of a detector; those of a two-stage detector are what proposes its boxes."""
    return output.first if isinstance(output, TwoStageOutput) else dense_output(output)


def cell_logits(student: DetectorOutput, teacher: DetectorOutput, pairing: Pairing, mode: Mode) -> list[Compared]:
    """Returns the class probabilities of each level that both predict on, ``[B, A*C, h, w]`` for A candidates a cell.

    Those of a two-stage detector are its first stage's probabilities that there is an object.
    """
    own, other = first_stage(student), first_stage(teacher)
    padding = {level.stride: level.padding for level in own.neck}
    by_stride = {level.stride: level.logits for level in other.maps}
    pairs: list[Compared] = []
    for level in own.maps:
        if level.stride not in by_stride:
            continue
        wanted = by_stride[level.stride]
        if pairing.class_map is not None and not isinstance(teacher, TwoStageOutput):
            wanted = wanted.unflatten(1, (other.grid.shapes, -1))[:, :, list(pairing.class_map)].flatten(1, 2)
        outside = padding[level.stride][:, None]
        values = [logits.float().sigmoid() for logits in (level.logits, wanted.detach())]
        if mode == "corrected":
            values = [probabilities.masked_fill(outside, 0.0) for probabilities in values]
        pairs.append(_maps(values[0], values[1], ~outside, mode))
    return pairs


def answered(output: TwoStageOutput, detector: TwoStageDetector, boxes: Tensor, valid: Tensor | None) -> TwoStageOutput:
    """Returns what the second stage of a detector says of other boxes of the same images, instead of its own proposals.

    Args:
        output: what the detector said of the images; it holds what the second stage reads.
        detector: the detector.
        boxes: ``[B, N, 4]`` cxcywh in 0..1 of the un-padded images.
        valid: ``[B, N]``; False for boxes that only fill up the batch.
    """
    logits, best = detector.classify(boxes, output.context)
    return replace(output, logits=logits[None], boxes=best[None], proposals=boxes, valid=valid, class_boxes=None)


def proposal_logits(student: TwoStageOutput, teacher: TwoStageOutput, context: MethodContext, mode: Mode) -> Compared:
    """Returns the class probabilities of the same proposals without no-object, ``[B, C, N]``."""
    own, other = probability(student, -1).transpose(1, 2), context.teacher_probability(teacher)[-1].detach().transpose(1, 2)
    inside = torch.ones_like(own[:, :1], dtype=torch.bool) if teacher.valid is None else teacher.valid[:, None]
    # as many proposals as the image with the most has; the others are filled up, in either mode
    own, other = own.masked_fill(~inside, 0.0), other.masked_fill(~inside, 0.0)
    return _maps(own, other, inside, mode)


def cell_boxes(student: DetectorOutput, teacher: DetectorOutput) -> Compared:
    """Returns the boxes of all candidates in the images, ``[P, 4]``, weighted by the teacher's best class score.

    The levels are compared together, because a level without objects would otherwise count as much as one with many.
    """
    own, other = first_stage(student), first_stage(teacher)
    images, candidates = own.boxes.shape[1:3]
    valid = torch.ones(images, candidates, dtype=torch.bool, device=own.boxes.device) if own.valid is None else own.valid
    return _boxes(own.boxes[-1][valid], other.boxes[-1][valid], probability(other, -1).amax(-1)[valid])


def _boxes(student: Tensor, teacher: Tensor, weight: Tensor) -> Compared:
    """Boxes are cut to the image, as those of detections are."""
    own, other = (Knowledge(cxcywh_to_xyxy(boxes.float()).clamp(0, 1)) for boxes in (student, teacher.detach()))
    return Compared(own, other, weight.detach())


@dataclass(frozen=True)
class QueryPairs:
    """Queries of one decoder layer that are compared, P for each image.

    Attributes:
        student: ``[B, P]`` queries of the student's output.
        teacher: ``[B, P]`` queries of the teacher.
        student_layer: Layer of the student.
        teacher_layer: Layer of the teacher.
    """

    student: Tensor
    teacher: Tensor
    student_layer: int
    teacher_layer: int


def matched_queries(
    student: QueryOutput, teacher: QueryOutput, context: MethodContext, layers: list[tuple[int, int]]
) -> tuple[list[QueryPairs], Tensor]:
    """Matches the student's queries with the teacher's, one to one and for each pair of layers anew, with the cost of DETRDistill.

    Returns:
        The pairs of each pair of layers; and ``[pairs of layers, B, N_S]`` int64 on the CPU, the teacher query of each student query or -1.
    """
    own, other = [s for s, _ in layers], [t for _, t in layers]
    # the rule for no-object only decides who is matched with whom, not what is compared
    wanted = class_targets(teacher, student.activation, context, "1-max")[other]
    costs = pair_costs(student.logits[own], student.boxes[own], wanted, teacher.boxes[other], student.activation, QUERY_COST)
    mate = assign(costs[0] + costs[1])
    pairs: list[QueryPairs] = []
    for found, (s, t) in zip(mate, layers, strict=True):
        rows = (found >= 0).nonzero()[:, 1].view(len(found), -1).to(student.logits.device)
        columns = found[found >= 0].view(len(found), -1).to(student.logits.device)
        pairs.append(QueryPairs(rows, columns, s, t))
    return pairs, mate


def same_queries(teacher: QueryOutput, layers: list[tuple[int, int]]) -> list[QueryPairs]:
    """Pairs each of the teacher's queries with the student's answer to it."""
    images, queries = teacher.logits.shape[1:3]
    index = torch.arange(queries, device=teacher.logits.device).expand(images, -1)
    return [QueryPairs(index, index, s, t) for s, t in layers]


def query_logits(student: QueryOutput, teacher: QueryOutput, pairs: QueryPairs, context: MethodContext) -> Compared:
    """Returns the class probabilities of paired queries without no-object, ``[B, C, P]``."""
    own = gather_queries(probability(student, pairs.student_layer), pairs.student)
    other = gather_queries(context.teacher_probability(teacher)[pairs.teacher_layer], pairs.teacher)
    return Compared(Knowledge(own.transpose(1, 2)), Knowledge(other.detach().transpose(1, 2)))


def query_boxes(student: QueryOutput, teacher: QueryOutput, pairs: QueryPairs, context: MethodContext) -> Compared:
    """Returns the boxes of paired queries, ``[B * P, 4]``, weighted by the teacher's best class score."""
    own = gather_queries(student.boxes[pairs.student_layer], pairs.student).flatten(0, 1)
    other = gather_queries(teacher.boxes[pairs.teacher_layer], pairs.teacher).flatten(0, 1)
    score = context.teacher_probability(teacher)[pairs.teacher_layer].amax(-1).gather(1, pairs.teacher)
    return _boxes(own, other, score.flatten())
