"""D3ETR's terms equal explicit loops over layers, images, queries and cells, under both matchings."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from tests.examples import batch_of, images_of, random_output, small_detector
from tests.methods.pairs import answering, attended, build_for, context_for, stub
from tests.methods.test_detrdistill import bce, entropy
from workbench.boxes import cxcywh_to_xyxy
from workbench.detectors.output import Attentions, QueryOutput
from workbench.errors import IncompatibleError
from workbench.methods.context import make_pairing
from workbench.methods.d3etr import D3ETRConfig
from workbench.methods.method import Method
from workbench.methods.registry import build_method

TARGETS = batch_of([2, 0], 3, torch.Generator().manual_seed(0))
NAMES = ("prediction", "self_attention", "cross_attention")


def outputs(
    layers: tuple[int, int] = (2, 2), queries: tuple[int, int] = (5, 5), heads: tuple[int, int] = (2, 2)
) -> tuple[QueryOutput, QueryOutput, QueryOutput]:
    """The student's output, its answer about the teacher's queries, and the teacher's output."""
    student = attended(random_output(layers[0], (2, queries[0])), heads[0], seed=10)
    group = attended(random_output(layers[0], (2, queries[1]), seed=1), heads[0], seed=11)
    return student, group, attended(random_output(layers[1], (2, queries[1]), seed=2), heads[1], seed=12)


def maps(output: QueryOutput) -> Attentions:
    assert output.attentions is not None
    return output.attentions


def terms_of(student: QueryOutput, group: QueryOutput, teacher: QueryOutput, method: Method | None = None) -> dict[str, Tensor]:
    method = method or build_for("d3etr", student, teacher)
    return method(student, teacher, TARGETS, context_for(method, TARGETS, student=answering(group)[0]))


def prediction(student: QueryOutput, teacher: QueryOutput, s: int, t: int, b: int, i: int, j: int) -> tuple[float, float, float]:
    box, other = student.boxes[s, b, i], teacher.boxes[t, b, j]
    giou = float(generalized_box_iou(cxcywh_to_xyxy(box)[None], cxcywh_to_xyxy(other)[None]))
    p = teacher.logits[t, b, j].sigmoid()
    return bce(student.logits[s, b, i], p), 5 * float((box - other).abs().sum()), 2 * giou


def wanted_terms(student: QueryOutput, teacher: QueryOutput, pairs: list[tuple[int, int, float]], fixed: bool) -> dict[str, float]:
    """Loops over layer pairs (student, teacher, share), images and the queries of one matching."""
    wanted, inside = dict.fromkeys(NAMES, 0.0), ~teacher.memory[0].padding.flatten(1)
    images, heads = 2, maps(teacher).self_attention.shape[2]
    for s, t, share in pairs:
        for b in range(images):
            n, m = student.logits.shape[2], teacher.logits.shape[2]
            cost = np.zeros((n, m))
            for i in range(n):
                for j in range(m):
                    by_class, l1, giou = prediction(student, teacher, s, t, b, i, j)
                    cost[i, j] = by_class + l1 - giou
            rows, columns = (range(n), range(m)) if fixed else linear_sum_assignment(cost)
            mated = list(zip(rows, columns, strict=True))
            for i, j in mated:
                by_class, l1, giou = prediction(student, teacher, s, t, b, i, j)
                certain = entropy(teacher.logits[t, b, j].sigmoid())
                wanted["prediction"] += share * (by_class - certain + l1 + 2 - giou) / (len(mated) * images)
                for h in range(heads):
                    for i2, j2 in mated:
                        error = float(maps(student).self_attention[s, b, h, i, i2] - maps(teacher).self_attention[t, b, h, j, j2]) ** 2
                        wanted["self_attention"] += share * error / (heads * len(mated) ** 2 * images)
                    errors = (maps(student).cross_attention[s, b, h, i] - maps(teacher).cross_attention[t, b, h, j])[inside[b]].square()
                    wanted["cross_attention"] += share * float(errors.mean()) / (heads * images)
    return wanted


@pytest.mark.parametrize("layers", [(2, 2), (1, 2)], ids=["equal depth", "half the depth"])
@pytest.mark.parametrize("queries", [(5, 5), (3, 5), (5, 3)], ids=str)
def test_every_term_equals_loops_with_scipy(layers: tuple[int, int], queries: tuple[int, int]):
    student, group, teacher = outputs(layers, queries)
    pairs = [(0, 0, 1.0), (1, 1, 1.0)] if layers == (2, 2) else [(0, 0, 0.5), (0, 1, 0.5)]
    terms = terms_of(student, group, teacher)
    wanted = {f"adaptive_{name}": value for name, value in wanted_terms(student, teacher, pairs, fixed=False).items()}
    wanted |= {f"fixed_{name}": value for name, value in wanted_terms(group, teacher, pairs, fixed=True).items()}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(wanted, rel=1e-3)
    assert tuple(terms) == build_for("d3etr", student, teacher).term_names


def test_maps_are_averaged_over_heads_where_their_numbers_differ():
    student, group, teacher = outputs(heads=(2, 3))

    def averaged(output: QueryOutput) -> QueryOutput:
        own, cross = (values.mean(2, keepdim=True) for values in (maps(output).self_attention, maps(output).cross_attention))
        return replace(output, attentions=Attentions(own, cross))

    wanted = terms_of(averaged(student), averaged(group), averaged(teacher))
    for name, value in terms_of(student, group, teacher).items():
        torch.testing.assert_close(value, wanted[name])


def test_the_order_of_the_students_queries_does_not_matter():
    student, group, teacher = outputs()
    order = torch.tensor([3, 1, 4, 0, 2])
    own, cross = maps(student).self_attention[..., order, :][..., order], maps(student).cross_attention[..., order, :]
    moved = replace(student, logits=student.logits[:, :, order], boxes=student.boxes[:, :, order], attentions=Attentions(own, cross))
    wanted = terms_of(student, group, teacher)
    for name, value in terms_of(moved, group, teacher).items():
        torch.testing.assert_close(value, wanted[name])


@given(swap=st.booleans())
def test_the_order_of_images_does_not_matter(swap: bool):
    order = [1, 0] if swap else [0, 1]

    def moved(output: QueryOutput) -> QueryOutput:
        own, cross = maps(output).self_attention[:, order], maps(output).cross_attention[:, order]
        memory = tuple(replace(v, features=v.features[order], padding=v.padding[order]) for v in output.memory)
        return replace(
            output, logits=output.logits[:, order], boxes=output.boxes[:, order], memory=memory, attentions=Attentions(own, cross)
        )

    student, group, teacher = outputs()
    wanted = terms_of(student, group, teacher)
    for name, value in terms_of(moved(student), moved(group), moved(teacher)).items():
        torch.testing.assert_close(value, wanted[name])


def test_attention_to_padded_cells_does_not_matter():
    student, group, teacher = outputs()
    padded = teacher.memory[0].padding.flatten(1)[None, :, None, None]
    changed = Attentions(maps(teacher).self_attention, maps(teacher).cross_attention.where(~padded, 7.0))
    wanted = terms_of(student, group, teacher)
    for name, value in terms_of(student, group, replace(teacher, attentions=changed)).items():
        torch.testing.assert_close(value, wanted[name])


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    detector = small_detector()
    with detector.collecting_attentions():
        output = detector(*images_of((64, 96), (64, 80)))
        method = build_method(D3ETRConfig(), detector, detector, make_pairing(detector, detector, None))  # pyright: ignore
        assert list(method.parameters()) == []
        terms = method(output, output, TARGETS, context_for(method, TARGETS, student=detector))
    assert all(abs(value.item()) < 1e-4 for value in terms.values())


def test_gradients_reach_predictions_attention_and_the_projection_and_nothing_of_the_teacher():
    student, teacher = small_detector(), small_detector(seed=1, width=64)
    images = images_of((64, 96), (64, 80))
    with teacher.collecting_attentions(), torch.no_grad():
        answer = teacher(*images)
    method = build_method(D3ETRConfig(), student, teacher, make_pairing(student, teacher, None))  # pyright: ignore
    layer: Any = student.model.model.decoder.layers[1]
    reached: dict[str, dict[str, bool]] = {}
    for name in method.term_names:
        student.zero_grad()
        with student.collecting_attentions():
            terms = method(student(*images), answer, TARGETS, context_for(method, TARGETS, student=student))
        terms[name].backward()
        weights = {"self": layer.self_attn.q_proj, "cross": layer.encoder_attn.sampling_offsets, "class": student.model.class_embed[-1]}
        reached[name] = {key: module.weight.grad is not None and bool(module.weight.grad.any()) for key, module in weights.items()}
    for matching in ("adaptive", "fixed"):
        assert reached[f"{matching}_prediction"]["class"]
        assert reached[f"{matching}_self_attention"]["self"]
        assert reached[f"{matching}_cross_attention"]["cross"]
    taught = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {name for name, _ in method.named_parameters()} >= {"group.content.weight", "group.position.weight"}
    assert all(p.grad is None for p in teacher.parameters())


def test_pairs_that_lack_something_are_refused_by_name():
    student, _, teacher = outputs()
    everything = stub(student).provides
    other = attended(random_output(2, (2, 5), levels=((32, 1, 2),)))
    pairs = [
        (stub(student, provides=everything - {"attentions"}), stub(teacher), r"needs attentions, which the student \(stub\)"),
        (stub(student), stub(teacher, provides=everything - {"attentions"}), r"needs attentions, which the teacher \(stub\)"),
        (stub(student, provides=everything - {"decode"}), stub(teacher), "needs decode, which the student"),
        (stub(student, activation="softmax"), stub(teacher), "no_object: 1-max"),
        (stub(student), stub(other), r"levels of stride \[8\] and the teacher \(stub\) of stride \[32\]"),
    ]
    for own, theirs, message in pairs:
        with pytest.raises(IncompatibleError, match=message):
            build_method(D3ETRConfig(), own, theirs, make_pairing(own, theirs, None))  # pyright: ignore


def test_defaults_are_those_of_the_public_implementation():
    student, _, teacher = outputs()
    method = build_for("d3etr", student, teacher)
    # xingyitong1/TPRD@bb8ed01 projects/deformable_detr/cfg_distill/D3DETR/models/deformable_detr_r50_distll_r18.py
    assert {term: method.weight_of(term) for term in method.term_names} == {
        "adaptive_prediction": 1.0, "adaptive_self_attention": 10000.0, "adaptive_cross_attention": 1000.0,
        "fixed_prediction": 1.0, "fixed_self_attention": 10000.0, "fixed_cross_attention": 1000.0,
    }  # fmt: skip
    assert method.config.model_dump()["prediction_weights"] == (1.0, 5.0, 2.0)


GOLDEN = {
    "adaptive_prediction": 13.33609,
    "adaptive_self_attention": 0.1049226,
    "adaptive_cross_attention": 0.04574863,
    "fixed_prediction": 16.69259,
    "fixed_self_attention": 0.1053996,
    "fixed_cross_attention": 0.04699014,
}


def test_a_seeded_case_keeps_its_numbers():
    student, group, teacher = outputs()
    assert {name: value.item() for name, value in terms_of(student, group, teacher).items()} == pytest.approx(GOLDEN, rel=1e-4)
