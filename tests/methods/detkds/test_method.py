"""DetKDS as a method: its inputs on DETRs, dense detectors and pairs of both, its configuration and what it refuses."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou, roi_align

from tests.examples import batch_of, images_of, random_output
from tests.families import tiny
from tests.flows import TINY, tiny_recipe
from tests.methods.detkds import loops
from tests.methods.detkds.loops import Entries
from tests.methods.pairs import answering, build_for, context_for, run, step_context
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.output import DenseOutput, DetectorOutput, TwoStageOutput, dense_output
from workbench.errors import ConfigError, IncompatibleError
from workbench.methods.context import make_pairing
from workbench.methods.detkds.config import DetKDSConfig
from workbench.methods.detkds.detkds import DetKDS
from workbench.methods.detkds.genotype import NAMED, Genotype
from workbench.methods.registry import build_method, find_method

LEVELS = ((8, 6, 8), (16, 3, 4))
NONE = {"global_": None, "foreground": None}
SIZES = ((64, 96), (64, 80))


def outputs(images: int = 3, width: int = 4, student_width: int | None = None):
    own = random_output(2, (images, 5), width=student_width or width, levels=LEVELS)
    return own, random_output(2, (images, 7), width=width, levels=LEVELS, seed=1)


def alone(field: str, **formula: Any) -> dict[str, Any]:
    return NONE | {field: formula}


def built(student: Detector, teacher: Detector, **config: Any) -> DetKDS:
    torch.manual_seed(0)
    method = build_method(DetKDSConfig.model_validate(config), student, teacher, make_pairing(student, teacher, None))
    assert isinstance(method, DetKDS)
    return method


def terms_of(method: DetKDS, student: Detector, own: DetectorOutput, other: DetectorOutput, targets: TargetBatch, step: int = 0):
    return method(own, other, targets, step_context(student, None, method.pairing, targets, step=step))


# feature maps


@pytest.mark.parametrize(("named", "method", "factor", "rel"), [
    ("fitnet", "fitnet", 1.0, 1e-5), ("cwd", "cwd", 1.0, 1e-5), ("pkd", "pkd", 2.0, 0.03),  # PKD divides the variance by n - 1
])  # fmt: skip
@pytest.mark.parametrize("student_width", [4, 6])
def test_a_point_of_the_space_that_is_a_method_made_by_hand_gives_its_numbers(
    named: str, method: str, factor: float, rel: float, student_width: int
):
    student, teacher = outputs(student_width=student_width)
    targets = batch_of([2, 0, 1], 3)
    config = DetKDSConfig.of({NAMED[named]: 1.0}).model_dump(exclude={"method"})
    (found,) = run(build_for("detkds", student, teacher, **config), student, teacher, targets).values()
    (wanted,) = run(build_for(method, student, teacher), student, teacher, targets).values()
    assert float(found.detach()) == pytest.approx(factor * float(wanted.detach()), rel=rel)


def test_a_student_with_its_teachers_maps_has_nothing_to_learn_in_corrected_mode_and_cannot_be_done_in_official_mode():
    _, teacher = outputs()
    targets = batch_of([2, 0, 1], 3)
    corrected = run(build_for("detkds", teacher, teacher), teacher, teacher, targets)
    assert set(corrected) == {"global", "foreground", "background"} and all(abs(float(value)) < 1e-6 for value in corrected.values())
    official = run(build_for("detkds", teacher, teacher, mode="official"), teacher, teacher, targets)
    assert float(official["global"]) == 0 and float(official["foreground"]) > 1e-4  # two masks


@pytest.mark.parametrize("mode", ["official", "corrected"])
def test_foreground_and_background_are_their_loops(mode: str):
    student, teacher = outputs()
    targets = batch_of([2, 0, 3], 3, torch.Generator().manual_seed(5))
    formula = {"t1": "satt", "t2": "scale_r2", "t3": "norm_HW", "distance": "l1"}
    terms = run(build_for("detkds", student, teacher, mode=mode, **alone("foreground", **formula)), student, teacher, targets)
    wanted = {"foreground": 0.0, "background": 0.0}
    for own, other in zip(student.memory, teacher.memory, strict=True):
        inside = ~own.padding.numpy()
        if mode == "official":
            inside = np.ones_like(inside)
        shares = {"foreground": np.zeros(inside.shape), "background": np.zeros(inside.shape)}
        for n in range(len(inside)):
            height, width = inside[n].any(1).sum(), inside[n].any(0).sum()
            for box, valid in zip(cxcywh_to_xyxy(targets.boxes[n]).tolist(), targets.valid[n].tolist(), strict=True):
                x, y = int(np.floor(box[0] * width)), int(np.floor(box[1] * height))
                x2, y2 = int(np.ceil(box[2] * width)), int(np.ceil(box[3] * height))
                if valid:
                    part = shares["foreground"][n, y : y2 + 1, x : x2 + 1]
                    part[:] = np.maximum(part, 1 / ((y2 - y + 1) * (x2 - x + 1)))
            shares["foreground"][n] *= inside[n]
            empty = (shares["foreground"][n] == 0) & inside[n]
            shares["background"][n] = empty / empty.sum()
        for term, share in shares.items():
            sides = []
            for level in (own, other):
                entries = Entries.of(level.features.double().numpy() * share[:, None], inside[:, None])
                begun = loops.second("scale_r2", loops.first("satt", entries, np.zeros(1)), border=mode == "official")
                sides.append(loops.third("norm_HW", begun))
            wanted[term] += loops.corrected_distance("l1", *sides)
    assert {term: float(value) for term, value in terms.items()} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("mode", ["official", "corrected"])
def test_instances_are_pooled_from_the_targets_boxes_before_the_corrected_chain_and_behind_the_released_one(mode: str):
    student, teacher = outputs()
    targets = batch_of([2, 0, 1], 3, torch.Generator().manual_seed(5))
    formula = {"t1": "catt", "t3": "norm_C", "distance": "l1"}
    terms = run(build_for("detkds", student, teacher, mode=mode, **alone("instance", **formula)), student, teacher, targets)
    wanted = 0.0
    for own, other in zip(student.memory, teacher.memory, strict=True):
        inside = ~own.padding if mode == "corrected" else torch.ones_like(own.padding)
        rois = []
        for image, place in targets.valid.nonzero().tolist():
            height, width = inside[image].any(1).sum().item(), inside[image].any(0).sum().item()
            x, y, x2, y2 = (cxcywh_to_xyxy(targets.boxes[image, place]) * torch.tensor([width, height] * 2)).tolist()
            rois.append([image, np.floor(x), np.floor(y), np.ceil(x2), np.ceil(y2)])

        def pooled(values: torch.Tensor, rois: list[list[float]] = rois) -> torch.Tensor:
            return roi_align(values, torch.tensor(rois, dtype=values.dtype), (14, 14), 1.0, aligned=False)

        def chained(values: torch.Tensor) -> torch.Tensor:
            entries = loops.first("catt", Entries.of(values.numpy()), np.zeros(1))
            return torch.from_numpy(loops.third("norm_C", entries).values)

        maps = [(level.features * inside[:, None]).double() for level in (own, other)]
        sides = [chained(pooled(values)) if mode == "corrected" else pooled(chained(values)) for values in maps]
        wanted += float((sides[0] - sides[1]).abs().mean())
    assert float(terms["instance"]) == pytest.approx(wanted, rel=1e-5)
    assert len(rois) == 3


PADDED = [
    Genotype("global", "catt", "local_s4", "batchnorm", "pear"), Genotype("global", "natt", "scale", "batch", "kl"),
    Genotype("instance", "satt", "local_s2", "softmax_HW", "kl"), Genotype("global", distance="ssim"),
]  # fmt: skip


@pytest.mark.parametrize("genotype", PADDED, ids=str)
def test_what_padded_cells_hold_changes_the_released_terms_alone(genotype: Genotype):
    student, teacher = outputs()
    targets = batch_of([2, 1, 3], 3, torch.Generator().manual_seed(0))

    def dirty(output: Any) -> Any:
        levels = [replace(level, features=level.features.masked_fill(level.padding[:, None], 7.0)) for level in output.memory]
        return replace(output, memory=tuple(levels))

    values: dict[str, list[float]] = {}
    for mode in ("corrected", "official"):
        point = genotype if mode == "corrected" else NAMED["released_global"]
        method = build_for("detkds", student, teacher, **DetKDSConfig.of({point: 1.0}, mode=mode).model_dump(exclude={"method"}))
        values[mode] = [float(*run(method, own, teacher, targets).values()) for own in (student, dirty(student))]
    assert values["corrected"][0] == pytest.approx(values["corrected"][1], rel=1e-6)
    assert values["official"][0] != pytest.approx(values["official"][1], rel=1e-3)


def test_terms_about_targets_are_left_out_of_a_batch_without_any():
    student, teacher = outputs()
    method = build_for("detkds", student, teacher, instance={"distance": "l2"})
    assert set(run(method, student, teacher, batch_of([0, 0, 0], 3))) == {"global", "background"}
    assert set(run(method, student, teacher, batch_of([0, 1, 0], 3))) == {"global", "foreground", "background", "instance"}


def test_a_mask_is_a_function_of_seed_and_step():
    student, teacher = outputs()
    method = build_for("detkds", student, teacher, **alone("global_", t1="mask"))
    targets = batch_of([1, 1, 1], 3)
    first, again, later = (float(run(method, student, teacher, targets, step)["global"]) for step in (3, 3, 4))
    assert first == again != later


def test_gradients_reach_student_and_adaptor_and_nothing_of_the_teacher():
    student, teacher = outputs(student_width=6)
    for level in (*student.memory, *teacher.memory):
        level.features.requires_grad_()
    method = build_for("detkds", student, teacher, instance={"t1": "satt", "t3": "batchnorm", "distance": "pear"})
    torch.stack(list(run(method, student, teacher, batch_of([2, 1, 2], 3)).values())).sum().backward()
    assert all(level.features.grad is not None and level.features.grad.abs().sum() > 0 for level in student.memory)
    assert all(level.features.grad is None for level in teacher.memory)
    assert list(method.parameters()) and all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


# queries


def matched_in_loops(student: Any, teacher: Any, image: int) -> tuple[list[int], list[int]]:
    """Student and teacher queries of the last layer by the cost of DETRDistill, with scipy."""
    z, p = student.logits[-1, image].double(), teacher.logits[-1, image].sigmoid().double()
    cost = torch.zeros(len(z), len(p), dtype=torch.float64)
    for i, j in np.ndindex(*cost.shape):
        cost[i, j] = -(p[j] * z[i].sigmoid().log() + (1 - p[j]) * (1 - z[i].sigmoid()).log()).sum()
        cost[i, j] += 5 * (student.boxes[-1, image, i] - teacher.boxes[-1, image, j]).abs().sum()
        corners = [cxcywh_to_xyxy(side.boxes[-1, image, k])[None] for side, k in ((student, i), (teacher, j))]
        cost[i, j] -= 2 * generalized_box_iou(*corners)[0, 0]
    rows, columns = linear_sum_assignment(cost.numpy())
    return rows.tolist(), columns.tolist()


def test_logits_and_boxes_of_matched_queries_are_their_loops():
    student, teacher = outputs()
    config = NONE | {"logits": {"t3": "softmax_C", "distance": "pear"}, "localization": {"t3": "norm_C", "distance": "giou"}}
    method = build_for("detkds", student, teacher, **config)
    targets = batch_of([1, 1, 1], 3)
    terms = run(method, student, teacher, targets)
    scores: list[np.ndarray] = []
    boxes: list[tuple[float, float]] = []
    mates = torch.full((3, 5), -1)
    for image in range(3):
        rows, columns = matched_in_loops(student, teacher, image)
        mates[image, rows] = torch.tensor(columns)
        own, other = student.logits[-1, image, rows].sigmoid().double(), teacher.logits[-1, image, columns].sigmoid().double()
        scores.append(
            np.array([1 - loops.pearson(loops.shares(a), loops.shares(b)) for a, b in zip(own.numpy(), other.numpy(), strict=True)])
        )
        corners = [
            cxcywh_to_xyxy(side.boxes[-1, image, k]).clamp(0, 1).double().numpy() for side, k in ((student, rows), (teacher, columns))
        ]
        for a, b, weight in zip(*corners, other.amax(-1).tolist(), strict=True):
            boxes.append((weight * (1 - loops.overlaps(loops.unit(a), loops.unit(b))[1]), weight))
    assert float(terms["logits"]) == pytest.approx(float(np.mean(scores)), rel=1e-4)
    assert float(terms["localization"]) == pytest.approx(sum(loss for loss, _ in boxes) / sum(weight for _, weight in boxes), rel=1e-5)
    found = method.train_mates(student, teacher, context_for(method, targets))
    assert found is not None and torch.equal(found[1], mates) and (found[0] == -1).all()


def test_all_layers_are_matched_and_summed_if_asked_for():
    student, teacher = outputs()
    targets, config = batch_of([1, 1, 1], 3), alone("logits", distance="l2")
    last = run(build_for("detkds", student, teacher, **config), student, teacher, targets)["logits"]
    every = run(build_for("detkds", student, teacher, layers="all", **config), student, teacher, targets)["logits"]
    shallow = [replace(side, logits=side.logits[:1], boxes=side.boxes[:1], states=side.states[:1]) for side in (student, teacher)]
    first = run(build_for("detkds", *shallow, **config), *shallow, targets)["logits"]
    assert float(every) == pytest.approx(float(first + last), rel=1e-6)


def test_the_teachers_queries_are_asked_of_the_student_and_compared_one_by_one():
    student, teacher = outputs()
    answer = random_output(2, (3, 7), width=4, seed=9)
    method = build_for("detkds", student, teacher, correspondence="teacher_queries", **alone("logits", distance="l1"))
    asked, queries = answering(answer)
    targets = batch_of([1, 1, 1], 3)
    terms = method(student, teacher, targets, context_for(method, targets, student=asked))
    assert torch.equal(queries[0].content, teacher.queries.content) and method.sends_queries
    wanted = (answer.logits[-1].sigmoid() - teacher.logits[-1].sigmoid()).abs().mean()
    assert float(terms["logits"]) == pytest.approx(float(wanted), rel=1e-6)
    assert "decode" in method.config.needs_student and method.train_mates(student, teacher, context_for(method, targets)) is None


def test_the_order_of_the_students_queries_does_not_matter():
    student, teacher = outputs()
    order = [3, 0, 4, 1, 2]
    shuffled = replace(student, logits=student.logits[:, :, order], boxes=student.boxes[:, :, order])
    config = NONE | {"logits": {"t3": "norm_HW", "distance": "kl"}, "localization": {"t3": "norm_N", "distance": "l1"}}
    method, targets = build_for("detkds", student, teacher, **config), batch_of([1, 1, 1], 3)
    one, other = run(method, student, teacher, targets), run(method, shuffled, teacher, targets)
    # the pairs stand in another order, which only the batch axis of boxes would see, and it is one row for all images
    assert {key: float(value) for key, value in one.items()} == pytest.approx({key: float(value) for key, value in other.items()}, rel=1e-5)


# dense and two-stage detectors


def dense_pair(**changes: Any) -> tuple[Detector, Detector, DenseOutput, DenseOutput]:
    student, teacher = tiny("fcos", 1, **changes), tiny("fcos", 2)
    images = images_of(*SIZES)
    with torch.no_grad():
        answer = dense_output(teacher(*images))
    return student, teacher, dense_output(student(*images)), answer


ALL_FIVE: dict[str, Any] = {
    "instance": {"t1": "satt", "distance": "l2"}, "logits": {"t3": "softmax_HW", "distance": "kl"}, "localization": {"distance": "giou"},
}  # fmt: skip


def test_all_five_inputs_of_two_dense_detectors_teach_the_student():
    student, teacher, own, other = dense_pair()
    method = built(student, teacher, **ALL_FIVE)
    terms = terms_of(method, student, own, other, batch_of([2, 1], 3))
    assert set(terms) == set(method.term_names) and len(terms) == 6
    parameters = [p for p in student.parameters() if p.requires_grad]
    for term, value in terms.items():
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        assert torch.isfinite(value) and value > 0, term
        assert any(g is not None and g.any() for g in gradients), term


def test_class_scores_of_cells_are_compared_level_by_level_without_padding():
    student, teacher, own, other = dense_pair()
    terms = terms_of(built(student, teacher, **alone("logits", t3="norm_C", distance="l2")), student, own, other, batch_of([2, 1], 3))
    wanted = 0.0
    for one, two, level in zip(own.maps, other.maps, own.neck, strict=True):
        sides = [
            loops.third("norm_C", Entries.of(values.logits.detach().sigmoid().double().numpy(), ~level.padding[:, None].numpy()))
            for values in (one, two)
        ]
        wanted += loops.corrected_distance("l2", *sides)
    assert float(terms["logits"].detach()) == pytest.approx(wanted, rel=1e-5)


def test_boxes_of_cells_count_by_the_teachers_best_score_and_only_in_the_image():
    student, teacher, own, other = dense_pair()
    terms = terms_of(built(student, teacher, **alone("localization", distance="iou")), student, own, other, batch_of([2, 1], 3))
    assert own.valid is not None and not own.valid.all()
    total = weights = 0.0
    for image, candidate in own.valid.nonzero().tolist():
        a, b = (cxcywh_to_xyxy(side.boxes[-1, image, candidate].detach()).clamp(0, 1).double().numpy() for side in (own, other))
        weight = float(other.logits[-1, image, candidate].sigmoid().max())
        area = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
        total, weights = total + weight * (1 - (loops.overlaps(a, b)[0] if area > 0 else 0.0)), weights + weight
    assert float(terms["localization"].detach()) == pytest.approx(total / weights, rel=1e-4)


def test_scores_are_compared_in_the_students_classes():
    student, _, own, other = dense_pair()
    spec = student.spec
    turned = InputSpec(tuple(reversed(spec.classes)), spec.mean, spec.std)
    teacher = tiny("fcos", 2, spec=turned)
    maps = tuple(replace(level, logits=level.logits.flip(1)) for level in other.maps)
    config, targets = alone("logits", distance="l1"), batch_of([1, 1], 3)
    straight = terms_of(built(student, tiny("fcos", 2), **config), student, own, other, targets)
    mapped = terms_of(built(student, teacher, **config), student, own, replace(other, maps=maps), targets)
    assert float(mapped["logits"].detach()) == pytest.approx(float(straight["logits"].detach()), rel=1e-6)


def test_a_two_stage_detector_compares_what_its_first_stage_says():
    student, teacher, own, other = dense_pair()
    both = [
        TwoStageOutput(logits=side.logits[:, :, :4], boxes=side.boxes[:, :, :4], activation="softmax", neck=side.neck, first=side,
                       proposals=side.boxes[0, :, :4]) for side in (own, other)
    ]  # fmt: skip
    sides: list[Any] = [
        SimpleNamespace(
            provides=frozenset({"neck", "head", "rois"}), family="two_stage", activation="softmax", spec=student.spec, num_stages=1,
            blank_output=lambda output=output: output,
        ) for output in both
    ]  # fmt: skip
    config = NONE | {"logits": {"t3": "norm_HW", "distance": "l1"}, "localization": {"distance": "giou"}}
    two = terms_of(built(*sides, **config), sides[0], *both, batch_of([1, 1], 3))
    dense = terms_of(built(student, teacher, **config), student, own, other, batch_of([1, 1], 3))
    found, wanted = ({key: float(value.detach()) for key, value in terms.items()} for terms in (two, dense))
    assert found == pytest.approx(wanted)


def two_stages(seed: int = 2) -> tuple[Detector, Detector, DetectorOutput, DetectorOutput, TargetBatch]:
    """A Faster R-CNN that trains, one that teaches, and what both say of a batch."""
    # in training a batch norm reads the batch, and equal detectors would say different things
    student, teacher = tiny("faster_rcnn", 1).train(seed != 1), tiny("faster_rcnn", seed).eval()
    images, targets = images_of(*SIZES), batch_of([2, 1], 3)
    torch.manual_seed(0)
    with torch.no_grad():
        answer = teacher(*images)
    return student, teacher, student(*images, targets), answer, targets


@pytest.mark.parametrize("mode", ["official", "corrected"])
@pytest.mark.parametrize("which", ["teacher_proposals", "student_proposals"])
def test_second_stages_are_compared_on_the_same_proposals_those_that_fill_up_left_out(which: str, mode: str):
    student, teacher, own, other, targets = two_stages()
    assert isinstance(own, TwoStageOutput) and isinstance(other, TwoStageOutput)
    config = alone("logits", t3="no", distance="l1") | {"logits_of": which, "mode": mode}
    method = built(student, teacher, **config)
    terms = method(own, other, targets, step_context(student, teacher, method.pairing, targets))
    boxes, valid = (other.proposals, other.valid) if which == "teacher_proposals" else (own.proposals, own.valid)
    valid[1, -2:] = False
    terms = method(own, other, targets, step_context(student, teacher, method.pairing, targets))
    lost, counted = 0.0, 0
    for image in range(2):
        for place in valid[image].nonzero().flatten().tolist():
            one = torch.zeros(2, 1, 4)
            one[image, 0] = boxes[image, place]
            with torch.no_grad():
                said = [side.classify(one, output.context)[0][image, 0].softmax(0) for side, output in ((student, own), (teacher, other))]
            lost += float((said[0][:-1] - said[1][:-1]).abs().sum())
            counted += len(said[0]) - 1
    whole = counted if mode == "corrected" else valid.numel() * (other.logits.shape[-1] - 1)
    assert float(terms["logits"].detach()) == pytest.approx(lost / whole, rel=1e-4)


@pytest.mark.parametrize("which", ["teacher_proposals", "student_proposals"])
def test_a_two_stage_student_that_is_its_teacher_has_nothing_to_learn_and_another_gets_gradients(which: str):
    for seed in (1, 2):
        student, teacher, own, other, targets = two_stages(seed)
        for distance in ("l1", "kl", "pear"):
            method = built(student, teacher, **alone("logits", t3="softmax_C", distance=distance), logits_of=which)
            loss = method(own, other, targets, step_context(student, teacher, method.pairing, targets))["logits"]
            if seed == 1:
                assert float(loss.detach()) == pytest.approx(0, abs=2e-6)
                continue
            assert float(loss.detach()) > 1e-6
            learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, learned, allow_unused=True, retain_graph=True)
            reached = [gradient for gradient in gradients if gradient is not None]
            assert reached and all(torch.isfinite(gradient).all() for gradient in reached)
            assert any(gradient.abs().sum() > 0 for gradient in reached)


def test_the_teacher_of_shared_proposals_gets_no_gradient():
    student, teacher, own, other, targets = two_stages()
    method = built(student, teacher, **alone("logits", distance="l1"), logits_of="student_proposals")
    method(own, other, targets, step_context(student, teacher, method.pairing, targets))["logits"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_shared_proposals_need_two_second_stages_and_a_formula():
    student, teacher = tiny("fcos", 1), tiny("faster_rcnn", 2)
    config = alone("logits", distance="l1") | {"logits_of": "teacher_proposals"}
    with pytest.raises(IncompatibleError, match=r"method 'detkds' needs rois, which the student \(fcos\) does not provide"):
        built(student, teacher, **config)
    with pytest.raises(ValueError, match="logits_of: student_proposals has no formula; give logits"):
        DetKDSConfig(logits_of="student_proposals")


@pytest.mark.parametrize(("own", "other"), [("fcos", "deformable_detr"), ("deformable_detr", "fcos")])
def test_detectors_of_two_kinds_share_feature_maps_alone(own: str, other: str):
    student, teacher = tiny(own, 1), tiny(other, 2)
    images, targets = images_of(*SIZES), batch_of([2, 1], 3)
    method = built(student, teacher)
    assert method.compared.feature == "head"
    with torch.no_grad():
        answer = teacher(*images)
    terms = terms_of(method, student, student(*images), answer, targets)
    assert set(terms) == {"global", "foreground", "background"} and all(torch.isfinite(value) for value in terms.values())
    with pytest.raises(IncompatibleError, match=r"'detkds' needs dense_logits or queries or rois from both sides, but .* have none"):
        built(student, teacher, logits={"distance": "l1"})
    with pytest.raises(IncompatibleError, match=r"needs dense_boxes or queries or rois from both sides, but .* have none"):
        built(student, teacher, localization={"distance": "l1"})


def test_two_dense_detectors_with_other_levels_share_boxes_no_more():
    student, teacher, _, _ = dense_pair(extra_levels=2)
    assert built(student, teacher, **alone("logits", distance="l1"))
    with pytest.raises(IncompatibleError, match=r"compares class scores and boxes cell by cell, but the student \(fcos\) predicts 1 boxes"):
        built(student, teacher, **alone("localization", distance="l1"))


def test_a_formula_along_the_classes_needs_several_of_them():
    spec = InputSpec(("circle",), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    student, teacher = tiny("fcos", 1, spec=spec), tiny("fcos", 2, spec=spec)
    with pytest.raises(
        IncompatibleError, match=r"logits: softmax_C, l1 cannot work with fcos: .* 2 classes or more, and this detector has 1"
    ):
        built(student, teacher, **alone("logits", t3="softmax_C", distance="l1"))
    assert built(student, teacher, **alone("logits", t3="norm_HW", distance="l1"))


# configuration


def test_a_formula_over_the_batch_refuses_a_batch_of_one_image_with_its_name():
    student, teacher = outputs(images=1)
    method = build_for("detkds", student, teacher)
    with pytest.raises(IncompatibleError, match=r"global: catt > scale_r2 > norm_N, l1 cannot work: norm_N needs a batch of 2 images"):
        run(method, student, teacher, batch_of([2], 3))


def test_a_recipe_with_too_small_a_batch_is_refused_when_it_is_read():
    detkds = {"teacher": {"checkpoint": "shapes_teacher"}, "methods": [{"method": "detkds"}]}
    with pytest.raises(
        ConfigError, match=r"detkds compares the images of a batch and needs 2 of them at a time, but train\.batch_size 4 in 4"
    ):
        tiny_recipe(detkds, {"train": TINY["train"] | {"accumulate": 4}})
    assert tiny_recipe(detkds).methods[0].least_images == 2
    assert find_method("fgd").Config().least_images == 1  # pyright: ignore[reportCallIssue]


def test_too_few_boxes_leave_a_formula_over_the_boxes_out():
    student, teacher = outputs()
    method = build_for("detkds", student, teacher, **alone("instance", t3="norm_N", distance="l1"))
    assert method.config.least_images == 1
    assert run(method, student, teacher, batch_of([0, 1, 0], 3)) == {}
    assert set(run(method, student, teacher, batch_of([1, 1, 0], 3))) == {"instance"}


@pytest.mark.parametrize(("values", "message"), [
    (NONE, "no input has a formula; give one of global_, foreground"),
    ({"mode": "official", "foreground": {"distance": "l2"}}, "compares foreground and background with l1, whatever is configured"),
    ({"mode": "official", "localization": {"distance": "iou"}}, "cannot work in mode official: the released code takes the boxes"),
    ({"mode": "official", "global_": {"t3": "pow2"}}, "global_: global: no > no > pow2, l2 cannot work in mode official: .* no pow2"),
    ({"instance": {"t3": "channel", "distance": "ssim"}}, "ssim compares maps, and channel leaves none"),
    ({"balance": {"logits": 1.0}}, "balance names logits; the terms are global, foreground, background"),
    ({"global_": {"t4": "no"}}, "Extra inputs are not permitted"),
])  # fmt: skip
def test_a_configuration_that_cannot_work_is_refused_with_the_reason(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DetKDSConfig.model_validate(values)


def test_no_is_read_without_quotes_as_people_write_it():
    text = "{method: detkds, global_: {t1: no, t2: no, t3: no, distance: l1}, foreground: null}"
    assert DetKDSConfig.model_validate(yaml.safe_load(text)).genotypes == {"global": Genotype("global", distance="l1")}


def test_weights_stand_beside_the_formulas_and_background_has_half():
    student, teacher = outputs()
    method = build_for("detkds", student, teacher)
    assert {term: method.weight_of(term) for term in method.term_names} == {"global": 5.0, "foreground": 2.0, "background": 1.0}
    changed = build_for("detkds", student, teacher, weight=2.0, weights={"global": 3.0})
    assert {term: changed.weight_of(term) for term in changed.term_names} == {"global": 6.0, "foreground": 4.0, "background": 2.0}


def test_needs_follow_the_inputs():
    assert DetKDSConfig().needs == {"memory|neck|head"} and not DetKDSConfig().needs_all_classes
    logits = DetKDSConfig.model_validate(alone("logits", distance="l1"))
    assert logits.needs == logits.needs_student == {"dense_logits|queries|rois"} and logits.needs_all_classes
    boxes = DetKDSConfig.model_validate(alone("localization", distance="l1") | {"correspondence": "teacher_queries"})
    assert boxes.needs_teacher == {"dense_boxes|queries|rois", "dense_logits|queries|rois"} and boxes.needs_student == boxes.needs | {
        "decode"
    }
