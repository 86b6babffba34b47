"""DETRDistill's terms equal explicit loops over layers, images and queries, for the paper and for the released code."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from tests.examples import SPEC, batch_of, images_of, random_output, random_targets, small_detector
from tests.methods.pairs import step_context
from workbench.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.output import QueryOutput
from workbench.errors import ConfigError, IncompatibleError
from workbench.matching import match_targets
from workbench.methods.context import MethodContext, divide_layers, make_pairing
from workbench.methods.detrdistill.config import AssignmentConfig, ContrastiveConfig, DETRDistillConfig
from workbench.methods.detrdistill.detrdistill import DETRDistill
from workbench.methods.query_masks import selection_masks, visible_masks
from workbench.methods.registry import build_method
from workbench.methods.selection import query_quality

ALL = frozenset({"memory", "neck", "head", "queries", "states", "decode"})
PROFILES = ("paper", "official_code")


def stub(layers: int = 2, width: int = 8, classes: Sequence[str] = SPEC.classes, **changes: Any) -> Detector:
    """What a method asks of a detector besides its output."""
    spec = InputSpec(tuple(classes), SPEC.mean, SPEC.std)
    values = {"family": "stub", "provides": ALL, "activation": "sigmoid", "num_stages": layers, "num_layers": layers, "width": width,
              "spec": spec, "level_channels": lambda feature: {8: width}}  # fmt: skip
    return cast(Detector, SimpleNamespace(**values | changes))


def built(config: dict[str, Any], student: Detector, teacher: Detector, layer_map: Any = None) -> DETRDistill:
    config = {"assignment": None, "contrastive": None, **config}
    method = build_method(DETRDistillConfig.model_validate(config), student, teacher, make_pairing(student, teacher, layer_map))
    assert isinstance(method, DETRDistill)
    return method


def context_of(method: DETRDistill, targets: TargetBatch) -> MethodContext:
    return step_context(stub(), None, method.pairing, targets, 1.0, 0)


def terms_of(config: dict[str, Any], student: QueryOutput, teacher: QueryOutput, targets: TargetBatch, **pair: Any) -> dict[str, Tensor]:
    """Terms with stub detectors of the outputs' own sizes."""
    student_classes = pair.pop("student_classes", SPEC.classes)
    teacher_classes = pair.pop("teacher_classes", SPEC.classes)
    own = stub(len(student.logits), student.states.shape[-1], student_classes)
    other = stub(len(teacher.logits), teacher.states.shape[-1], teacher_classes)
    method = built(config, own, other, **pair)
    return method(student, teacher, targets, context_of(method, targets))


def shuffled(output: QueryOutput, order: Tensor) -> QueryOutput:
    return replace(output, logits=output.logits[:, :, order], boxes=output.boxes[:, :, order], states=output.states[:, :, order])


def clamped(boxes: Tensor) -> Tensor:
    return xyxy_to_cxcywh(cxcywh_to_xyxy(boxes).clamp(0, 1))


def bce(z: Tensor, t: Tensor) -> float:
    return float(F.binary_cross_entropy(z.double().sigmoid(), t.double(), reduction="sum"))


def entropy(t: Tensor) -> float:
    return sum(-float(p) * math.log(float(p)) - (1 - float(p)) * math.log(1 - float(p)) for p in t)


def pair_cost(student: QueryOutput, teacher: QueryOutput, k: int, t: int, image: int, with_class: bool = True) -> np.ndarray:
    """The cost of section 2.2.1 with loops: class 1 or 0, L1 5, GIoU 2."""
    z, b = student.logits[k, image], student.boxes[k, image]
    p, c = teacher.logits[t, image].sigmoid(), clamped(teacher.boxes[t, image])
    giou = generalized_box_iou(cxcywh_to_xyxy(b), cxcywh_to_xyxy(c))
    cost = np.zeros((len(z), len(p)))
    for i in range(len(z)):
        for j in range(len(p)):
            cost[i, j] = 5 * float((b[i] - c[j]).abs().sum()) - 2 * float(giou[i, j])
            cost[i, j] += bce(z[i], p[j]) if with_class else 0.0
    return cost


def pair_loss(student: QueryOutput, teacher: QueryOutput, k: int, t: int, image: int, i: int, j: int, with_class: bool) -> float:
    box, other = student.boxes[k, image, i], clamped(teacher.boxes[t, image, j])
    giou = float(generalized_box_iou(cxcywh_to_xyxy(box)[None], cxcywh_to_xyxy(other)[None]))
    loss = 5 * float((box - other).abs().sum()) + 2 * (1 - giou)
    if with_class:
        p = teacher.logits[t, image, j].sigmoid()
        loss += bce(student.logits[k, image, i], p) - entropy(p)
    return loss


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("negatives", ["box", "class_and_box"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(profile: str, negatives: str):
    detector = small_detector()
    output = detector(*images_of((64, 96), (64, 80)))
    # boxes inside the image, because the released code clamps those of the teacher
    output = replace(output, boxes=clamped(output.boxes) * 0.9 + 0.05)
    targets = batch_of([2, 1], 3)
    logits = {} if profile == "official_code" else {"negatives": negatives}
    terms = terms_of({"profile": profile, "logits": logits}, output, output, targets)
    assert terms and {"features"} < set(terms)
    for name, value in terms.items():
        assert abs(value.item()) < 1e-5, name


@pytest.mark.parametrize("profile", PROFILES)
def test_the_order_of_the_teachers_queries_does_not_matter(profile: str):
    student, teacher, targets = random_output(2, (2, 6)), random_output(2, (2, 6), seed=1), batch_of([3, 2], 3)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    terms = terms_of({"profile": profile}, student, teacher, targets)
    for name, value in terms_of({"profile": profile}, student, shuffled(teacher, order), targets).items():
        torch.testing.assert_close(value, terms[name], atol=1e-5, rtol=1e-5)
    for name, value in terms_of({"profile": profile}, shuffled(student, order), teacher, targets).items():
        torch.testing.assert_close(value, terms[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("queries", [(6, 6), (4, 7), (7, 4)], ids=str)
def test_the_joint_logits_term_equals_a_loop_over_images_with_scipy(queries: tuple[int, int]):
    student, teacher = random_output(2, (2, queries[0])), random_output(2, (2, queries[1]), seed=1)
    terms = terms_of({"profile": "official_code", "features": None}, student, teacher, batch_of([3, 0], 3))
    wanted = 0.0
    for layer in range(2):
        losses: list[float] = []
        for image in range(2):
            rows, columns = linear_sum_assignment(pair_cost(student, teacher, layer, layer, image))
            losses += [pair_loss(student, teacher, layer, layer, image, i, j, True) for i, j in zip(rows, columns, strict=True)]
        assert len(losses) == 2 * min(queries)
        wanted += sum(losses) / len(losses)
    assert set(terms) == {"logits"}
    assert terms["logits"].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("queries", [(6, 6), (4, 7), (7, 4)], ids=str)
@pytest.mark.parametrize("negatives", ["box", "class_and_box", "off"])
@pytest.mark.parametrize("cost_of_negatives", [None, "box", "class_and_box"])
def test_the_split_logits_terms_equal_a_loop_over_objects_and_the_rest(
    queries: tuple[int, int], negatives: str, cost_of_negatives: str | None
):
    student, teacher = random_output(2, (3, queries[0])), random_output(2, (3, queries[1]), seed=1)
    targets = batch_of([3, 0, 1], 3)
    switch = {"negative_cost": cost_of_negatives} if cost_of_negatives else {}
    terms = terms_of({"logits": {"negatives": negatives, **switch}, "features": None}, student, teacher, targets)
    own = match_targets(teacher.logits, teacher.boxes, targets)
    positive_term = negative_term = 0.0
    for layer in range(2):
        positives: list[float] = []
        rest: list[float] = []
        for image in range(3):
            cost = pair_cost(student, teacher, layer, layer, image)
            objects, others = np.flatnonzero(own[layer, image] >= 0), np.flatnonzero(own[layer, image] < 0)
            assert len(objects) == [3, 0, 1][image]
            rows, columns = linear_sum_assignment(cost[:, objects])
            positives += [pair_loss(student, teacher, layer, layer, image, i, objects[j], True) for i, j in zip(rows, columns, strict=True)]
            free = np.setdiff1d(np.arange(queries[0]), rows)
            both = negatives == "class_and_box"
            # the profile, which is the paper's, takes the box alone
            cost = pair_cost(student, teacher, layer, layer, image, with_class=cost_of_negatives == "class_and_box")
            for i, j in zip(*linear_sum_assignment(cost[np.ix_(free, others)]), strict=True):
                rest.append(pair_loss(student, teacher, layer, layer, image, free[i], others[j], both))
        positive_term += sum(positives) / len(positives)
        negative_term += sum(rest) / len(rest)
    assert terms["logits_positive"].item() == pytest.approx(positive_term, rel=1e-4)
    if negatives == "off":
        assert set(terms) == {"logits_positive"}
    else:
        assert terms["logits_negative"].item() == pytest.approx(negative_term, rel=1e-4)


def test_two_queries_and_one_object_worked_by_hand():
    # one layer, one image, one class; teacher query 1 sits on the target, teacher query 0 does not
    target = TargetBatch(torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
    base = random_output(1, (1, 2), classes=1)
    teacher = replace(
        base,
        logits=torch.tensor([-3.0, 0.0]).view(1, 1, 2, 1),
        boxes=torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]).view(1, 1, 2, 4),
    )
    student = replace(
        base,
        logits=torch.tensor([0.0, -1.0]).view(1, 1, 2, 1),
        boxes=torch.tensor([[0.6, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.4]]).view(1, 1, 2, 4),
    )
    terms = terms_of({"features": None}, student, teacher, target, student_classes=["a"], teacher_classes=["a"])
    # positive: student 0 half overlaps teacher 1: L1 0.1, IoU = 0.02 / 0.06, hull 0.06 without a rest; equal class logits cost 0
    assert terms["logits_positive"].item() == pytest.approx(5 * 0.1 + 2 * (1 - 1 / 3), rel=1e-4)
    # negative, box only: student 1 holds teacher 0 in a box twice as high: L1 0.2, IoU = GIoU = 0.5
    assert terms["logits_negative"].item() == pytest.approx(5 * 0.2 + 2 * 0.5, rel=1e-4)


def test_negatives_are_matched_by_the_box_whatever_their_classes_worked_by_hand():
    # one layer, one image without targets, one class: the student's boxes lie near the teacher's 0 and 1, but have the classes of 1 and 0
    base = random_output(1, (1, 2), classes=1)
    teacher, student = (
        replace(base, logits=torch.tensor(logits).view(1, 1, 2, 1), boxes=torch.tensor(boxes).view(1, 1, 2, 4))
        for logits, boxes in (
            ([4.0, -4.0], [[0.3, 0.5, 0.2, 0.2], [0.7, 0.5, 0.2, 0.2]]),
            ([-4.0, 4.0], [[0.4, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2]]),
        )
    )
    one = {"student_classes": ["a"], "teacher_classes": ["a"]}
    # by the box: L1 0.1, IoU 0.02 / 0.06, a hull without a rest, on either side
    near = 5 * 0.1 + 2 * (1 - 1 / 3)
    # with the class: 0.4 at (0.4, 0.5) goes to 0.7, L1 0.3, nothing of 0.08 shared, 0.02 of a hull of 0.1 between them
    far = 5 * 0.3 + 2 * (1 + 0.02 / 0.1)
    for cost, wanted in (("box", near), ("class_and_box", far)):
        terms = terms_of({"features": None, "logits": {"negative_cost": cost}}, student, teacher, batch_of([0], 1), **one)
        assert terms["logits_negative"].item() == pytest.approx(wanted, rel=1e-4)


def test_a_student_layer_learns_from_the_teacher_layers_of_its_group():
    student, teacher, targets = random_output(2, (2, 5)), random_output(4, (2, 5), seed=1), batch_of([3, 1], 3)
    method = built({}, stub(2), stub(4))
    assert method.pairing.layer_map == ((0, 1), (2, 3)) and method.pairing.last_layers() == (1, 3)
    terms = terms_of({"features": None}, student, teacher, targets)
    parts = {"logits_positive": 0.0, "logits_negative": 0.0}
    for k, group in enumerate(((0, 1), (2, 3))):
        for t in group:
            one = replace(student, logits=student.logits[[k]], boxes=student.boxes[[k]], states=student.states[[k]])
            other = replace(teacher, logits=teacher.logits[[t]], boxes=teacher.boxes[[t]], states=teacher.states[[t]])
            for name, value in terms_of({"features": None}, one, other, targets).items():
                parts[name] += value.item() / 2
    for name, value in parts.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4)
    last = terms_of({"features": None, "logits": {"layers": "last"}}, student, teacher, targets)
    one = replace(student, logits=student.logits[[1]], boxes=student.boxes[[1]], states=student.states[[1]])
    other = replace(teacher, logits=teacher.logits[2:], boxes=teacher.boxes[2:], states=teacher.states[2:])
    for name, value in terms_of({"features": None}, one, other, targets).items():
        assert last[name].item() == pytest.approx(value.item(), rel=1e-5)


@given(student=st.integers(1, 12), teacher=st.integers(1, 12))
def test_layers_are_divided_evenly_in_order_and_the_last_teaches_the_last(student: int, teacher: int):
    groups = divide_layers(student, teacher)
    flat = [layer for group in groups for layer in group]
    assert len(groups) == student and all(groups) and flat == sorted(flat)
    assert groups[-1][-1] == teacher - 1
    counts = [len(group) for group in groups] if student <= teacher else [flat.count(layer) for layer in range(teacher)]
    assert max(counts) - min(counts) <= 1 and set(flat) == set(range(teacher))


def test_depths_without_a_whole_ratio_are_divided_unless_a_map_is_declared():
    assert make_pairing(stub(2), stub(3), None).layer_map == ((0,), (1, 2))
    assert make_pairing(stub(4), stub(2), None).layer_map == ((0,), (0,), (1,), (1,))
    assert make_pairing(stub(3), stub(6), None).layer_map == ((0, 1), (2, 3), (4, 5))
    declared = make_pairing(stub(2), stub(3), ((0, 1), (2,)))
    assert declared.pairs() == ([0, 0, 1], [0, 1, 2])
    for wrong in (((0,),), ((0,), (3,)), ((0,), ()), ((0,), (-1,))):
        with pytest.raises(ConfigError, match="layer_map"):
            make_pairing(stub(2), stub(3), wrong)


def quality_of(output: QueryOutput, targets: TargetBatch, layer: int, image: int, query: int, rule: str, gamma: float = 0.5) -> float:
    """Section 2.3 by hand."""
    score = output.logits[layer, image, query].double().sigmoid()
    valid = targets.valid[image]
    boxes = targets.boxes[image][valid]
    if rule == "official_code":
        if not len(boxes):
            return float(score.max())
        iou = box_iou(cxcywh_to_xyxy(output.boxes[layer, image, query])[None], cxcywh_to_xyxy(boxes))
        return float(score.max() * iou.max())
    target = int(match_targets(output.logits, output.boxes, targets)[layer, image, query])
    if target < 0:
        return 0.0
    iou = box_iou(cxcywh_to_xyxy(output.boxes[layer, image, query])[None], cxcywh_to_xyxy(targets.boxes[image, target])[None])
    return float(score[targets.labels[image, target]]) ** gamma * float(iou) ** (1 - gamma)


@pytest.mark.parametrize("rule", PROFILES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0])
def test_quality_is_its_formula(rule: str, gamma: float):
    teacher = random_output(2, (3, 5))
    # a prediction that hits, so that an IoU is not small
    targets = random_targets([2, 0, 3], 3)
    targets[0].boxes[0] = teacher.boxes[0, 0, 2]
    targets[2].valid[1] = False
    batch = TargetBatch.of(targets)
    method = built({}, stub(), stub())
    found = query_quality(cast(Any, rule), gamma, teacher, [0, 1], batch, context_of(method, batch))
    assert found.shape == (2, 3, 5)
    for layer in range(2):
        for image in range(3):
            for query in range(5):
                wanted = quality_of(teacher, batch, layer, image, query, rule, gamma)
                assert found[layer, image, query].item() == pytest.approx(wanted, abs=1e-5)
    assert ((found > 0).sum(-1) == torch.tensor([2, 0, 2])).all() or rule == "official_code" or gamma < 1


@pytest.mark.parametrize("rule", PROFILES)
@pytest.mark.parametrize("counts", [[0, 0], [2, 0]])
def test_quality_in_an_image_without_targets_is_nothing_or_the_score(rule: str, counts: list[int]):
    teacher, targets = random_output(1, (2, 4)), batch_of(counts, 3)
    method = built({}, stub(1), stub(1))
    found = query_quality(cast(Any, rule), 0.5, teacher, [0], targets, context_of(method, targets))
    wanted = torch.zeros(4) if rule == "paper" else teacher.logits[0, 1].sigmoid().amax(-1)
    torch.testing.assert_close(found[0, 1], wanted)


def test_equation_nine_with_one_map_equals_the_loop_over_queries():
    student, teacher, targets = random_output(2, (2, 5)), random_output(2, (2, 5), seed=1), batch_of([3, 2], 3)
    for layers, chosen in (("all", [0, 1]), ("last", [1])):
        terms = terms_of({"logits": None, "features": {"feature": "memory", "layers": layers}}, student, teacher, targets)
        total, cells = 0.0, 0
        (own,), (other,) = student.memory, teacher.memory
        for image in range(2):
            for y in range(4):
                for x in range(6):
                    if own.padding[image, y, x]:
                        continue
                    cells += 1
                    a, b = own.features[image, :, y, x], other.features[image, :, y, x]
                    for layer in chosen:
                        for query in range(5):
                            psi = float(b @ teacher.states[layer, image, query])
                            q = quality_of(teacher, targets, layer, image, query, "paper")
                            # q / (M d) |psi (F - F')|^2, mean over the layers
                            total += q / (5 * 8 * len(chosen)) * psi**2 * float((b - a).square().sum())
        assert cells == 2 * 24 - 4
        assert terms["features"].item() == pytest.approx(total / cells, rel=1e-4)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_released_mask_equals_a_loop_over_the_hundred_best_query_class_pairs(mask_padding: bool):
    teacher, targets = random_output(2, (3, 50), classes=3), batch_of([2, 0, 3], 3)
    method = built({"profile": "official_code", "features": {"mask_padding": mask_padding}}, stub(), stub())
    config = method.config.features
    assert config is not None
    (level,) = teacher.neck
    masks = selection_masks(config.query_mask, teacher, level, [0, 1], context_of(method, targets))
    assert masks.shape == (2, 3, 4, 6)
    for layer in range(2):
        for image in range(3):
            score = teacher.logits[layer, image].sigmoid()
            pairs = sorted(((float(score[n, c]), n) for n in range(50) for c in range(3)), reverse=True)[:100]
            raw = torch.zeros(4, 6)
            for s, n in pairs:
                q = s
                if targets.valid[image].any():
                    boxes = targets.boxes[image][targets.valid[image]]
                    q *= float(box_iou(cxcywh_to_xyxy(teacher.boxes[layer, image, n])[None], cxcywh_to_xyxy(boxes)).max())
                raw += q * F.cosine_similarity(level.features[image], teacher.states[layer, image, n][:, None, None], dim=0)
            raw = raw.clamp(min=0.01).masked_fill(level.padding[image] & mask_padding, 0.01)
            torch.testing.assert_close(masks[layer, image], raw / raw.max(), atol=1e-4, rtol=1e-4)


def test_the_released_mask_lies_in_zero_to_one_and_reaches_one_in_every_image_and_level():
    shapes = ((8, 4, 6), (16, 2, 3))
    teacher, targets = random_output(2, (3, 6), levels=shapes), batch_of([2, 0, 3], 3)
    method = built({"profile": "official_code", "features": {"mask_padding": True}}, stub(), stub())
    assert method.config.features is not None
    for level in teacher.neck:
        # what padded cells hold must not take part in the maximum
        features = level.features.masked_fill(level.padding[:, None], 1e6)
        level = replace(level, features=features)
        masks = selection_masks(method.config.features.query_mask, teacher, level, [0, 1], context_of(method, targets))
        assert (masks > 0).all() and (masks <= 1).all()
        inside = masks.masked_fill(level.padding, 0)
        assert torch.equal(inside.flatten(2).amax(-1), torch.ones(2, 3))


def test_a_released_mask_without_any_quality_is_one_everywhere():
    teacher, targets = random_output(1, (1, 4)), batch_of([1], 3)
    targets.boxes[0, 0] = torch.tensor([0.0, 0.0, 0.0, 0.0])  # overlaps nothing
    method = built({"profile": "official_code"}, stub(1), stub(1))
    assert method.config.features is not None
    masks = selection_masks(method.config.features.query_mask, teacher, teacher.neck[0], [0], context_of(method, targets))
    assert torch.equal(masks, torch.ones_like(masks))


def test_masks_to_look_at_are_the_root_of_equation_nines_and_the_released_ones_as_they_are_of_levels_as_wide_as_the_queries():
    teacher, targets = random_output(2, (2, 5)), batch_of([3, 2], 3, torch.Generator().manual_seed(0))
    targets.boxes[:, 0] = teacher.boxes[1, :, 0]
    (level,) = teacher.memory
    wide = replace(level, features=level.features.repeat(1, 2, 1, 1))
    teacher = replace(teacher, memory=(wide, level))
    paper, released = (built({"profile": profile}, stub(), stub()) for profile in PROFILES)
    assert paper.config.features is not None and released.config.features is not None
    context = context_of(paper, targets)
    ((found, masks),) = visible_masks(paper.config.features.query_mask, teacher, [1], context)
    assert found is level and masks.shape == (1, 2, 4, 6) and (masks > 0).all()
    for image, y, x in ((0, 0, 0), (0, 3, 5), (1, 2, 1)):
        cell = level.features[image, :, y, x]
        total = sum(
            quality_of(teacher, targets, 1, image, query, "paper") * float(cell @ teacher.states[1, image, query]) ** 2 / 5
            for query in range(5)
        )
        assert masks[0, image, y, x].item() == pytest.approx(total**0.5, rel=1e-4)
    ((_, masks),) = visible_masks(released.config.features.query_mask, teacher, [0, 1], context)
    assert torch.equal(masks, selection_masks(released.config.features.query_mask, teacher, level, [0, 1], context))


@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_released_feature_term_is_the_mean_of_masked_squared_errors_summed_over_layers_and_levels(mask_padding: bool):
    shapes = ((8, 4, 6), (16, 2, 3))
    student, teacher = random_output(2, (2, 6), levels=shapes), random_output(2, (2, 6), levels=shapes, seed=1)
    targets = batch_of([2, 1], 3)
    config = {"profile": "official_code", "logits": None, "features": {"mask_padding": mask_padding}}
    method = built(config, stub(), stub())
    assert method.config.features is not None
    wanted = 0.0
    for own, other in zip(student.neck, teacher.neck, strict=True):
        for layer in range(2):
            (psi,) = selection_masks(method.config.features.query_mask, teacher, other, [layer], context_of(method, targets))
            difference = (psi[:, None] * (other.features - own.features)).square()
            counted = ~(own.padding & mask_padding)[:, None].expand_as(difference)
            wanted += difference[counted].mean().item()
    assert terms_of(config, student, teacher, targets)["features"].item() == pytest.approx(wanted, rel=1e-4)


def test_a_uniform_mask_is_the_plain_mean_squared_error_of_real_cells():
    student, teacher = random_output(1, (2, 4)), random_output(1, (2, 4), seed=1)
    terms = terms_of({"logits": None, "features": {"mask": "uniform"}}, student, teacher, batch_of([1, 0], 3))
    (own,), (other,) = student.memory, teacher.memory
    inside = ~own.padding[:, None].expand_as(own.features)
    assert terms["features"].item() == pytest.approx(F.mse_loss(own.features[inside], other.features[inside]).item(), rel=1e-5)


@pytest.mark.parametrize("mask", ["product", "cosine", "uniform"])
def test_what_padded_cells_hold_does_not_matter(mask: str):
    student, teacher, targets = random_output(1, (2, 4)), random_output(1, (2, 4), seed=1), batch_of([1, 2], 3)
    config = {"logits": None, "features": {"mask": mask}}
    before = terms_of(config, student, teacher, targets)["features"]

    def dirty(output: QueryOutput) -> QueryOutput:
        level = output.memory[0]
        return replace(output, memory=(replace(level, features=level.features.masked_fill(level.padding[:, None], 77.0)),))

    for pair in ((dirty(student), teacher), (student, dirty(teacher)), (dirty(student), dirty(teacher))):
        torch.testing.assert_close(terms_of(config, *pair, targets)["features"], before)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("counts", [[0, 0], [2, 0]])
def test_images_without_targets_work_in_every_term(profile: str, counts: list[int]):
    student, teacher = random_output(2, (2, 5)), random_output(2, (2, 5), seed=1)
    terms = terms_of({"profile": profile}, student, teacher, batch_of(counts, 3))
    assert all(torch.isfinite(value) for value in terms.values())
    # a term without eligible targets is left out, which is not the same as one that teaches nothing
    assert ("logits_positive" in terms) == (profile == "paper" and counts != [0, 0])


@pytest.mark.parametrize("profile", PROFILES)
def test_classes_are_paired_by_name(profile: str):
    student, teacher, targets = random_output(2, (2, 5)), random_output(2, (2, 5), seed=1), batch_of([3, 2], 3)
    wanted = terms_of({"profile": profile}, student, teacher, targets)
    order = [2, 0, 1]
    other = replace(teacher, logits=teacher.logits[..., order])
    names = [SPEC.classes[i] for i in order]
    for name, value in terms_of({"profile": profile}, student, other, targets, teacher_classes=names).items():
        torch.testing.assert_close(value, wanted[name])
    # a teacher that knows more
    more = replace(other, logits=torch.cat([torch.full_like(other.logits[..., :1], 5.0), other.logits], -1))
    for name, value in terms_of({"profile": profile}, student, more, targets, teacher_classes=["other", *names]).items():
        torch.testing.assert_close(value, wanted[name])


def test_a_class_that_the_teacher_does_not_know_is_refused_by_name():
    with pytest.raises(IncompatibleError, match=r"does not know 'dog'.*'cat'"):
        make_pairing(stub(classes=["cat", "dog"]), stub(classes=["cat"]), None)


@pytest.mark.parametrize("profile", PROFILES)
def test_gradients_reach_the_students_outputs_and_nothing_of_the_teacher(profile: str):
    student, teacher = random_output(2, (2, 5)), random_output(2, (2, 5), seed=1)
    targets = batch_of([2, 1], 3, torch.Generator().manual_seed(0))
    targets.boxes[:, 0] = teacher.boxes[0, :, 0]  # an image whose targets no query overlaps has no mask
    feature = "memory" if profile == "paper" else "neck"

    def leaf(output: QueryOutput) -> tuple[QueryOutput, list[Tensor]]:
        level = getattr(output, feature)[0]
        leaves = [v.clone().requires_grad_() for v in (output.logits, output.boxes, output.states, level.features)]
        changed = replace(output, logits=leaves[0], boxes=leaves[1], states=leaves[2], **{feature: (replace(level, features=leaves[3]),)})
        return changed, leaves

    student, own = leaf(student)
    teacher = replace(teacher, logits=teacher.logits.clone())
    teacher_parameters = [teacher.logits, teacher.boxes, teacher.states, *(level.features for level in teacher.memory + teacher.neck)]
    terms = terms_of({"profile": profile}, student, teacher, targets)
    torch.stack(list(terms.values())).sum().backward()
    logits, boxes, states, features = (value.grad for value in own)
    assert logits is not None and logits.abs().sum(-1).gt(0).any()
    assert boxes is not None and boxes.abs().sum(-1).gt(0).all(), "every student query is taught a box"
    assert features is not None
    inside = ~getattr(student, feature)[0].padding
    # the released code counts padded cells
    reached = features.abs().sum(1) > 0
    assert reached[inside].all() and reached[~inside].all() == (profile == "official_code")
    assert states is None, "student states carry no term"
    assert all(value.grad is None for value in teacher_parameters)


def test_the_mask_carries_no_gradient_even_when_the_teacher_does():
    student, teacher, targets = random_output(1, (1, 4)), random_output(1, (1, 4), seed=1), batch_of([2], 3)
    for mask in ("product", "cosine"):
        states, logits = teacher.states.clone().requires_grad_(), teacher.logits.clone().requires_grad_()
        live = replace(teacher, states=states, logits=logits)
        term = terms_of({"logits": None, "features": {"mask": mask}}, student, live, targets)["features"]
        assert not term.requires_grad


def test_different_widths_meet_in_an_adapter_that_is_trained_and_is_no_part_of_the_student():
    student, teacher, targets = random_output(1, (2, 4), width=8), random_output(1, (2, 4), width=16, seed=1), batch_of([2, 1], 3)
    own, other = stub(1, 8), stub(1, 16)
    torch.manual_seed(0)
    method = built({"logits": None}, own, other)
    assert {name: tuple(p.shape) for name, p in method.named_parameters()} == {
        "adaptor.convolutions.8.weight": (16, 8, 1, 1), "adaptor.convolutions.8.bias": (16,),
    }  # fmt: skip
    method(student, teacher, targets, context_of(method, targets))["features"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert list(built({"logits": None}, stub(1, 8), stub(1, 8)).parameters()) == []
    assert not hasattr(own, "adaptor")


def test_auto_takes_memory_where_both_have_it_else_the_neck():
    without = stub(provides=ALL - {"memory"})
    assert built({}, stub(), stub()).notes[0].startswith("detrdistill compares memory level of stride 8 ")
    assert built({}, without, stub()).notes[0].startswith("detrdistill compares neck level of stride 8 ")
    with pytest.raises(IncompatibleError, match=r"needs memory, which the student \(stub\) does not provide"):
        built({"features": {"feature": "memory"}}, without, stub())
    with pytest.raises(IncompatibleError, match=r"needs states, which the teacher \(stub\) does not provide"):
        built({}, stub(), stub(provides=ALL - {"states"}))
    assert built({"features": {"mask": "uniform"}}, stub(), stub(provides=ALL - {"states"})).config.needs == {"memory|neck|head", "queries"}


def test_a_softmax_student_of_a_sigmoid_teacher_is_refused_for_logits_and_served_for_features():
    student = stub(activation="softmax")
    with pytest.raises(IncompatibleError, match="softmax student"):
        built({}, student, stub())
    assert built({"logits": None}, student, stub()).term_names == ("features",)


def test_a_sigmoid_student_of_a_softmax_teacher_learns_the_probabilities_without_no_object():
    student, targets = random_output(1, (1, 4)), batch_of([2], 3)
    teacher = replace(random_output(1, (1, 4), classes=4, seed=1), activation="softmax")
    probability = teacher.logits.softmax(-1)[..., :-1]
    as_sigmoid = replace(teacher, logits=torch.logit(probability), activation="sigmoid")
    config = {"profile": "official_code", "features": None}
    term = terms_of(config, student, teacher, targets)["logits"]
    torch.testing.assert_close(term, terms_of(config, student, as_sigmoid, targets)["logits"], atol=1e-5, rtol=1e-5)


def test_levels_pair_by_stride_and_a_pair_without_a_common_one_is_refused():
    student = random_output(1, (1, 4), levels=((8, 4, 6), (16, 2, 3)))
    teacher = random_output(1, (1, 4), levels=((16, 2, 3), (32, 1, 2)), seed=1)
    targets = batch_of([1], 3)
    config = {"logits": None, "features": {"mask": "uniform"}}
    term = terms_of(config, student, teacher, targets)["features"]
    own, other = student.memory[1].features[..., :-1], teacher.memory[0].features[..., :-1]
    assert term.item() == pytest.approx(F.mse_loss(own, other).item(), rel=1e-5)
    with pytest.raises(IncompatibleError, match=r"strides \[8, 16\].*\[32\].*share none"):
        terms_of(config, student, replace(teacher, memory=teacher.memory[1:]), targets)
    taller = random_output(1, (1, 4), levels=((16, 3, 3),))
    with pytest.raises(IncompatibleError, match=r"stride 16.*\(2, 3\).*\(3, 3\)"):
        terms_of(config, student, taller, targets)


GOLDEN: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "paper": ({}, {"logits_positive": 12.844945907592773, "logits_negative": 9.967779159545898, "features": 2.2303121089935303}),
    "paper with the class in the cost of negatives": (
        {"logits": {"negative_cost": "class_and_box"}},
        {"logits_positive": 12.844945907592773, "logits_negative": 10.532159805297852, "features": 2.2303121089935303},
    ),
    "official_code": ({"profile": "official_code"}, {"logits": 12.500836372375488, "features": 0.6093258261680603}),
    "official_code in groups": (
        {"profile": "official_code", "depth": "groups", "features": {"mask_padding": True}},
        {"logits": 12.40080451965332, "features": 1.8665639162063599},
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_a_seeded_case_keeps_its_numbers(case: str):
    student, teacher = random_output(2, (2, 5), seed=10), random_output(4, (2, 7), seed=11)
    targets = batch_of([3, 1], 3, torch.Generator().manual_seed(12))
    config, golden = GOLDEN[case]
    terms = terms_of(config, student, teacher, targets)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(golden, rel=1e-4)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_names_that_are_announced_are_those_that_come(profile: str):
    student, teacher, targets = random_output(2, (2, 5)), random_output(2, (2, 5), seed=1), batch_of([2, 1], 3)
    for change in ({}, {"logits": None}, {"features": None}, {"logits": {"negatives": "off"}} if profile == "paper" else {}):
        method = built({"profile": profile} | change, stub(), stub())
        assert tuple(method(student, teacher, targets, context_of(method, targets))) == method.term_names


def test_a_profile_sets_every_switch_and_a_switch_can_be_set_apart():
    code = DETRDistillConfig(profile="official_code")
    assert code.logits is not None and code.features is not None
    assert (code.logits.split, code.logits.negatives) == (False, "class_and_box")
    assert code.features.model_dump(exclude={"gamma"}) == {
        "feature": "neck", "mask": "cosine", "quality": "official_code", "layers": "all", "mask_padding": False, "adaptor": "auto",
    }  # fmt: skip
    assert (code.assignment, code.contrastive) == (AssignmentConfig(assign_source="student", reference="student"), ContrastiveConfig())
    assert code.depth == "first" and DETRDistillConfig().depth == "groups"
    paper = DETRDistillConfig().logits
    assert paper is not None and (code.logits.negative_cost, paper.negative_cost) == ("class_and_box", "box")
    assert DETRDistillConfig().assignment == AssignmentConfig() and DETRDistillConfig().contrastive is None
    changed = DETRDistillConfig.model_validate({"profile": "official_code", "features": {"mask": "product"}})
    assert changed.features is not None and (changed.features.mask, changed.features.quality) == ("product", "official_code")
    assert DETRDistillConfig.model_validate(code.model_dump(mode="json")) == code


def test_the_papers_cost_of_negatives_is_left_out_where_none_is_matched_by_itself():
    for settings in ({"split": False, "negatives": "class_and_box"}, {"negatives": "off"}):
        logits = DETRDistillConfig.model_validate({"logits": settings}).logits
        assert logits is not None and logits.negative_cost == "class_and_box"


@pytest.mark.parametrize(("config", "message"), [
    ({"logits": None, "features": None, "assignment": None}, "nothing to distil"),
    ({"logits": {"split": False}}, "trains class_and_box"),
    ({"logits": {"split": False, "negatives": "class_and_box", "negative_cost": "box"}}, "one cost for every query"),
    ({"features": {"gamma": 1.5}}, "less than or equal to 1"),
    ({"features": {"mask": "squared"}}, "'product', 'cosine' or 'uniform'"),
    ({"weight": -1}, "greater than or equal to 0"),
    ({"balance": {"featurs": 1.0}}, "featurs"),
    ({"balance": -0.5}, "greater than or equal to 0"),
])  # fmt: skip
def test_an_impossible_configuration_is_refused_with_the_reason(config: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        DETRDistillConfig.model_validate(config)
