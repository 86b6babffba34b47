"""KD-DETR asks both decoders about the same points and equals explicit loops over them."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torchvision.ops import generalized_box_iou

from tests.examples import batch_of, images_of, random_output, small_detector
from tests.methods.pairs import answering, build_for, context_for, stub
from workbench.boxes import cxcywh_to_xyxy
from workbench.detectors.output import Queries, QueryOutput
from workbench.errors import IncompatibleError
from workbench.methods.context import make_pairing
from workbench.methods.kd_detr import KDDETR, KDDETRConfig
from workbench.methods.registry import build_method

TARGETS = batch_of([2, 0], 3, torch.Generator().manual_seed(0))


def outputs(student_layers: int = 2, width: int = 8) -> tuple[QueryOutput, QueryOutput]:
    """The student's answer about the teacher's queries, and the teacher's output."""
    return random_output(student_layers, (2, 5), width=width), random_output(2, (2, 5), seed=1)


def softmax(values: Tensor, temperature: float) -> list[float]:
    powers = [math.exp(float(v) / temperature) for v in values]
    return [power / sum(powers) for power in powers]


def wanted_loss(student: QueryOutput, teacher: QueryOutput, foreground: bool = True, temperature: float = 10.0) -> float:
    """The released loss, point by point: every student layer against the teacher's last."""
    points = [(b, n) for b in range(student.logits.shape[1]) for n in range(student.logits.shape[2])]
    weight = {(b, n): float(teacher.logits[-1, b, n].sigmoid().max()) if foreground else 1.0 for b, n in points}
    total = 0.0
    for layer in range(len(student.logits)):
        for b, n in points:
            p, q = softmax(teacher.logits[-1, b, n], temperature), softmax(student.logits[layer, b, n], temperature)
            divergence = sum(t * math.log(t / s) for t, s in zip(p, q, strict=True)) / len(p) * temperature**2
            box, other = student.boxes[layer, b, n], teacher.boxes[-1, b, n]
            l1 = sum(abs(float(box[i] - other[i])) for i in range(4)) / 4
            giou = float(generalized_box_iou(cxcywh_to_xyxy(box)[None], cxcywh_to_xyxy(other)[None]))
            total += weight[b, n] * (divergence + (5 * l1 + 2 * (1 - giou)) / sum(weight.values()))
    return total


@pytest.mark.parametrize("foreground", [True, False])
@pytest.mark.parametrize("student_layers", [1, 2])
def test_specific_points_equal_a_loop_over_layers_images_and_points(foreground: bool, student_layers: int):
    answer, teacher = outputs(student_layers)
    method = build_for("kd_detr", answer, teacher, general=0, foreground=foreground)
    student, asked = answering(answer)
    terms = method(answer, teacher, TARGETS, context_for(method, TARGETS, student=student))
    assert list(terms) == ["specific"]
    assert terms["specific"].item() == pytest.approx(wanted_loss(answer, teacher, foreground), rel=1e-4)
    assert torch.equal(asked[0].content, teacher.queries.content)


def test_general_points_go_to_both_decoders_and_are_compared():
    answer, teacher = outputs()
    method = build_for("kd_detr", answer, teacher, specific=False)
    (student, asked), (other, told) = answering(answer), answering(teacher)
    terms = method(answer, teacher, TARGETS, context_for(method, TARGETS, student=student, teacher=other))
    assert list(terms) == ["general"]
    assert terms["general"].item() == pytest.approx(wanted_loss(answer, teacher), rel=1e-4)
    assert asked[0].content.shape == (2, 300, 8) and torch.equal(asked[0].content, told[0].content)


def test_points_are_drawn_anew_in_every_step_and_again_in_a_resumed_one():
    answer, teacher = outputs()
    queries = Queries(torch.zeros(2, 5, 8), torch.randn(2, 5, 8), torch.rand(2, 5, 4), torch.full((2, 5), -1))
    teacher = replace(teacher, queries=queries)
    method, resumed, other = (build_for("kd_detr", answer, teacher, seed=seed) for seed in (0, 0, 1))
    assert isinstance(method, KDDETR) and isinstance(resumed, KDDETR) and isinstance(other, KDDETR)
    first = method.general_points(queries, 0)
    assert not first.content.any(), "what the family starts at zero stays zero"
    assert first.position is not None and first.reference is not None
    assert torch.equal(first.position[0], first.position[1]), "the same for all images"
    assert first.position.std().item() == pytest.approx(1.0, abs=0.05)
    assert (first.reference > 0).all() and (first.reference < 1).all() and first.reference.shape == (2, 300, 4)
    assert (first.source == -1).all()
    again = resumed.general_points(queries, 0)
    assert again.position is not None and torch.equal(again.position, first.position)
    for different in (method.general_points(queries, 1), other.general_points(queries, 0)):
        assert different.position is not None and not torch.equal(different.position, first.position)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    detector = small_detector()
    output = detector(*images_of((64, 96), (64, 80)))
    last = replace(output, logits=output.logits[-1:], boxes=output.boxes[-1:], states=output.states[-1:])
    torch.manual_seed(0)
    method = build_method(KDDETRConfig(), detector, detector, make_pairing(detector, detector, None))  # pyright: ignore
    assert list(method.parameters()) == []

    def decode(queries: Queries, context: Any) -> QueryOutput:
        answer = detector.decode(queries, context)
        return replace(answer, logits=answer.logits[-1:], boxes=answer.boxes[-1:])

    (same, _) = answering()
    same.decode = decode  # the last layer alone, because every layer learns from the teacher's last
    terms = method(last, output, TARGETS, context_for(method, TARGETS, student=same, teacher=detector))
    assert set(terms) == {"general", "specific"}
    assert all(abs(value.item()) < 1e-4 for value in terms.values())


def test_gradients_reach_the_students_answer_and_the_projection_of_queries_and_nothing_of_the_teacher():
    student, teacher = small_detector(), small_detector(seed=1, width=64)
    images = images_of((64, 96), (64, 80))
    with torch.no_grad():
        answer = teacher(*images)
    torch.manual_seed(0)
    method = build_method(KDDETRConfig(), student, teacher, make_pairing(student, teacher, None))  # pyright: ignore
    output = student(*images)
    terms = method(output, answer, TARGETS, context_for(method, TARGETS, student=student, teacher=teacher))
    torch.stack(list(terms.values())).sum().backward()
    assert {name: tuple(p.shape) for name, p in method.named_parameters() if name.endswith("weight")} == {
        "group.content.weight": (32, 64), "group.position.weight": (32, 64),
    }  # fmt: skip
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    heads: Any = student.model.class_embed
    assert heads[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


@given(order=st.permutations([0, 1, 2]))
def test_the_order_of_images_does_not_matter(order: list[int]):
    answer, teacher = random_output(2, (3, 5)), random_output(2, (3, 5), seed=1)
    method = build_for("kd_detr", answer, teacher, general=0)

    def value(a: QueryOutput, b: QueryOutput) -> Tensor:
        return method(a, b, TARGETS, context_for(method, TARGETS, student=answering(a)[0]))["specific"]

    def moved(output: QueryOutput) -> QueryOutput:
        return replace(output, logits=output.logits[:, order], boxes=output.boxes[:, order])

    torch.testing.assert_close(value(moved(answer), moved(teacher)), value(answer, teacher))


def test_classes_are_paired_by_name():
    answer, teacher = outputs()
    order = [2, 0, 1]
    mixed = replace(teacher, logits=teacher.logits[..., order])
    own = stub(answer)
    method = build_for("kd_detr", answer, teacher, general=0)
    other = stub(mixed, classes=[own.spec.classes[i] for i in order])
    by_name = build_method(method.config, own, other, make_pairing(own, other, None))
    values = [
        m(answer, t, TARGETS, context_for(m, TARGETS, student=answering(answer)[0]))["specific"]
        for m, t in ((method, teacher), (by_name, mixed))
    ]
    torch.testing.assert_close(values[0], values[1])


def test_softmax_heads_compare_no_object_too_and_weigh_by_the_best_real_class():
    answer = replace(random_output(1, (1, 3), classes=4), activation="softmax")
    teacher = replace(random_output(1, (1, 3), classes=4, seed=1), activation="softmax")
    method = build_for("kd_detr", answer, teacher, general=0, prediction_weights=(1.0, 0.0, 0.0))
    value = method(answer, teacher, TARGETS, context_for(method, TARGETS, student=answering(answer)[0]))["specific"]
    wanted = 0.0
    for n in range(3):
        p, q = softmax(teacher.logits[0, 0, n], 10.0), softmax(answer.logits[0, 0, n], 10.0)
        divergence = 100 * sum(t * math.log(t / s) for t, s in zip(p, q, strict=True)) / 4
        wanted += max(softmax(teacher.logits[0, 0, n], 1.0)[:3]) * divergence
    assert value.item() == pytest.approx(wanted, rel=1e-4)


def test_pairs_that_cannot_be_asked_the_same_are_refused():
    answer, teacher = outputs()
    pairs = [
        (stub(answer, activation="softmax"), stub(teacher), r"softmax head and the teacher \(stub\) a sigmoid head"),
        (stub(answer, provides=frozenset()), stub(teacher), "needs decode, queries, which the student"),
        (stub(answer), stub(teacher, provides=frozenset()), "needs decode, queries, which the teacher"),
        (stub(answer, reference_form="xyzr"), stub(teacher, reference_form="xyzr"), "references are xyzr. Set 'general: 0'"),
    ]
    for own, other, message in pairs:
        with pytest.raises(IncompatibleError, match=message):
            build_method(KDDETRConfig(), own, other, make_pairing(own, other, None))  # pyright: ignore


def test_defaults_are_those_of_the_released_code():
    config = KDDETRConfig()  # pyright: ignore
    # Myleswork/KD-DETR@e7dfccb tools/train.sh (--random_refpoints 300 --aux_refpoints), models/DAB_DETR/kd_loss.py (T, weight_dict)
    assert (config.general, config.specific, config.foreground, config.temperature) == (300, True, True, 10.0)
    assert config.prediction_weights == (1.0, 5.0, 2.0)
    with pytest.raises(ValidationError, match="no distillation points"):
        KDDETRConfig(general=0, specific=False)  # pyright: ignore


GOLDEN = 14.546535


def test_a_seeded_case_keeps_its_number():
    answer, teacher = outputs()
    method = build_for("kd_detr", answer, teacher, general=0)
    value = method(answer, teacher, TARGETS, context_for(method, TARGETS, student=answering(answer)[0]))["specific"]
    assert value.item() == pytest.approx(GOLDEN, rel=1e-4)
