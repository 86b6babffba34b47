"""Query-prior assignment, the contrastive term, selection, bounded negatives and mixed heads, against loops and formulas."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from tests.examples import SPEC, batch_of, images_of, random_output
from tests.families import tiny
from tests.methods.pairs import build_for, context_for, run, step_context
from workbench.boxes import cxcywh_to_xyxy, iou_and_giou
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.output import Queries, QueryOutput
from workbench.errors import ConfigError, IncompatibleError
from workbench.matching import match_targets
from workbench.methods.classes import class_divergence, class_targets
from workbench.methods.context import LayerPairs, Progress, make_pairing
from workbench.methods.detrdistill.config import DETRDistillConfig
from workbench.methods.registry import build_method
from workbench.methods.selection import SelectionConfig, query_quality, selected_queries

ALONE = {"logits": None, "features": None}
RULES = ("all", "positives", "top_k", "threshold", "random_k", "lowest_k")


def term_of(
    config: dict[str, Any], student: Detector, teacher: Detector, targets: TargetBatch, layer_map: Any = None
) -> tuple[Any, QueryOutput, QueryOutput, dict[str, Tensor]]:
    torch.manual_seed(0)
    pairing = make_pairing(student, teacher, layer_map)
    method: Any = build_method(DETRDistillConfig.model_validate(config), student, teacher, pairing)
    images = images_of((64, 96), (64, 80))
    output, answer = student(*images), teacher(*images)
    match = match_targets(output.logits, output.boxes, targets)
    context = step_context(student, teacher, pairing, targets, 3.0, 0, match)
    return method, output, answer, method(output, answer, targets, context)


def set_loss_by_hand(output: QueryOutput, match: Tensor, targets: TargetBatch, images: Any = None) -> float:
    """2 focal + 5 L1 + 2 (1 - GIoU), each over 3 objects, all layers (section 1 of the method's description)."""
    total = 0.0
    for layer in range(len(output.logits)):
        for image in range(output.logits.shape[1]):
            wanted = torch.zeros_like(output.logits[layer, image])
            for query, target in enumerate(match[layer, image].tolist()):
                if target < 0:
                    continue
                wanted[query, targets.labels[image, target]] = 1
                a, b = output.boxes[layer, image, query].detach(), targets.boxes[image, target]
                giou = iou_and_giou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))[1]
                total += 5 * float((a - b).abs().sum()) + 2 * float(1 - giou)
            total += 2 * float(sigmoid_focal_loss(output.logits[layer, image].detach(), wanted, 0.25, 2.0, "sum"))
    return total / 3


@pytest.mark.parametrize("source", ["teacher", "student"])
@pytest.mark.parametrize("reference", ["teacher", "student"])
def test_the_assignment_term_is_the_set_loss_of_the_teachers_queries_in_the_students_decoder(source: str, reference: str):
    student, teacher, targets = tiny("deformable_detr", 1), tiny("deformable_detr", 2), batch_of([2, 1], 3)
    config = {**ALONE, "assignment": {"assign_source": source, "reference": reference}}
    _, output, answer, terms = term_of(config, student, teacher, targets)
    queries = answer.queries
    if reference == "student":
        made: Any = student.model.model.reference_points  # pyright: ignore
        queries = replace(queries, reference=made(queries.position).sigmoid())
    group = student.decode(queries, output.context)
    judged = answer if source == "teacher" else group
    match = match_targets(judged.logits, judged.boxes, targets)
    assert terms["assignment"].item() == pytest.approx(set_loss_by_hand(group, match, targets), rel=1e-4)


def test_a_student_layer_takes_the_matching_of_the_last_teacher_layer_of_its_group():
    student, teacher, targets = tiny("deformable_detr", 1), tiny("deformable_detr", 2, decoder_layers=4), batch_of([2, 1], 3)
    _, output, answer, terms = term_of(ALONE, student, teacher, targets)
    match = match_targets(answer.logits, answer.boxes, targets)[[1, 3]]
    group = student.decode(answer.queries, output.context)
    assert terms["assignment"].item() == pytest.approx(set_loss_by_hand(group, match, targets), rel=1e-4)


def test_only_the_selected_queries_form_the_group_and_what_fills_it_up_costs_nothing():
    student, teacher, targets = tiny("deformable_detr", 1), tiny("deformable_detr", 2), batch_of([3, 1], 3)
    _, output, answer, terms = term_of({**ALONE, "selection": {"rule": "positives"}}, student, teacher, targets)
    match = match_targets(answer.logits, answer.boxes, targets)
    wanted = 0.0
    for image, count in enumerate([3, 1]):
        # each image with its own queries alone
        keep = (match[-1, image] >= 0).nonzero()[:, 0]
        assert len(keep) == count
        q = answer.queries
        assert q.position is not None and q.reference is not None
        chosen = Queries(q.content[:, keep], q.position[:, keep], q.reference[:, keep], q.source[:, keep])
        group = student.decode(chosen, output.context)
        one = replace(group, logits=group.logits[:, [image]], boxes=group.boxes[:, [image]])
        of_image = TargetBatch(targets.boxes[[image]], targets.labels[[image]], targets.valid[[image]])
        wanted += set_loss_by_hand(one, match[:, [image]][:, :, keep], of_image)
    assert terms["assignment"].item() == pytest.approx(wanted, rel=1e-3)


def test_no_gradient_of_the_group_reaches_the_teachers_queries():
    student, teacher, targets = tiny("deformable_detr", 1), tiny("deformable_detr", 2), batch_of([2, 1], 3)
    terms = term_of(ALONE, student, teacher, targets)[-1]
    terms["assignment"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_a_reference_of_the_students_own_needs_a_layer_for_it():
    adamixer = tiny("adamixer")
    with pytest.raises(IncompatibleError, match=r"needs reference_from_position, which the student \(adamixer\)"):
        term_of({**ALONE, "assignment": {"reference": "student"}}, adamixer, adamixer, batch_of([1, 1], 3))


def test_the_contrastive_term_is_the_formula_over_all_pairs_of_the_batch():
    student, teacher = random_output(2, (2, 5)), random_output(2, (2, 5), seed=1)
    targets = batch_of([2, 1], 3)
    config: dict[str, Any] = {"profile": "official_code", "features": None, "assignment": None, "contrastive": {"width": 16}}
    method: Any = build_for("detrdistill", student, teacher, **config)
    method.train()
    found = run(method, student, teacher, targets)["contrastive"].item()
    from workbench.methods.detrdistill.logits import logits_terms

    context = context_for(method, targets)
    _, mate = logits_terms(
        method.config.logits, method.pairs, student, teacher, selected_queries(SelectionConfig(), teacher, context), context, None
    )
    wanted = 0.0
    for layer in range(2):
        rows = [(image, i, int(mate[layer, image, i])) for image in range(2) for i in range(5)]
        u = method.contrastive.student(torch.stack([student.states[layer, b, i] for b, i, _ in rows]))
        v = method.contrastive.teacher(torch.stack([teacher.states[layer, b, j] for b, _, j in rows]))
        for r in range(len(rows)):
            similarity = torch.stack([F.cosine_similarity(v[r], u[k], dim=0) for k in range(len(rows))]) / 0.07
            wanted += float((torch.logsumexp(similarity, 0) - similarity[r]).detach()) / len(rows)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert method.weight_of("contrastive") == 0.2


def test_the_contrastive_term_is_left_out_where_no_two_pairs_are_there_to_tell_apart():
    student, teacher = random_output(1, (1, 1)), random_output(1, (1, 1), seed=1)
    config: dict[str, Any] = {"profile": "official_code", "features": None, "assignment": None}
    assert set(run(build_for("detrdistill", student, teacher, **config), student, teacher, batch_of([1], 3))) == {"logits"}
    with pytest.raises(ValidationError, match="contrastive compares the pairs of the logits part"):
        DETRDistillConfig.model_validate({"logits": None, "contrastive": {}})


def method_for(student: QueryOutput, teacher: QueryOutput, **config: Any) -> Any:
    return build_for("detrdistill", student, teacher, assignment=None, **config)


@pytest.mark.parametrize("rule", RULES)
def test_the_selection_is_its_rule_for_every_layer_and_image(rule: str):
    teacher, targets = random_output(2, (3, 8)), batch_of([3, 0, 1], 3)
    # whole images, so that every query overlaps one and no two qualities are equal
    targets = replace(targets, boxes=torch.full_like(targets.boxes, 0.5) + torch.tensor([0.0, 0.0, 0.5, 0.5]))
    context = context_for(method_for(teacher, teacher), targets, step=4)
    config = SelectionConfig.model_validate({"rule": rule, "k": 3, "threshold": 0.2})
    found = selected_queries(config, teacher, context)
    quality = query_quality("official_code", 0.5, teacher, [0, 1], targets, context)
    own = match_targets(teacher.logits, teacher.boxes, targets)
    for layer in range(2):
        for image in range(3):
            ranked = sorted(range(8), key=lambda i: float(quality[layer, image, i]))
            wanted: dict[str, set[int]] = {
                "all": set(range(8)),
                "positives": {i for i in range(8) if own[layer, image, i] >= 0},
                "top_k": set(ranked[-3:]),
                "lowest_k": set(ranked[:3]),
                "threshold": {i for i in range(8) if quality[layer, image, i] >= 0.2},
            }
            chosen = set(found[layer, image].nonzero()[:, 0].tolist())
            assert chosen == wanted[rule] if rule != "random_k" else len(chosen) == 3
    assert torch.equal(found, selected_queries(config, teacher, context))
    if rule == "random_k":
        context.progress = Progress(step=5, epoch=0, num_boxes=3.0)
        assert not torch.equal(found, selected_queries(config, teacher, context))
        before = torch.get_rng_state()
        selected_queries(config, teacher, context)
        assert torch.equal(before, torch.get_rng_state()), "dropout must draw as without it"


@given(rule=st.sampled_from(RULES), k=st.integers(1, 9), seed=st.integers(0, 50))
def test_queries_that_are_not_selected_teach_nothing(rule: str, k: int, seed: int):
    student, teacher = random_output(1, (2, 6), seed=seed), random_output(1, (2, 6), seed=seed + 1)
    targets = batch_of([2, 1], 3, torch.Generator().manual_seed(seed))
    method = method_for(student, teacher, selection={"rule": rule, "k": k, "threshold": 0.1})
    wanted = run(method, student, teacher, targets)
    left_out = ~selected_queries(method.config.selection, teacher, context_for(method, targets))
    if rule in ("top_k", "threshold", "lowest_k"):
        # what these rules rank by must stay as it is; states are not part of it
        changed = replace(teacher, states=torch.where(left_out[..., None], 9.0, teacher.states))
    else:
        boxes = torch.where(left_out[..., None], torch.tensor([0.9, 0.9, 0.05, 0.05]), teacher.boxes)
        own = match_targets(teacher.logits, boxes, targets)
        if not torch.equal(own, match_targets(teacher.logits, teacher.boxes, targets)):
            return
        changed = replace(teacher, boxes=boxes, states=torch.where(left_out[..., None], 9.0, teacher.states))
    for name, value in run(method, student, changed, targets).items():
        torch.testing.assert_close(value, wanted[name])


def test_the_selection_of_all_positives_is_the_positive_term_alone():
    student, teacher, targets = random_output(2, (2, 7)), random_output(2, (2, 7), seed=1), batch_of([2, 1], 3)
    everything = run(method_for(student, teacher), student, teacher, targets)
    positives = run(method_for(student, teacher, selection={"rule": "positives"}), student, teacher, targets)
    assert set(positives) == {"logits_positive", "features"}
    # the paper's quality is 0 without a target, so the mask is the same too
    for name, value in positives.items():
        torch.testing.assert_close(value, everything[name])


@pytest.mark.parametrize("k", [1, 3, 50])
def test_top_k_negatives_are_the_best_scored_queries_without_a_target(k: int):
    student, teacher, targets = random_output(1, (2, 9)), random_output(1, (2, 9), seed=1), batch_of([2, 1], 3)
    found = run(method_for(student, teacher, features=None, logits={"negatives": "top_k", "k": k}), student, teacher, targets)
    own = match_targets(teacher.logits, teacher.boxes, targets)[0]
    # a teacher that has only the positives and the k best of the others
    score = teacher.logits[0].sigmoid().amax(-1)
    kept = [
        [*(own[b] >= 0).nonzero()[:, 0].tolist(),
         *sorted((own[b] < 0).nonzero()[:, 0].tolist(), key=lambda i, b=b: -float(score[b, i]))[:k]]
        for b in range(2)
    ]  # fmt: skip
    losses: list[float] = []
    for b in range(2):
        few = replace(teacher, logits=teacher.logits[:, [b]][:, :, kept[b]], boxes=teacher.boxes[:, [b]][:, :, kept[b]])
        one = replace(student, logits=student.logits[:, [b]], boxes=student.boxes[:, [b]])
        of_image = TargetBatch(targets.boxes[[b]], targets.labels[[b]], targets.valid[[b]])
        terms = run(method_for(one, few, features=None), one, few, of_image)
        pairs = min(9 - int((own[b] >= 0).sum()), len(kept[b]) - int((own[b] >= 0).sum()))
        losses += [terms["logits_negative"].item()] * pairs
    assert found["logits_negative"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_matching_of_top_k_negatives_grows_with_k_and_not_with_the_teachers_queries(monkeypatch: pytest.MonkeyPatch):
    from workbench.methods.detrdistill import logits

    seen: list[tuple[int, ...]] = []
    both = logits.pair_costs
    monkeypatch.setattr(logits, "pair_costs", lambda *a: seen.extend({tuple(part.shape) for part in both(*a)}) or both(*a))
    targets = batch_of([3, 1], 3)
    for queries in (20, 60):
        student, teacher = random_output(1, (2, 20)), random_output(1, (2, queries), seed=1)
        run(method_for(student, teacher, features=None, logits={"negatives": "top_k", "k": 5}), student, teacher, targets)
        run(method_for(student, teacher, features=None), student, teacher, targets)
    assert seen == [(1, 2, 20, 8), (1, 2, 20, 20), (1, 2, 20, 8), (1, 2, 20, 60)]


def test_layers_pair_by_index_or_in_groups_and_add_up_or_are_averaged():
    student, teacher, targets = random_output(2, (2, 5)), random_output(4, (2, 5), seed=1), batch_of([2, 1], 3)
    mean = method_for(student, teacher, features=None)
    assert mean.pairs == LayerPairs([0, 0, 1, 1], [0, 1, 2, 3], [0.5] * 4)
    added = method_for(student, teacher, features=None, depth_reduce="sum")
    for name, value in run(added, student, teacher, targets).items():
        torch.testing.assert_close(value, 2 * run(mean, student, teacher, targets)[name])
    first = method_for(student, teacher, features=None, depth="first")
    assert first.pairs == LayerPairs([0, 1], [0, 1], [1.0, 1.0])
    early = replace(teacher, logits=teacher.logits[:2], boxes=teacher.boxes[:2], states=teacher.states[:2])
    wanted = run(method_for(student, early, features=None), student, early, targets)
    for name, value in run(first, student, teacher, targets).items():
        torch.testing.assert_close(value, wanted[name])


def test_a_student_deeper_than_its_teacher_cannot_pair_by_index():
    student, teacher = tiny("deformable_detr", 1, decoder_layers=3), tiny("deformable_detr", 2)
    with pytest.raises(ConfigError, match=r"the student has 3 decoder layers and the teacher 2.*layer_map"):
        term_of({"depth": "first"}, student, teacher, batch_of([1, 1], 3), layer_map=((0,), (0,), (1,)))


def test_teacher_boxes_are_cut_to_the_image_unless_the_switch_says_otherwise():
    student, base, targets = random_output(1, (1, 3)), random_output(1, (1, 3), seed=1), batch_of([1], 3)
    outside = replace(base, boxes=torch.tensor([0.0, 0.5, 0.4, 0.4]).repeat(1, 1, 3, 1))
    cut = replace(base, boxes=torch.tensor([0.1, 0.5, 0.2, 0.4]).repeat(1, 1, 3, 1))
    for clamp, wanted in ((True, cut), (False, outside)):
        config: dict[str, Any] = {"features": None, "logits": {"clamp_boxes": clamp, "split": False, "negatives": "class_and_box"}}
        plain: dict[str, Any] = {"features": None, "logits": {**config["logits"], "clamp_boxes": False}}
        found = run(method_for(student, outside, **config), student, outside, targets)["logits"]
        torch.testing.assert_close(found, run(method_for(student, wanted, **plain), student, wanted, targets)["logits"])


def test_an_adaptor_can_be_asked_for_where_widths_are_equal():
    student, teacher = random_output(1, (1, 3)), random_output(1, (1, 3), seed=1)
    assert list(method_for(student, teacher).parameters()) == []
    shapes = [tuple(p.shape) for p in method_for(student, teacher, features={"adaptor": "always"}).parameters()]
    assert shapes == [(8, 8, 1, 1), (8,)]


def softmaxed(output: QueryOutput) -> QueryOutput:
    return replace(output, activation="softmax")


def test_a_softmax_student_learns_the_distribution_of_a_softmax_teacher():
    student, teacher = softmaxed(random_output(1, (2, 5), classes=4)), softmaxed(random_output(1, (2, 5), classes=4, seed=1))
    targets = batch_of([2, 1], 3)
    config: dict[str, Any] = {"profile": "official_code", "features": None, "contrastive": None}
    found = run(method_for(student, teacher, **config), student, teacher, targets)["logits"]
    p, q = teacher.logits.double().softmax(-1), student.logits.double().softmax(-1)
    from scipy.optimize import linear_sum_assignment

    losses: list[float] = []
    for image in range(2):
        cost = torch.zeros(5, 5)
        parts = torch.zeros(5, 5)
        for i in range(5):
            for j in range(5):
                a, b = student.boxes[0, image, i], teacher.boxes[0, image, j]
                box = 5 * (a - b).abs().sum() + 2 * (1 - iou_and_giou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))[1])
                cost[i, j] = box - (p[0, image, j] * q[0, image, i].log()).sum()
                parts[i, j] = box + (p[0, image, j] * (p[0, image, j] / q[0, image, i]).log()).sum()
        losses += [float(parts[i, j]) for i, j in zip(*linear_sum_assignment(cost), strict=True)]
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@given(seed=st.integers(0, 1000), kept=st.permutations([0, 1, 2]), count=st.integers(1, 3))
def test_targets_for_a_softmax_head_are_distributions_in_the_students_classes(seed: int, kept: list[int], count: int):
    names = [SPEC.classes[i] for i in kept[:count]]
    for activation, classes in (("softmax", 4), ("sigmoid", 3)):
        teacher: Any = replace(random_output(1, (2, 4), classes=classes, seed=seed), activation=activation)
        teacher_side = _Classes(SPEC.classes)
        student_side = _Classes(tuple(names))
        pairing = make_pairing(student_side, teacher_side, None)  # pyright: ignore
        context = step_context(None, None, pairing, batch_of([1, 1], 3), 1.0, 0)  # pyright: ignore
        found = class_targets(teacher, "softmax", context, "1-max")
        assert found.shape[-1] == count + 1
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 2, 4))
        p = teacher.logits.softmax(-1) if activation == "softmax" else teacher.logits.sigmoid()
        wanted = p[..., kept[:count]]
        if activation == "softmax":
            torch.testing.assert_close(found[..., :-1], wanted)
        else:
            torch.testing.assert_close(found[..., -1], 1 - wanted.amax(-1))
            torch.testing.assert_close(found[..., :-1] * wanted.sum(-1, keepdim=True), wanted * wanted.amax(-1, keepdim=True))
        assert class_divergence((found + 1e-9).log(), found, "softmax").abs().max() < 1e-4


class _Classes:
    num_stages, provides = 1, frozenset({"queries"})

    def __init__(self, names: tuple[str, ...]):
        self.spec = InputSpec(names, SPEC.mean, SPEC.std)


GOLDEN = {"logits": 6.001621723175049, "contrastive": 5.24280309677124, "features": 4.3173112869262695, "assignment": 23.054718017578125}


def test_a_seeded_case_of_every_released_part_keeps_its_numbers():
    targets = batch_of([3, 1], 3, torch.Generator().manual_seed(12))
    terms = term_of({"profile": "official_code"}, tiny("deformable_detr", 1), tiny("deformable_detr", 2), targets)[-1]
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(GOLDEN, rel=1e-3)
