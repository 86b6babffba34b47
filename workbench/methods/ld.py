"""Implements LD (Zheng et al., CVPR 2022), localization distillation of box distributions."""

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, iou_and_giou
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DenseOutput, DetectorOutput, Queries, dense_output, probability, query_output
from workbench.detectors.query_detector import QueryDetector
from workbench.detectors.whole_batch import over_processes, sum_over_processes
from workbench.errors import IncompatibleError
from workbench.methods.context import LayerPairs, MethodContext, Pairing
from workbench.methods.extra_group import TeacherQueries
from workbench.methods.kd_detr import softened_divergence
from workbench.methods.ld_dense import check_grids, dense_terms, released_region
from workbench.methods.method import BaseMethodConfig, Method

Region = Literal["diou", "official"]


class LDConfig(BaseMethodConfig, frozen=True):
    """Configures LD, which distils the distributions of box edges.

    The values are those released for GFL: HikariTJU/LD@4287990, configs/ld/ld_r18_gflv1_r101_fpn_coco_1x.py with the defaults of
    mmdet/models/dense_heads/ld_head.py (ld 0.25 and ld_vlr 0.25 at T 10, kd 10 at T 2; kd outside the main region 0).
    """

    published_weights: ClassVar[dict[str, float]] = {"main": 0.25, "valuable": 0.25, "classes": 10.0}
    method: Literal["ld"] = "ld"
    """Selects the method."""
    temperature: float = Field(10.0, gt=0)
    """Temperature of the distributions over edge distances."""
    class_temperature: float = Field(2.0, gt=0)
    """Temperature of the class distributions."""
    candidates: int = Field(9, ge=2)
    """Number of queries nearest to a target whose IoUs set its threshold (ATSS); number of anchors of each level for dense detectors."""
    lower: float = Field(0.25, ge=0, lt=1)
    """Share of that threshold at which the valuable localization region begins."""
    region: Region = "diou"
    """How the valuable localization region is measured. ``diou`` takes DIoU (paper) and leaves out queries with a target; ``official`` is
    the released code, whose overlap is divided by the area of the query's own box in place of the union, and which keeps queries with a
    target. Dense detectors always take the released region.
    """

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return tuple(self.published_weights)

    @property
    def needs(self) -> frozenset[str]:
        """See ``BaseMethodConfig``."""
        return frozenset({"queries|dense_logits", "box_distribution"})

    @property
    def needs_student(self) -> frozenset[str]:
        """See ``BaseMethodConfig``. The teacher's queries, if it has any, go through the student's decoder."""
        return self.needs | {"decode|dense_logits"}


class LD(Method[DetectorOutput]):
    """LD on a pair of dense detectors that regress boxes as distributions (GFL) or of DETRs that do (D-FINE and its relatives).

    Dense detectors are the paper's own setting, and ``ld_dense`` says what the terms are there. The rest of this text is about DETRs.

    Queries take the place of the paper's dense locations. The teacher's queries also go through the student's decoder, so that both
    distributions are measured from the same query. The main region consists of the teacher's queries with a target (its own matching).
    The valuable localization region (VLR) consists of queries without a target whose box lies between ``lower`` and 1 times the ATSS
    threshold of a target, measured in DIoU (``region: official`` is the released code's other rule). The terms are summed over paired
    layers and have the released normalisers:

    - ``main``: T^2 KL of every edge's distribution, averaged over bins, times the student's best class score (no gradient through it),
      summed over edges and queries, divided by 4.
    - ``valuable``: the same over the VLR, times the IoU with the target, divided by 16.
    - ``classes``: T^2 KL of the class distributions over the main region, averaged over classes and queries.

    Both detectors must have the same number of bins. If a first layer moves the box before distances are measured (D-FINE), each detector
    measures from its own box.
    """

    name = "ld"
    Config = LDConfig
    terms = "main, valuable, classes"
    citation = "LD, CVPR 2022, in a DETR on queries in place of locations; released code HikariTJU/LD@4287990"
    config: LDConfig

    def __init__(self, config: LDConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        outputs = [detector.blank_output() for detector in (student, teacher)]
        bins = [_bins(output) for output in outputs]
        if bins[0] != bins[1] or student.activation != teacher.activation:
            raise IncompatibleError(
                f"method '{self.name}' needs equal box distributions and class heads of one kind, but the student "
                f"({student.family}) has {bins[0]} bins and a {student.activation} head and the teacher "
                f"({teacher.family}) {bins[1]} bins and a {teacher.activation} head."
            )
        self.group = None
        if isinstance(outputs[0], DenseOutput):
            check_grids(self.name, outputs[0], dense_output(outputs[1]))
        else:
            self.group = TeacherQueries(self.name, cast(QueryDetector, student), cast(QueryDetector, teacher))

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``. A term is left out if its region is empty in this batch."""
        if isinstance(student, DenseOutput):
            return self._dense(student, dense_output(teacher), targets, context)
        student, teacher = query_output(student), query_output(teacher)
        answer = context.query_student.decode(self.teacher_group(teacher, context), student.context)
        pairs = LayerPairs.of(self.pairing.layer_map, "mean")
        own, other = pairs.student, pairs.teacher
        share = torch.tensor(pairs.share, device=student.logits.device)[:, None, None]
        wanted = self.pairing.in_student_classes(teacher.logits, teacher.activation)[other]
        assert answer.box_distribution is not None and teacher.box_distribution is not None
        edges = softened_divergence(answer.box_distribution[own], teacher.box_distribution[other], self.config.temperature).sum(-1)
        classes = softened_divergence(answer.logits[own], wanted, self.config.class_temperature)
        main = (context.teacher_match(teacher)[other] >= 0).to(edges.device)
        region = valuable_region(teacher.boxes[other], targets, self.config.candidates, self.config.lower, self.config.region)
        if self.config.region == "diou":
            region = region.masked_fill(main, 0.0)
        score = probability(answer)[own].amax(-1).detach()
        found = over_processes(main.sum((1, 2), keepdim=True), least=1)
        terms: dict[str, Tensor] = {}
        if main.any():
            terms["main"] = sum_over_processes((edges * score * main * share).sum() / 4)
        if region.any():
            terms["valuable"] = sum_over_processes((edges * region * share).sum() / 16)
        if main.any():
            terms["classes"] = (classes * main * share / found).sum()
        return terms

    def _dense(self, student: DenseOutput, teacher: DenseOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        config, match = self.config, context.student_match
        if match is None:
            match = context.student.assign(student, targets)
        region = released_region(student, match, targets, config.candidates, config.lower)
        wanted = self.pairing.in_student_classes(teacher.logits, teacher.activation)
        return dense_terms(student, teacher, wanted, match, region, config.temperature, config.class_temperature)

    @property
    def sends_queries(self) -> bool:
        """See ``Method.sends_queries``."""
        return self.group is not None

    def teacher_group(self, teacher: DetectorOutput, context: MethodContext) -> Queries:
        """See ``Method.teacher_group``."""
        assert self.group is not None
        return self.group(query_output(teacher).queries)


def _bins(output: DetectorOutput) -> int:
    assert output.box_distribution is not None
    return output.box_distribution.shape[-1]


@torch.no_grad()
def valuable_region(boxes: Tensor, targets: TargetBatch, candidates: int, lower: float, region: Region = "diou") -> Tensor:
    """Returns, for every box, the IoU with its target if it lies in the valuable localization region, else 0: ``[..., B, N]``.

    The threshold of a target is the mean plus standard deviation of the IoUs of the ``candidates`` boxes with the nearest centres (ATSS).
    The region is where DIoU lies in [``lower`` times the threshold, threshold). DIoU is the overlap minus the squared distance of the
    centres over that of the corners of the hull, and the released code divides the overlap by the area of the box alone. Both measure in
    shares of the image's sides; the released code measures in pixels, which differs where the image is not square.

    Args:
        boxes: ``[..., B, N, 4]`` cxcywh.
        targets: targets of the B images; only matchable ones count.
        candidates: number of boxes per target.
        lower: lower bound of the region, as a share of the threshold.
        region: see ``LDConfig``.
    """
    if not targets.valid.shape[1]:
        return boxes.new_zeros(boxes.shape[:-1])
    near, wanted = boxes.float()[..., :, None, :], targets.boxes[:, None]
    a, b = cxcywh_to_xyxy(near), cxcywh_to_xyxy(wanted)
    iou, _ = iou_and_giou(a, b)
    distance = (near[..., :2] - wanted[..., :2]).square().sum(-1)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    overlap = iou
    if region == "official":
        shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
        overlap = shared / near[..., 2:].prod(-1).clamp(min=1e-12)
    diou = overlap - distance / hull.square().sum(-1).clamp(min=1e-12)
    nearest = distance.topk(min(candidates, distance.shape[-2]), dim=-2, largest=False).indices
    overlaps = iou.gather(-2, nearest)
    threshold = (overlaps.mean(-2) + overlaps.std(-2))[..., None, :]
    inside = (diou < threshold) & (diou >= lower * threshold) & targets.valid[:, None, :]
    return iou.where(inside, 0.0).amax(-1)
