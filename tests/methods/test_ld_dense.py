"""LD on a pair of GFL detectors equals explicit loops over anchors, edges and bins; its region equals the released rule."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.examples import SPEC, batch_of, images_of, small_detector
from tests.families import tiny
from tests.methods.pairs import step_context, stub
from tests.teacher_cache.test_dense import both, setup_of
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.output import DenseOutput
from workbench.errors import IncompatibleError
from workbench.methods.context import Progress, TeacherAnswer, make_pairing
from workbench.methods.ld import LDConfig
from workbench.methods.ld_dense import released_region
from workbench.methods.method import Method
from workbench.methods.registry import build_method
from workbench.teacher_cache.fields import fields_of
from workbench.training.step import DistillStep

SIZES = ((64, 96), (64, 80))
BINS = 7


def pair(**changes: Any) -> tuple[Detector, Detector]:
    return tiny("gfl", 1), tiny("gfl", 2, **changes)


def built(student: Detector, teacher: Detector) -> Method:
    return build_method(LDConfig(), student, teacher, make_pairing(student, teacher, None))  # pyright: ignore[reportCallIssue]


def some_targets(*counts: int) -> TargetBatch:
    return batch_of(counts, len(SPEC.classes), torch.Generator().manual_seed(1))


def outputs(student: Detector, teacher: Detector) -> tuple[DenseOutput, DenseOutput]:
    images = images_of(*SIZES)
    own, other = student(*images), teacher(*images)
    assert isinstance(own, DenseOutput) and isinstance(other, DenseOutput)
    return own, other


def terms_of(student: Detector, teacher: Detector, targets: TargetBatch, method: Method | None = None) -> dict[str, Tensor]:
    method, (own, other) = method or built(student, teacher), outputs(student, teacher)
    return method(own, other, targets, step_context(student, teacher, method.pairing, targets, match=student.assign(own, targets)))


def divergence(student: Sequence[float], teacher: Sequence[float], temperature: float) -> float:
    p, q = ([math.exp(v / temperature) for v in values] for values in (teacher, student))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    return temperature**2 * sum(t * math.log(t / s) for t, s in zip(p, q, strict=True)) / len(p)


def overlap(a: list[float], b: list[float]) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a: list[float], b: list[float]) -> float:
    return overlap(a, b) / (area(a) + area(b) - overlap(a, b))


def region(output: DenseOutput, image: int, boxes: list[list[float]]) -> list[float]:
    """The valuable localization region of one image with loops: IoU with the target, 0 outside."""
    assert output.valid is not None
    anchors, grid = output.grid.anchors.tolist(), output.grid
    there = output.valid[image].nonzero()[:, 0].tolist()
    values = [0.0] * len(anchors)
    for box in boxes:
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        chosen: list[int] = []
        for level in range(len(grid.strides)):
            on = [n for n in there if int(grid.level[n]) == level]
            chosen += sorted(on, key=lambda n: math.dist(grid.centres[n].tolist(), middle))[:9]
        overlaps = torch.tensor([iou(anchors[n], box) for n in chosen])
        threshold = float(overlaps.mean() + overlaps.std())
        for n in there:
            a = anchors[n]
            diagonal = math.dist((min(a[0], box[0]), min(a[1], box[1])), (max(a[2], box[2]), max(a[3], box[3])))
            measure = overlap(a, box) / area(a) - (math.dist(grid.centres[n].tolist(), middle) / diagonal) ** 2
            if 0.25 * threshold <= measure < threshold:
                values[n] = max(values[n], iou(a, box))
    return values


def boxes_of(output: DenseOutput, targets: TargetBatch, image: int) -> list[list[float]]:
    pixels = cxcywh_to_xyxy(targets.boxes[image]) * output.sides[image].repeat(2)
    return pixels[targets.valid[image]].tolist()


def test_every_term_equals_loops_over_anchors_edges_and_bins():
    student, teacher = pair()
    targets = some_targets(2, 4)
    targets.valid[1, 0] = False
    with torch.no_grad():
        own, other = outputs(student, teacher)
    match = student.assign(own, targets)[0]
    assert own.box_distribution is not None and other.box_distribution is not None
    wanted, by_level = dict.fromkeys(("main", "valuable", "classes"), 0.0), [[], [], []]
    for b in range(2):
        near = region(own, b, boxes_of(own, targets, b))
        for n in range(match.shape[1]):
            edges = sum(
                divergence(own.box_distribution[0, b, n, e].tolist(), other.box_distribution[0, b, n, e].tolist(), 10.0) for e in range(4)
            )
            wanted["valuable"] += near[n] * edges / 16
            if match[b, n] >= 0:
                wanted["main"] += float(own.logits[0, b, n].sigmoid().max()) * edges / 4
                by_level[int(own.grid.level[n])].append(divergence(own.logits[0, b, n].tolist(), other.logits[0, b, n].tolist(), 2.0))
    assert sum(len(values) > 0 for values in by_level) > 1, "the case has positives on several levels"
    wanted["classes"] = sum(sum(values) / len(values) for values in by_level if values)
    terms = terms_of(student, teacher, targets)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(wanted, rel=1e-3)


def test_the_region_lies_where_the_released_measure_says():
    student, _ = pair()
    targets = some_targets(2, 4)
    own, _ = outputs(student, student)
    match = student.assign(own, targets)
    values = released_region(own, match, targets, 9, 0.25)
    for image in range(2):
        assert values[image].tolist() == pytest.approx(region(own, image, boxes_of(own, targets, image)), abs=1e-5)
    assert ((values > 0) & (match[0] >= 0)).any(), "positives are not left out"
    assert not values[match[0] == -2].any()
    held = replace(targets, regions=torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(2, 1, 4))
    ignored = student.assign(own, held)
    inside = released_region(own, ignored, held, 9, 0.25)
    assert torch.equal(inside > 0, (values > 0) & (ignored[0] >= 0)), "what the assignment ignores lies in no region"
    none = replace(targets, valid=torch.zeros_like(targets.valid))
    assert not released_region(own, student.assign(own, none), none, 9, 0.25).any()


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    student, _ = pair()
    terms = terms_of(student, student, some_targets(2, 4))
    assert set(terms) == {"main", "valuable", "classes"}
    assert all(abs(value.item()) < 1e-5 for value in terms.values())


def test_without_targets_no_term_is_left():
    assert terms_of(*pair(), some_targets(0, 0)) == {}


def test_gradients_reach_the_student_but_not_through_the_weight_and_not_the_teacher():
    student, teacher = (detector.train() for detector in pair())
    terms = terms_of(student, teacher, some_targets(2, 4))
    (terms["main"] + terms["valuable"]).backward(retain_graph=True)
    head, boxes = student.get_parameter("class_head.weight"), student.get_parameter("box_head.weight")
    assert head.grad is None and boxes.grad is not None and boxes.grad.any()
    terms["classes"].backward()
    assert head.grad is not None and head.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teachers_classes_are_found_by_name():
    student, teacher = pair()
    turned = InputSpec(SPEC.classes[::-1], SPEC.mean, SPEC.std)
    other = tiny("gfl", 2, spec=turned)
    other.load_state_dict({
        name: value.flip(0) if name.startswith("class_head") else value for name, value in teacher.state_dict().items()
    })  # fmt: skip
    targets = some_targets(2, 4)
    wanted = terms_of(student, teacher, targets)
    for name, value in terms_of(student, other, targets).items():
        torch.testing.assert_close(value, wanted[name])


def test_a_training_step_has_all_terms_and_outside_training_the_assignment_is_made_anew():
    student, teacher = pair()
    method, targets, images = built(student, teacher), some_targets(2, 4), images_of(*SIZES)
    with torch.no_grad():
        answer = TeacherAnswer(output=teacher(*images))
    step = DistillStep(student, [method], method.pairing)
    terms = step(*images, targets, progress=Progress(step=0, epoch=0, num_boxes=6.0), teacher=answer)
    assert set(terms.distillation) == {"ld.main", "ld.valuable", "ld.classes"}
    own = student(*images)
    anew = method(own, answer.output, targets, step_context(student, teacher, method.pairing, targets))
    assert all(torch.equal(value, terms.distillation[f"ld.{name}"]) for name, value in anew.items())


def test_a_cache_keeps_queries_for_a_student_that_is_asked_about_them_and_for_no_other():
    student, teacher = pair()
    method = built(student, teacher)
    fields = fields_of([method], student, teacher)
    assert (fields.dense_logits, fields.dense_distribution, fields.dense_boxes, fields.queries) == (True, True, False, False)
    detr, other = tiny("d_fine", 1), tiny("d_fine", 2)
    asked = built(detr, other)
    assert fields_of([asked], detr, other).queries and asked.sends_queries and not method.sends_queries


def test_terms_from_a_cache_are_those_of_the_live_teacher():
    student, teacher = pair()
    setup = setup_of(student, teacher, {"method": "ld"}, precision="fp32")
    method = setup.methods[0]
    for batch, cached, live in both(setup):
        own = student(batch.images, batch.padding)
        context = step_context(student, None, method.pairing, batch.targets, match=student.assign(own, batch.targets))
        wanted = method(own, live, batch.targets, context)
        found = method(own, cached.output(), batch.targets, context)
        assert set(found) == {"main", "valuable", "classes"}
        for name, value in found.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)


def test_pairs_that_cannot_be_compared_are_refused_by_name():
    gfl, detr = tiny("gfl"), tiny("d_fine")
    without = stub(detr.blank_output(), provides=detr.provides - {"decode"})  # pyright: ignore[reportArgumentType]
    for student, teacher, message in (
        (gfl, detr, "needs queries or dense_logits from both sides, but gfl and d_fine"),
        (detr, gfl, "needs queries or dense_logits from both sides, but d_fine and gfl"),
        (without, detr, r"needs decode or dense_logits, which the student \(stub\)"),
        (tiny("fcos"), gfl, r"needs box_distribution, which the student \(fcos\)"),
        (gfl, small_detector(), r"needs box_distribution, which the teacher \(deformable_detr\)"),
        (gfl, tiny("gfl", reg_max=4), rf"has {BINS} bins .*the teacher \(gfl\) 5"),
        (gfl, tiny("gfl", extra_levels=2), r"strides \[4, 8, 16\] with 1 a cell and the teacher has strides \[4, 8, 16, 32\]"),
    ):
        with pytest.raises(IncompatibleError, match=message):
            built(student, teacher)
