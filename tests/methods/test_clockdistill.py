"""CLoCKDistill's terms equal loops over cells, targets and layers."""

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

from tests.examples import SPEC, batch_of, images_of, random_boxes, random_output, random_targets
from tests.families import tiny
from tests.methods.pairs import build_for, run, step_context
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Level
from workbench.detectors.position import sine_embedding
from workbench.errors import IncompatibleError
from workbench.matching import match_targets
from workbench.methods.clockdistill.config import CLoCKDistillConfig
from workbench.methods.clockdistill.logits import TargetContents, noisy_boxes
from workbench.methods.clockdistill.memory import location_and_scale
from workbench.methods.context import MethodContext, make_pairing
from workbench.methods.registry import build_method


def cells_of(box: Tensor, width: int, height: int) -> tuple[range, range]:
    """Columns and rows that a box covers, by the published rule."""
    x1, y1, x2, y2 = cxcywh_to_xyxy(box).tolist()
    return range(math.floor(x1 * width), math.ceil(x2 * width)), range(math.floor(y1 * height), math.ceil(y2 * height))


def masks_by_loop(level: Level, targets: TargetBatch) -> tuple[Tensor, Tensor]:
    location, scale = torch.zeros_like(level.padding), torch.zeros(level.padding.shape)
    for image, padding in enumerate(level.padding):
        width, height = int((~padding[0]).sum()), int((~padding[:, 0]).sum())
        for box, valid in zip(targets.boxes[image], targets.valid[image], strict=True):
            if not valid:
                continue
            columns, rows = cells_of(box, width, height)
            for y in rows:
                for x in columns:
                    location[image, y, x] = True
                    scale[image, y, x] = max(scale[image, y, x], 1 / (len(columns) * len(rows)))
        outside = ~location[image] & ~padding
        scale[image][outside] = 1 / max(int(outside.sum()), 1)
    return location, scale


@given(counts=st.tuples(st.integers(0, 4), st.integers(0, 4)), seed=st.integers(0, 1000))
def test_location_and_scale_equal_the_loop_over_targets_and_cells(counts: tuple[int, int], seed: int):
    level = random_output(1, (2, 3), levels=((8, 5, 7),)).memory[0]
    targets = batch_of(counts, 3, torch.Generator().manual_seed(seed))
    location, scale = location_and_scale(level, targets)
    wanted_location, wanted_scale = masks_by_loop(level, targets)
    assert torch.equal(location, wanted_location)
    torch.testing.assert_close(scale, wanted_scale)


@given(seed=st.integers(0, 10_000))
def test_the_weights_of_one_target_sum_to_one_and_so_do_those_of_the_background(seed: int):
    level = random_output(1, (2, 3), levels=((8, 6, 9),)).memory[0]
    targets = batch_of([1, 1], 3, torch.Generator().manual_seed(seed))
    location, scale = location_and_scale(level, targets)
    for image in range(2):
        assert scale[image][location[image]].sum().item() == pytest.approx(1, abs=1e-5)
        background = ~location[image] & ~level.padding[image]
        assert scale[image][background].sum().item() == pytest.approx(1, abs=1e-5) or not background.any()
        assert not scale[image][level.padding[image]].any()


def test_a_target_without_area_covers_one_cell_and_one_that_may_not_be_matched_none():
    level = random_output(1, (1, 3), levels=((8, 4, 6),)).memory[0]
    level = replace(level, padding=torch.zeros(1, 4, 6, dtype=torch.bool))
    point = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.3, 0.3], [1.0, 1.0, 0.0, 0.0]]])
    targets = TargetBatch(point, torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[True, False, True]]))
    location, _ = location_and_scale(level, targets)
    assert location[0].nonzero().tolist() == [[2, 3], [3, 5]]


@pytest.mark.parametrize("channel_reduce", ["sum", "mean"])
@pytest.mark.parametrize("batch_reduce", ["sum", "mean"])
def test_the_memory_terms_equal_the_sums_of_the_formula_over_both_levels(channel_reduce: str, batch_reduce: str):
    shapes = ((8, 4, 6), (16, 2, 3))
    student, teacher = random_output(2, (2, 5), levels=shapes), random_output(2, (2, 5), levels=shapes, seed=1)
    targets = batch_of([3, 0], 3)
    memory = {"channel_reduce": channel_reduce, "batch_reduce": batch_reduce}
    method = build_for("clockdistill", student, teacher, logits=None, memory=memory)
    terms = run(method, student, teacher, targets)
    foreground = background = 0.0
    for own, other in zip(student.memory, teacher.memory, strict=True):
        location, scale = masks_by_loop(other, targets)
        for image in range(2):
            for y in range(own.padding.shape[1]):
                for x in range(own.padding.shape[2]):
                    error = (other.features[image, :, y, x] - own.features[image, :, y, x]).square()
                    error = float(error.sum() if channel_reduce == "sum" else error.mean()) * float(scale[image, y, x])
                    foreground += error * bool(location[image, y, x])
                    background += error * (not location[image, y, x])
    share = 0.5 if batch_reduce == "mean" else 1.0
    assert terms["memory_foreground"].item() == pytest.approx(foreground * share, rel=1e-4)
    assert terms["memory_background"].item() == pytest.approx(background * share, rel=1e-4)
    assert (method.weight_of("memory_foreground"), method.weight_of("memory_background")) == (5e-5, 1e-7)


def box_embedding(box: Tensor, width: int) -> list[float]:
    """Sines and cosines of centre and size, row before column, with wavelengths that grow to 10000 x 2 pi."""
    values: list[float] = []
    for number in (1, 0, 3, 2):
        for k in range(0, width // 4, 2):
            angle = 2 * math.pi * float(box[number]) / 10000 ** (k / (width // 4))
            values += [math.sin(angle), math.cos(angle)]
    return values


def standardised(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)
    return [(value - mean) / deviation for value in values]


def test_with_position_embedding_the_memory_terms_equal_loops_over_the_cells_of_the_smallest_target():
    shapes = ((8, 4, 6), (16, 2, 3))
    student, teacher = random_output(2, (2, 5), width=16, levels=shapes), random_output(2, (2, 5), width=16, levels=shapes, seed=1)
    targets = batch_of([3, 0], 3, torch.Generator().manual_seed(0))
    targets.valid[0, 1] = False
    terms = run(build_for("clockdistill", student, teacher, logits=None, memory={"position_embedding": True}), student, teacher, targets)
    wanted, overlapping = {True: 0.0, False: 0.0}, 0
    for own, other in zip(student.memory, teacher.memory, strict=True):
        location, scale = masks_by_loop(other, targets)
        for image in range(2):
            width, height = int((~own.padding[image, 0]).sum()), int((~own.padding[image, :, 0]).sum())
            for y in range(height):
                for x in range(width):
                    around: list[tuple[int, int]] = []
                    for g in (g for g in range(3) if targets.valid[image, g]):
                        columns, rows = cells_of(targets.boxes[image, g], width, height)
                        around += [(len(columns) * len(rows), g)] if x in columns and y in rows else []
                    overlapping += len(around) > 1
                    added = box_embedding(targets.boxes[image, min(around)[1]], 16) if around else [0.0] * 16
                    a, b = (
                        standardised([f + e for f, e in zip(level.features[image, :, y, x].tolist(), added, strict=True)])
                        for level in (own, other)
                    )
                    error = sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
                    wanted[bool(location[image, y, x])] += error * float(scale[image, y, x]) / 2
    assert overlapping, "two targets share a cell"
    assert terms["memory_foreground"].item() == pytest.approx(wanted[True], rel=1e-4)
    assert terms["memory_background"].item() == pytest.approx(wanted[False], rel=1e-4)


def test_the_embedding_of_a_box_is_in_its_cells_alone_worked_by_hand():
    teacher = random_output(1, (1, 3), levels=((8, 4, 4),))
    # sine and cosine of 2 pi times row 0.25, column 0.5, height 0.5 and width 0.25
    embedding = torch.tensor([1.0, 0.0, 0.0, -1.0, 0.0, -1.0, 1.0, 0.0])
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    teacher = replace(teacher, memory=(Level(torch.zeros(1, 8, 4, 4), 8, nothing),))
    student = replace(teacher, memory=(Level(embedding.view(1, 8, 1, 1).expand(1, 8, 4, 4), 8, nothing),))
    box = torch.tensor([[[0.5, 0.25, 0.25, 0.5]]])
    targets = TargetBatch(box, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
    plain, enriched = (
        run(build_for("clockdistill", student, teacher, logits=None, memory={"position_embedding": on}), student, teacher, targets)
        for on in (False, True)
    )
    # four channels differ by 1 in every cell, and the weights of either region sum to 1
    assert (plain["memory_foreground"].item(), plain["memory_background"].item()) == pytest.approx((4, 4), rel=1e-5)
    # with the embedding the cells of the target hold it once and twice, which is one direction; outside it stands against nothing, with
    # variance 1/2, so the four channels differ by the root of 2
    assert (enriched["memory_foreground"].item(), enriched["memory_background"].item()) == pytest.approx((0, 8), abs=1e-3)


def test_a_memory_whose_channels_hold_no_embedding_of_a_box_is_refused():
    student = random_output(1, (1, 3), width=12)
    with pytest.raises(IncompatibleError, match=r"\[12\] channels, .* a multiple of 8.*position_embedding: false"):
        build_for("clockdistill", student, student, logits=None, memory={"position_embedding": True})
    build_for("clockdistill", student, student, logits=None)


def step(
    config: dict[str, Any], student: Any, teacher: Any, targets: TargetBatch, number: int = 0
) -> tuple[Any, Any, Any, MethodContext, Any]:
    torch.manual_seed(0)
    pairing = make_pairing(student, teacher, None)
    method: Any = build_method(CLoCKDistillConfig.model_validate({"memory": None, **config}), student, teacher, pairing)
    images = images_of((64, 96), (64, 80))
    output, answer = student(*images), teacher(*images)
    match = match_targets(output.logits, output.boxes, targets, output.activation)
    context = step_context(student, teacher, pairing, targets, 1.0, number, match)
    return method, output, answer, context, method(output, answer, targets, context)


@pytest.mark.parametrize("norm", ["sum_w", "count"])
@pytest.mark.parametrize("kl_form", ["bernoulli", "softmax"])
@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_the_logit_term_equals_the_loop_over_layers_and_targets(norm: str, kl_form: str, heat: float):
    student, teacher = tiny("deformable_detr", 1), tiny("deformable_detr", 2, decoder_layers=4)
    targets = batch_of([3, 1], 3)
    config = {"logits": {"norm": norm, "kl_form": kl_form, "kl_temperature": heat}}
    method, output, answer, _, terms = step(config, student, teacher, targets)
    wanted = torch.zeros(())
    for k, t in ((0, 0), (0, 1), (1, 2), (1, 3)):
        losses, weights = [], []
        for image in range(2):
            count = int(targets.valid[image].sum())
            # each image on its own, without anything that fills up
            boxes, labels = targets.boxes[:, :count], targets.labels[:, :count]
            content = method.contents.table[labels]
            other = teacher.decode(teacher.queries_of_boxes(answer, boxes, content), answer.context)
            own = student.decode(student.queries_of_boxes(output, boxes, content), output.context)
            for i in range(count):
                z, y = own.logits[k, image, i].double(), other.logits[t, image, i].double()
                if kl_form == "softmax":
                    p, q = (y / heat).softmax(-1), (z / heat).softmax(-1)
                    divergence = (p * (p / q).log()).sum()
                else:
                    p, q = (y / heat).sigmoid(), (z / heat).sigmoid()
                    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
                a, b = own.boxes[k, image, i], other.boxes[t, image, i]
                giou = generalized_box_iou(cxcywh_to_xyxy(a)[None], cxcywh_to_xyxy(b)[None])[0, 0]
                losses.append(heat**2 * divergence + 5 * (a - b).abs().sum() + 2 * (1 - giou))
                weights.append(y.sigmoid().max())
        total = torch.stack([w * v for w, v in zip(weights, losses, strict=True)]).sum()
        # mean over the two teacher layers of a student layer, sum over student layers
        wanted = wanted + total / (torch.stack(weights).sum() if norm == "sum_w" else len(losses)) / 2
    assert terms["logits"].item() == pytest.approx(wanted.item(), rel=1e-3)


def test_the_two_decoders_get_the_same_queries_and_the_table_is_no_parameter():
    student, teacher = tiny("deformable_detr", 1), tiny("deformable_detr", 2)
    method, _, _, _, terms = step({}, student, teacher, batch_of([2, 2], 3))
    assert list(method.parameters()) == [] and "contents.table" in method.state_dict()
    terms["logits"].backward()
    assert method.contents.table.grad is None


def test_the_table_is_the_teachers_own_where_it_has_trained_one_else_fixed_orthogonal_and_the_same_for_a_seed():
    dino, plain = tiny("dino"), tiny("deformable_detr")
    assert torch.equal(TargetContents(plain, dino, 0).table, dino.label_embedding.weight[:3])  # pyright: ignore
    first = TargetContents(plain, plain, 0).table
    torch.randn(5)
    assert torch.equal(first, TargetContents(plain, plain, 0).table) and not torch.equal(first, TargetContents(plain, plain, 1).table)
    product = first @ first.T
    torch.testing.assert_close(product, product.diagonal().diag(), atol=1e-4, rtol=1e-4)
    length = plain.blank_output().queries.content.norm(dim=-1).mean()
    torch.testing.assert_close(first.norm(dim=-1), length.expand(3), atol=1e-4, rtol=1e-4)


def test_a_class_is_asked_for_by_its_row_in_the_teachers_table():
    student = tiny("deformable_detr", 1)
    names = ("triangle", "circle", "square")
    teacher = tiny("deformable_detr", 2, InputSpec(names, SPEC.mean, SPEC.std))
    targets = batch_of([2, 1], 3)
    _, _, _, context, terms = step({}, student, teacher, targets)
    assert context.pairing.class_map == (1, 2, 0)
    # the same teacher with its classes renamed into the student's order
    renamed = tiny("deformable_detr", 2)
    for parameter in {id(p): p for p in renamed.model.class_embed.parameters()}.values():  # pyright: ignore
        parameter.data = parameter.data[[1, 2, 0]]
    torch.manual_seed(0)
    method: Any = build_method(CLoCKDistillConfig(memory=None), student, renamed, make_pairing(student, renamed, None))
    method.contents.table = method.contents.table[[1, 2, 0]]
    images = images_of((64, 96), (64, 80))
    output, answer = student(*images), renamed(*images)
    match = match_targets(output.logits, output.boxes, targets)
    again = method(output, answer, targets, step_context(student, renamed, method.pairing, targets, 1.0, 0, match))
    torch.testing.assert_close(again["logits"], terms["logits"], atol=1e-4, rtol=1e-4)


def test_noise_moves_targets_within_its_share_and_is_a_function_of_the_step():
    boxes = random_boxes(4, 5)
    assert noisy_boxes(boxes, 0.0, 3) is boxes
    moved = noisy_boxes(boxes, 0.4, 3)
    assert torch.equal(moved, noisy_boxes(boxes, 0.4, 3)) and not torch.equal(moved, noisy_boxes(boxes, 0.4, 4))
    assert ((moved[..., :2] - boxes[..., :2]).abs() <= 0.4 * boxes[..., 2:] / 2 + 1e-6).all()
    assert ((moved[..., 2:] / boxes[..., 2:] - 1).abs() <= 0.4 + 1e-5).all()


def test_a_softmax_student_of_a_sigmoid_teacher_needs_a_rule_unless_no_object_is_not_compared():
    student, teacher = tiny("detr", 1), tiny("conditional_detr", 2)
    with pytest.raises(IncompatibleError, match="no_object: 1-max"):
        step({}, student, teacher, batch_of([1, 1], 3))
    for config in ({"no_object": "1-max"}, {"logits": {"kl_form": "softmax"}}):
        assert torch.isfinite(step(config, student, teacher, batch_of([1, 1], 3))[-1]["logits"])


def test_the_position_of_a_centre_is_what_detrs_encoder_adds_to_the_cell_there():
    from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

    embedding = DetrSinePositionEmbedding(16, normalize=True)
    height, width = 4, 6
    whole = embedding((1, 16, height, width), "cpu", torch.float32)
    whole = whole.flatten(2).transpose(1, 2) if whole.ndim == 4 else whole
    y, x = torch.meshgrid((torch.arange(height) + 1) / height, (torch.arange(width) + 1) / width, indexing="ij")
    found = sine_embedding(torch.stack([y, x], -1).flatten(0, 1), 16)
    torch.testing.assert_close(found, whole[0], atol=1e-4, rtol=1e-4)


def test_nothing_to_distil_is_refused():
    with pytest.raises(ValidationError, match="nothing to distil"):
        CLoCKDistillConfig(memory=None, logits=None)
    with pytest.raises(ValidationError, match="the terms are memory_foreground, memory_background"):
        CLoCKDistillConfig.model_validate({"logits": None, "balance": {"logits": 1.0}})


def test_the_last_layer_alone_is_the_last_share_of_all():
    student, teacher, targets = tiny("deformable_detr", 1), tiny("deformable_detr", 2), batch_of([2, 1], 3)
    everything = step({}, student, teacher, targets)[-1]["logits"]
    last = step({"logits": {"layers": "last"}}, student, teacher, targets)[-1]["logits"]
    assert 0 < last.item() < everything.item()


def test_targets_of_no_use_leave_the_logit_term_out():
    student, teacher = tiny("deformable_detr", 1), tiny("deformable_detr", 2)
    crowd = [replace(t, valid=torch.zeros_like(t.valid)) for t in random_targets([2, 1], 3)]
    assert step({}, student, teacher, TargetBatch.of(crowd))[-1] == {}


GOLDEN = {"memory_foreground": 30.11707878112793, "memory_background": 17.28961181640625, "logits": 5.587163925170898}


def test_a_seeded_case_keeps_its_numbers():
    student, teacher = random_output(2, (2, 5), seed=10), random_output(4, (2, 7), seed=11)
    targets = batch_of([3, 1], 3, torch.Generator().manual_seed(12))
    terms = run(build_for("clockdistill", student, teacher, logits=None), student, teacher, targets)
    own, other = tiny("deformable_detr", 1), tiny("deformable_detr", 2)
    terms |= step({}, own, other, targets)[-1]
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(GOLDEN, rel=1e-3)
