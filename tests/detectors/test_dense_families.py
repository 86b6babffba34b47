"""What holds for every dense family: one output, an assignment that knows padding and regions, its own losses, weights on disk."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.examples import SPEC, assert_detected_alike, batch_of, images_of, random_targets
from tests.families import DENSE_NAMES, tiny
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch, Targets
from workbench.detectors.dense_detector import DenseDetector
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import DenseOutput, scores
from workbench.detectors.registry import FAMILIES, load_detector

every_family = pytest.mark.parametrize("name", DENSE_NAMES)
both_modes = pytest.mark.parametrize("training", [False, True])
CLASSES = len(SPEC.classes)
SIZES = ((64, 96), (48, 80), (40, 44))  # of a padded batch; stride 16 divides not the last one's sides
ALIKE = ((64, 96),) * 3


@cache
def shared(name: str) -> DenseDetector:
    """One detector of a family; tests that change it take a copy."""
    detector = tiny(name)
    assert isinstance(detector, DenseDetector)
    return detector


def fresh(name: str, training: bool = False) -> DenseDetector:
    return copy.deepcopy(shared(name)).train(training)


def some_targets(*counts: int) -> TargetBatch:
    return batch_of(counts, CLASSES, torch.Generator().manual_seed(1))


def total(detector: DenseDetector, output: DenseOutput, targets: TargetBatch) -> Tensor:
    losses = detector.losses(output, targets, max(1.0, float(targets.valid.sum())))
    return torch.stack([detector.loss_weights[name] * value for name, value in losses.items()]).sum()


@every_family
@both_modes
def test_the_output_has_the_shapes_of_the_contract(name: str, training: bool):
    detector = fresh(name, training)
    images, padding = images_of(*SIZES)
    output = detector(images, padding, some_targets(2, 1, 0))
    grid, count = output.grid, len(output.grid.cell)
    assert count == grid.shapes * sum(height * width for height, width in grid.sizes)
    assert output.activation == detector.activation == "sigmoid" and detector.num_stages == 1 and output.aux == ()
    assert output.logits.shape == (1, 3, count, CLASSES) and output.boxes.shape == (1, 3, count, 4)
    assert output.logits.dtype == output.boxes.dtype == torch.float32
    assert torch.isfinite(output.logits).all() and torch.isfinite(output.boxes).all()
    assert (output.boxes[..., 2:] >= 0).all()
    assert output.quality is None or output.quality.shape == (1, 3, count)
    assert output.first is None or output.first.shape == (3, count, 4)
    assert (output.box_distribution is not None) == ("box_distribution" in detector.provides)
    assert output.box_distribution is None or output.box_distribution.shape[:-1] == (1, 3, count, 4)
    assert output.sides.tolist() == [[width, height] for height, width in SIZES]
    assert {"neck", "backbone", "head", "dense_logits", "dense_boxes"} <= detector.provides and not output.memory
    assert not {"queries", "states", "decode", "memory"} & detector.provides
    assert output.head == output.neck and [level.stride for level in output.neck] == list(grid.strides)
    for level in (*output.neck, *output.backbone):
        assert torch.equal(level.padding, padding[:, :: level.stride, :: level.stride])
        assert level.features.shape[0] == 3 and level.features.shape[-2:] == level.padding.shape[-2:]
    assert detector.level_channels("head") == {level.stride: level.features.shape[1] for level in output.neck}


@every_family
def test_a_candidate_lies_at_its_cell_and_exists_where_its_centre_lies_in_the_image(name: str):
    output = shared(name)(*images_of(*SIZES))
    grid = output.grid
    assert output.valid is not None and grid.level.tolist() == sorted(grid.level.tolist())
    candidate, first_cell = 0, 0
    for index, (stride, (height, width)) in enumerate(zip(grid.strides, grid.sizes, strict=True)):
        assert (height, width) == (-(-64 // stride), -(-96 // stride))
        for cell in range(height * width):
            low_y, low_x = stride * (cell // width), stride * (cell % width)
            for _ in range(grid.shapes):
                assert grid.level[candidate] == index and grid.cell[candidate] == first_cell + cell and grid.stride[candidate] == stride
                x, y = grid.centres[candidate].tolist()
                # anchors are centred at a cell's first pixel, up to the rounding of their sides, and points at its centre
                assert low_x - 1 <= x <= low_x + stride / 2 and low_y - 1 <= y <= low_y + stride / 2
                assert output.valid[:, candidate].tolist() == [x < w and y < h for h, w in SIZES]
                candidate += 1
        first_cell += height * width


@every_family
def test_the_numbers_of_a_candidate_are_those_of_its_cell_in_the_maps(name: str):
    output = shared(name)(*images_of(*SIZES))
    generator, shapes = torch.Generator().manual_seed(0), output.grid.shapes
    first_cells = [0, *torch.tensor([h * w for h, w in output.grid.sizes]).cumsum(0).tolist()]
    for candidate in torch.randint(len(output.grid.cell), (40,), generator=generator).tolist():
        level, shape = int(output.grid.level[candidate]), candidate % shapes
        place = int(output.grid.cell[candidate]) - first_cells[level]
        said, (_, width) = output.maps[level], output.grid.sizes[level]
        y, x = place // width, place % width
        assert torch.equal(output.logits[0, :, candidate], said.logits[:, shape * CLASSES : (shape + 1) * CLASSES, y, x])
        if output.quality is not None:
            assert said.quality is not None and torch.equal(output.quality[0, :, candidate], said.quality[:, shape, y, x])


@every_family
def test_boxes_are_relative_to_the_image_without_its_padding(name: str):
    detector = shared(name)
    images, padding = images_of((48, 80))
    wide, wide_padding = torch.zeros(1, 3, 64, 96), torch.ones(1, 64, 96, dtype=torch.bool)
    wide[:, :, :48, :80], wide_padding[:, :48, :80] = images, False
    own, padded, unaware = detector(images, padding), detector(wide, wide_padding), detector(wide, torch.zeros_like(wide_padding))
    assert own.sides.tolist() == padded.sides.tolist() == [[80, 48]]
    torch.testing.assert_close(padded.boxes * torch.tensor([80, 48, 80, 48]), unaware.boxes * torch.tensor([96, 64, 96, 64]))


@every_family
def test_an_image_answers_the_same_alone_and_in_a_batch_of_its_size(name: str):
    detector = shared(name)
    images, padding = images_of(*ALIKE)
    with torch.no_grad():
        together = detector(images, padding)
        detected = detector.detections(together, torch.tensor(ALIKE))
        for index in range(3):
            alone = detector(images[index, None], padding[index, None])
            torch.testing.assert_close(alone.logits[:, 0], together.logits[:, index], atol=5e-5, rtol=1e-4)
            torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, index], atol=5e-5, rtol=1e-4)
            (own,) = detector.detections(alone, torch.tensor(ALIKE[:1]))
            answers = [(one.queries, one.labels, one.scores) for one in (own, detected[index])]
            assert_detected_alike(*answers, within=5e-5)


@every_family
def test_an_image_with_its_padding_answers_the_same_alone_and_in_a_batch(name: str):
    detector = shared(name)
    images, padding = images_of(*SIZES)
    with torch.no_grad():
        together = detector(images, padding)
        for index in range(3):
            alone = detector(images[index, None], padding[index, None])
            torch.testing.assert_close(alone.logits[:, 0], together.logits[:, index], atol=5e-5, rtol=1e-4)
            torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, index], atol=5e-5, rtol=1e-4)


@every_family
def test_padding_changes_neither_the_candidates_of_an_image_nor_their_targets_if_the_assignment_is_geometric(name: str):
    # what a candidate predicts does change: convolutions see the padding's zeros beside the image, and a lone image's border instead
    detector = shared(name)
    images, padding = images_of(*SIZES)
    targets = some_targets(3, 2, 4)
    together = detector(images, padding)
    match = detector.assign(together, targets)[0]
    assert together.valid is not None
    for index, (height, width) in enumerate(SIZES):
        alone = detector(images[index, None, :, :height, :width], padding[index, None, :height, :width])
        assert alone.valid is not None
        own, lone = together.valid[index], alone.valid[0]  # a centre may lie beyond the border of an image that a stride does not divide
        assert torch.equal(alone.grid.anchors[lone], together.grid.anchors[own])
        assert torch.equal(alone.grid.level[lone], together.grid.level[own])
        if detector.geometric:
            assert torch.equal(detector.assign(alone, targets[index : index + 1])[0, 0, lone], match[index, own])
        assert (match[index, ~own] == -2).all()


@every_family
def test_the_order_of_the_images_changes_no_answer_and_no_loss(name: str):
    detector = shared(name)
    images, padding = images_of(*SIZES)
    targets, order = some_targets(3, 0, 4), [2, 0, 1]
    moved = TargetBatch(targets.boxes[order], targets.labels[order], targets.valid[order])
    one, two = detector(images, padding), detector(images[order], padding[order])
    torch.testing.assert_close(two.logits, one.logits[:, order], atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(two.boxes, one.boxes[:, order], atol=5e-5, rtol=1e-4)
    assert torch.equal(detector.assign(two, moved), detector.assign(one, targets)[:, order])
    torch.testing.assert_close(total(detector, two, moved), total(detector, one, targets), atol=1e-4, rtol=1e-4)


@every_family
def test_a_geometric_assignment_does_not_change_with_the_predictions(name: str):
    detector, targets = shared(name), some_targets(3, 2, 4)
    output = detector(*images_of(*SIZES))
    other = replace(output, logits=torch.randn_like(output.logits), boxes=torch.rand_like(output.boxes))
    match = detector.assign(output, targets)
    assert match.shape == output.logits.shape[:3] and match.dtype == torch.int64 and not match.requires_grad
    assert not detector.geometric or torch.equal(detector.assign(other, targets), match)
    for image, count in enumerate((3, 2, 4)):
        assert match[0, image].max() < count


@pytest.mark.parametrize("name", [name for name in DENSE_NAMES if FAMILIES[name].detector.geometric])
def test_which_targets_are_covered_is_known_without_the_model(name: str):
    detector, targets = shared(name), some_targets(900, 0, 4)
    output = detector(*images_of(*SIZES))
    pixels = cxcywh_to_xyxy(targets.boxes) * output.sides.repeat(1, 2)[:, None]
    covered = detector.covered(output.sides, targets) & targets.valid
    assert torch.equal(covered, detector.covered_by(output, pixels, targets) & targets.valid)
    assert 0 < covered.sum() < targets.valid.sum()
    if type(detector).covered_by is DenseDetector.covered_by:
        for image, match in enumerate(detector.assign(output, targets)[0]):
            assert covered[image].nonzero()[:, 0].tolist() == sorted(set(match[match >= 0].tolist()))


@every_family
def test_the_own_criterion_has_a_weight_for_every_term_and_trains_every_parameter(name: str):
    detector = fresh(name, True)
    targets = some_targets(2, 1, 3)
    output = detector(*images_of(*SIZES), targets)
    losses = detector.losses(output, targets, 6.0)
    assert set(losses) == set(detector.loss_weights) and "class" in losses
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    given = detector.losses(output, targets, 6.0, detector.assign(output, targets))
    assert all(torch.equal(given[key], value) for key, value in losses.items())
    total(detector, output, targets).backward()
    assert [key for key, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []


@every_family
@pytest.mark.parametrize("counts", [(0, 0, 0), (3, 0, 0), (900, 1, 0)])
def test_images_without_targets_and_more_targets_than_candidates_train(name: str, counts: tuple[int, int, int]):
    detector = fresh(name, True)
    targets = some_targets(*counts)
    output = detector(*images_of(*SIZES), targets)
    loss = total(detector, output, targets)
    loss.backward()
    assert torch.isfinite(loss)
    # a process whose part of a batch has no target must give all gradients, or the others wait for it
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in detector.parameters() if p.requires_grad)
    assert bool((detector.assign(output, targets) >= 0).any()) == (sum(counts) > 0)


@every_family
def test_the_losses_of_two_processes_average_to_those_of_the_whole_batch(name: str, monkeypatch: pytest.MonkeyPatch):
    detector, targets = shared(name), some_targets(3, 0, 4, 1)
    images, padding = images_of(*ALIKE, ALIKE[0])

    def losses(images_of_process: slice, num_boxes: float) -> dict[str, Tensor]:
        output = detector(images[images_of_process], padding[images_of_process])
        return detector.losses(output, targets[images_of_process], num_boxes)

    whole, halves = losses(slice(0, 4), 8.0), (slice(0, 2), slice(2, 4))
    counts: list[list[Tensor]] = [[], []]  # what each of two processes adds up, in the order in which it does
    for process, half in enumerate(halves):
        with monkeypatch.context() as patch:
            as_one_of_two(patch, lambda total, own=counts[process]: own.append(total.clone()))
            losses(half, 4.0)
    parts: list[dict[str, Tensor]] = []
    for process, half in enumerate(halves):
        with monkeypatch.context() as patch:
            others = iter(counts[1 - process])
            as_one_of_two(patch, lambda total, others=others: total.add_(next(others)))
            parts.append(losses(half, 4.0))
    for key, value in whole.items():
        torch.testing.assert_close((parts[0][key] + parts[1][key]) / 2, value, atol=1e-4, rtol=1e-4)


def as_one_of_two(patch: pytest.MonkeyPatch, add_up: Callable[[Tensor], object]) -> None:
    """Makes this process one of two, whose sums ``add_up`` makes in place."""
    patch.setattr(torch.distributed, "is_initialized", lambda: True)
    patch.setattr(torch.distributed, "get_world_size", lambda: 2)
    patch.setattr(torch.distributed, "all_reduce", add_up)


def class_gradient(detector: DenseDetector, output: DenseOutput, targets: TargetBatch) -> Tensor:
    """``[B, N]``: how much the losses ask of the classes of each candidate that is as unsure as can be."""
    leaf = torch.zeros_like(output.logits).requires_grad_()
    (found,) = torch.autograd.grad(total(detector, replace(output, logits=leaf), targets), leaf)
    return found[0].abs().sum(-1)


@every_family
def test_candidates_in_the_padding_are_ignored_cost_nothing_and_are_never_detected(name: str):
    detector = shared(name)
    output = detector(*images_of(*SIZES))
    targets = some_targets(2, 2, 2)
    assert output.valid is not None and not output.valid[2].all()
    match = detector.assign(output, targets)[0]
    assert ((match == -2) >= ~output.valid).all()
    cost = class_gradient(detector, output, targets)
    assert (cost[match == -2] == 0).all() and (cost[match > -2] > 0).all()
    certain = output.logits.masked_fill(~output.valid[None, ..., None], 20.0)
    for image, found in enumerate(detector.detections(replace(output, logits=certain), torch.tensor(SIZES), 10_000)):
        assert len(found.queries) and output.valid[image, found.queries].all()


@every_family
def test_background_in_crowd_and_ignore_regions_is_ignored_and_costs_nothing(name: str):
    detector = shared(name)
    output = detector(*images_of(*SIZES))
    generator = torch.Generator().manual_seed(3)
    plain = random_targets((3, 2, 1), CLASSES, generator)
    region = torch.tensor([[0.25, 0.5, 0.5, 1.0]])  # the left half
    with_regions = [
        Targets(torch.cat([t.boxes, region]), torch.cat([t.labels, torch.tensor([label])]), torch.cat([t.valid, torch.tensor([False])]))
        for t, label in zip(plain, (2, -1, 0), strict=True)  # crowd has a class, an ignore region has none
    ]
    without, targets = TargetBatch.of(plain), TargetBatch.of(with_regions)
    before, after = detector.assign(output, without)[0], detector.assign(output, targets)[0]
    assert output.valid is not None
    for image, (height, width) in enumerate(SIZES):
        x, y = output.grid.centres.unbind(-1)
        inside = (x >= 0) & (x < width / 2) & (y >= 0) & (y < height)
        wanted = torch.where(inside & (before[image] == -1), -2, before[image])
        assert torch.equal(after[image], wanted) and (wanted == -2).sum() > (before[image] == -2).sum()
    cost = class_gradient(detector, output, targets)
    assert (cost[after == -2] == 0).all()
    only_regions = TargetBatch.of([Targets(region, torch.tensor([0]), torch.tensor([False]))] * 3)
    assert not (detector.assign(output, only_regions) >= 0).any()
    assert torch.isfinite(total(detector, output, only_regions))


@every_family
def test_detections_are_the_best_first_inside_the_image_and_k_at_most(name: str):
    detector = shared(name)
    output = detector(*images_of(*SIZES))
    original = torch.tensor([[128, 192], [48, 80], [400, 440]])
    by_candidate = scores(output, -1)
    for k in (300, 7):
        for image, found in enumerate(detector.detections(output, original, k)):
            assert 0 < len(found.scores) <= k and len(found.queries) == len(found.labels) == len(found.boxes) == len(found.scores)
            assert (found.scores.diff() <= 0).all() and (found.scores > detector.config.score_threshold).all()
            torch.testing.assert_close(found.scores, by_candidate[image, found.queries, found.labels], atol=1e-6, rtol=0)
            height, width = original[image].tolist()
            whole = cxcywh_to_xyxy(output.boxes[0, image, found.queries]) * torch.tensor([width, height, width, height])
            limits = torch.tensor([width, height, width, height])
            torch.testing.assert_close(found.boxes, whole.clamp(min=0).minimum(limits), atol=1e-3, rtol=1e-5)


@every_family
def test_an_image_with_nothing_above_the_threshold_has_no_detection(name: str):
    detector = shared(name)
    output = detector(*images_of(*SIZES))
    hidden = replace(output, logits=torch.full_like(output.logits, -50.0))
    for found in detector.detections(hidden, torch.tensor(SIZES)):
        assert found.boxes.shape == (0, 4) and len(found.scores) == len(found.labels) == len(found.queries) == 0


@every_family
def test_a_saved_detector_loads_with_equal_outputs(name: str, tmp_path: Path):
    detector = shared(name)
    detector.save(tmp_path)
    loaded = load_detector(tmp_path).eval()
    assert type(loaded) is type(detector) and loaded.spec == detector.spec
    inputs = images_of(*SIZES)
    with torch.no_grad():
        one, two = detector(*inputs), loaded(*inputs)
    assert torch.equal(one.logits, two.logits) and torch.equal(one.boxes, two.boxes)


@every_family
def test_a_reset_head_knows_the_new_classes(name: str, tmp_path: Path):
    detector = fresh(name)
    spec = InputSpec(("cat", "dog", "bird", "cow", "sheep"), SPEC.mean, SPEC.std)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    boxes = detector(*images_of(*SIZES)).boxes
    made = detector.reset_classes(spec)
    output = detector(*images_of(*SIZES))
    assert output.logits.shape[-1] == 5 and detector.spec == spec and torch.equal(output.boxes, boxes)
    after = detector.state_dict()
    changed = {key for key, value in after.items() if value.shape != before[key].shape or not torch.equal(value, before[key])}
    assert made and changed == set(made), "the report names everything that was re-initialised"
    detector.save(tmp_path)
    assert torch.equal(load_detector(tmp_path).eval()(*images_of(*SIZES)).logits, output.logits)


@every_family
def test_the_same_seed_builds_the_same_model_and_a_copy_answers_for_itself(name: str):
    one, two = tiny(name, 3), tiny(name, 3)
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    inputs, clone = images_of(*SIZES), copy.deepcopy(one)
    with torch.no_grad():
        before = one(*inputs)
        for parameter in clone.parameters():
            parameter.add_(0.05)
        assert not torch.equal(clone(*inputs).logits, before.logits)
        assert torch.equal(one(*inputs).logits, before.logits)


@every_family
def test_losses_of_a_step_of_mixed_precision_are_finite_and_in_single_precision(name: str):
    detector = fresh(name, True)
    targets = some_targets(2, 1, 0)
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(*images_of(*SIZES), targets)
        losses = detector.losses(output, targets, 3.0)
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())
