"""Localization distillation equals explicit loops over queries, edges and bins; its region equals the paper's and the released rule."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from tests.examples import batch_of, random_output, small_detector
from tests.methods.pairs import answering, build_for, context_for, distributed, stub
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import QueryOutput
from workbench.errors import IncompatibleError
from workbench.matching import match_targets
from workbench.methods.context import make_pairing
from workbench.methods.ld import LDConfig, Region, valuable_region
from workbench.methods.method import Method
from workbench.methods.registry import build_method

RULES: tuple[Region, ...] = ("diou", "official")


def outputs(layers: int = 2, images: int = 2, queries: int = 12, apart: float = 1.0) -> tuple[QueryOutput, QueryOutput, TargetBatch]:
    """The student's answer about the teacher's queries, the teacher's output, targets that some of its boxes are near."""
    answer = distributed(random_output(layers, (images, queries)), seed=10)
    teacher = distributed(random_output(2, (images, queries), seed=1), seed=11)
    targets = batch_of([2, 0, 3][:images], 3, torch.Generator().manual_seed(3))
    near = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.05, 0.02, 1.1, 0.9], [0.1, -0.05, 0.8, 1.2]])
    near[:, :2] *= apart
    for b in range(images):
        for g in range(int(targets.valid[b].sum())):
            box = targets.boxes[b, g]
            for k in range(3):
                teacher.boxes[:, b, 3 * g + k] = torch.cat([box[:2] + near[k, :2] * box[2:], box[2:] * near[k, 2:]])
    return answer, teacher, targets


def terms_of(answer: QueryOutput, teacher: QueryOutput, targets: TargetBatch, method: Method | None = None) -> dict[str, Tensor]:
    method = method or build_for("ld", answer, teacher)
    return method(answer, teacher, targets, context_for(method, targets, student=answering(answer)[0]))


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    p, q = ([math.exp(float(v) / temperature) for v in values] for values in (teacher, student))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    return temperature**2 * sum(t * math.log(t / s) for t, s in zip(p, q, strict=True)) / len(p)


def region(boxes: Tensor, wanted: Tensor, rule: Region = "diou") -> list[float]:
    """The valuable localization region of one image with loops: IoU with the target, 0 outside."""
    values = [0.0] * len(boxes)
    for g in range(len(wanted)):
        a, b = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted[g])
        iou = box_iou(a, b[None])[:, 0]
        distance = [math.dist(boxes[n, :2].tolist(), wanted[g, :2].tolist()) for n in range(len(boxes))]
        nearest = sorted(range(len(boxes)), key=lambda n: distance[n])[:9]
        overlaps = torch.stack([iou[n] for n in nearest])
        threshold = float(overlaps.mean() + overlaps.std())
        for n in range(len(boxes)):
            diagonal = math.dist(torch.minimum(a[n, :2], b[:2]).tolist(), torch.maximum(a[n, 2:], b[2:]).tolist())
            overlap = float(iou[n])
            if rule == "official":
                sides = [min(float(a[n, 2 + k]), float(b[2 + k])) - max(float(a[n, k]), float(b[k])) for k in range(2)]
                overlap = max(sides[0], 0.0) * max(sides[1], 0.0) / float(boxes[n, 2] * boxes[n, 3])
            diou = overlap - (distance[n] / diagonal) ** 2
            if 0.25 * threshold <= diou < threshold:
                values[n] = max(values[n], float(iou[n]))
    return values


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layers", [2, 1])
def test_every_term_equals_loops_over_queries_edges_and_bins(layers: int, rule: Region):
    # boxes as near as for the paper's rule lie above the released one's threshold
    answer, teacher, targets = outputs(layers, apart=1.0 if rule == "diou" else 6.0)
    pairs = [(0, 0, 1.0), (1, 1, 1.0)] if layers == 2 else [(0, 0, 0.5), (0, 1, 0.5)]
    match = match_targets(teacher.logits, teacher.boxes, targets)
    assert answer.box_distribution is not None and teacher.box_distribution is not None
    wanted, seen = dict.fromkeys(("main", "valuable", "classes"), 0.0), 0
    for s, t, share in pairs:
        found = [(b, n) for b in range(2) for n in range(12) if match[t, b, n] >= 0]
        for b in range(2):
            near = region(teacher.boxes[t, b], targets.boxes[b][targets.valid[b]], rule)
            for n in range(12):
                edges = sum(divergence(answer.box_distribution[s, b, n, e], teacher.box_distribution[t, b, n, e], 10.0) for e in range(4))
                if (b, n) in found:
                    wanted["main"] += share * float(answer.logits[s, b, n].sigmoid().max()) * edges / 4
                    wanted["classes"] += share * divergence(answer.logits[s, b, n], teacher.logits[t, b, n], 2.0) / len(found)
                # the released region keeps queries with a target
                if near[n] and (rule == "official" or (b, n) not in found):
                    wanted["valuable"] += share * near[n] * edges / 16
                    seen += 1
    assert seen > 2, "the case has a region to speak of"
    terms = terms_of(answer, teacher, targets, build_for("ld", answer, teacher, region=rule))
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_the_region_lies_around_targets_that_can_be_matched(rule: Region):
    _, teacher, targets = outputs(images=3)
    values = valuable_region(teacher.boxes, targets, 9, 0.25, rule)
    for layer in range(2):
        for b in range(3):
            wanted = region(teacher.boxes[layer, b], targets.boxes[b][targets.valid[b]], rule)
            assert values[layer, b].tolist() == pytest.approx(wanted, abs=1e-5)
    none = TargetBatch(targets.boxes, targets.labels, torch.zeros_like(targets.valid))
    assert not valuable_region(teacher.boxes, none, 9, 0.25, rule).any()


def test_the_released_region_divides_by_the_area_of_the_query_worked_by_hand():
    # a target of side 0.4 at the centre, and queries at the same place with sides 0.2, 0.4 and 0.8
    targets = TargetBatch(torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
    boxes = torch.tensor([[[0.5, 0.5, side, side] for side in (0.2, 0.4, 0.8)]])
    # IoUs 1/4, 1, 1/4: mean 0.5, standard deviation 0.433, threshold 0.933 and a quarter of it 0.233; the centres are equal
    assert valuable_region(boxes, targets, 3, 0.25)[0].tolist() == pytest.approx([0.25, 0.0, 0.25])
    # over the query's own area: 1, 1, 1/4. Only the largest stays below the threshold, and its value is the IoU
    assert valuable_region(boxes, targets, 3, 0.25, "official")[0].tolist() == pytest.approx([0.0, 0.0, 0.25])


@pytest.mark.parametrize(("rule", "inside"), [("diou", 0), ("official", 2)])
def test_a_query_with_a_target_is_in_the_released_region_alone(rule: Region, inside: int):
    # the queries of the case by hand; the last of them is by far the surest, so the target is its own
    targets = TargetBatch(torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
    boxes = torch.tensor([[[[0.5, 0.5, side, side] for side in (0.2, 0.4, 0.8)]]])
    answer = distributed(replace(random_output(1, (1, 3)), boxes=boxes), seed=10)
    sure = torch.tensor([-8.0, -8.0, 8.0]).view(1, 1, 3, 1).expand(-1, -1, -1, 3)
    teacher = distributed(replace(random_output(1, (1, 3), seed=1), boxes=boxes, logits=sure), seed=11)
    assert match_targets(teacher.logits, teacher.boxes, targets)[0, 0].tolist() == [-1, -1, 0]
    assert answer.box_distribution is not None and teacher.box_distribution is not None
    pairs = zip(answer.box_distribution[0, 0, inside], teacher.box_distribution[0, 0, inside], strict=True)
    wanted = 0.25 * sum(divergence(student, other, 10.0) for student, other in pairs) / 16
    terms = terms_of(answer, teacher, targets, build_for("ld", answer, teacher, region=rule, candidates=3))
    assert terms["valuable"].item() == pytest.approx(wanted, rel=1e-3)


def test_a_student_with_its_teachers_answers_has_nothing_to_learn():
    _, teacher, targets = outputs()
    terms = terms_of(teacher, teacher, targets)
    assert set(terms) == {"main", "valuable", "classes"}
    assert all(abs(value.item()) < 1e-5 for value in terms.values())


def test_without_targets_no_term_is_left():
    answer, teacher, _ = outputs()
    assert terms_of(answer, teacher, batch_of([0, 0], 3)) == {}


def test_gradients_reach_the_students_distributions_and_logits_but_not_through_the_weight_and_not_the_teacher():
    answer, teacher, targets = outputs()
    leaves = [v.clone().requires_grad_() for v in (answer.box_distribution, answer.logits, teacher.box_distribution) if v is not None]
    answer, teacher = replace(answer, box_distribution=leaves[0], logits=leaves[1]), replace(teacher, box_distribution=leaves[2])
    terms = terms_of(answer, teacher, targets)
    (terms["main"] + terms["valuable"]).backward()
    assert leaves[0].grad is not None and leaves[0].grad.any() and leaves[1].grad is None
    terms["classes"].backward()
    assert leaves[1].grad is not None and leaves[1].grad.any()
    assert leaves[2].grad is None


@given(order=st.permutations([0, 1, 2]))
def test_the_order_of_images_does_not_matter(order: list[int]):
    answer, teacher, targets = outputs(images=3)

    def moved(output: QueryOutput) -> QueryOutput:
        assert output.box_distribution is not None
        parts = {"logits": output.logits, "boxes": output.boxes, "box_distribution": output.box_distribution}
        return replace(output, **{name: value[:, order] for name, value in parts.items()})

    wanted = terms_of(answer, teacher, targets)
    shuffled = TargetBatch(targets.boxes[order], targets.labels[order], targets.valid[order])
    for name, value in terms_of(moved(answer), moved(teacher), shuffled).items():
        torch.testing.assert_close(value, wanted[name])


def test_a_detector_without_box_distributions_is_refused_by_name():
    detector = small_detector()
    with pytest.raises(IncompatibleError, match=r"'ld' needs box_distribution, which the student \(deformable_detr\) does not provide"):
        build_method(LDConfig(), detector, detector, make_pairing(detector, detector, None))  # pyright: ignore


def test_other_bins_or_another_kind_of_head_are_refused():
    answer, teacher, _ = outputs()
    for own, other, message in (
        (stub(answer), stub(distributed(teacher, bins=7)), r"has 5 bins .*the teacher \(stub\) 7"),
        (stub(answer, activation="softmax"), stub(teacher), "a softmax head and the teacher"),
    ):
        with pytest.raises(IncompatibleError, match=message):
            build_method(LDConfig(), own, other, make_pairing(own, other, None))  # pyright: ignore


def test_defaults_are_those_of_the_released_configuration():
    answer, teacher, _ = outputs()
    method = build_for("ld", answer, teacher)
    # HikariTJU/LD@4287990 configs/ld/ld_r18_gflv1_r101_fpn_coco_1x.py, mmdet/models/dense_heads/ld_head.py,
    # mmdet/core/bbox/assigners/atss_assigner.py
    assert {term: method.weight_of(term) for term in method.term_names} == {"main": 0.25, "valuable": 0.25, "classes": 10.0}
    switches = method.config.model_dump(exclude={"method", "weight", "weights", "balance"})
    # the region is the paper's; the released one is 'official'
    assert switches == {"temperature": 10.0, "class_temperature": 2.0, "candidates": 9, "lower": 0.25, "region": "diou"}


GOLDEN = {
    "main": 2.725663,
    "valuable": 0.3918592,
    "classes": 2.789055,
}


def test_a_seeded_case_keeps_its_numbers():
    terms = terms_of(*outputs())
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(GOLDEN, rel=1e-4)
