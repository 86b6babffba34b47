"""Every method on feature maps equals its published formula, worked out cell by cell."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from tests.examples import batch_of, random_output
from tests.methods.pairs import build_for, run
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import Level, QueryOutput
from workbench.methods.fgd import foreground_and_background
from workbench.methods.fgfi import FGFIConfig, imitation_mask

D = 4
LEVELS = ((8, 4, 5), (16, 2, 3))


def outputs(images: int = 2) -> tuple[QueryOutput, QueryOutput, TargetBatch]:
    student = random_output(1, (images, 4), width=D, levels=LEVELS)
    teacher = random_output(1, (images, 4), width=D, levels=LEVELS, seed=1)
    return student, teacher, batch_of([2, 1, 0][:images], 3, torch.Generator().manual_seed(2))


def level_pairs(student: QueryOutput, teacher: QueryOutput) -> list[tuple[Level, Level]]:
    return list(zip(student.memory, teacher.memory, strict=True))


def cells_of(level: Level, image: int) -> list[tuple[int, int]]:
    """Row and column of every cell that is no padding."""
    return [(int(y), int(x)) for y, x in (~level.padding[image]).nonzero()]


def softmax(values: list[float]) -> list[float]:
    sums = sum(math.exp(v) for v in values)
    return [math.exp(v) / sums for v in values]


def identity(conv: Any) -> None:
    """Makes a convolution pass its input on."""
    with torch.no_grad():
        conv.weight.zero_()
        for channel in range(len(conv.weight)):
            conv.weight[channel, channel, conv.weight.shape[2] // 2, conv.weight.shape[3] // 2] = 1
        conv.bias.zero_()


def test_fitnet_is_the_mean_squared_error_of_real_cells_summed_over_levels():
    student, teacher, targets = outputs()
    wanted = 0.0
    for own, other in level_pairs(student, teacher):
        errors = [
            float(own.features[b, c, y, x] - other.features[b, c, y, x]) ** 2
            for b in range(2) for y, x in cells_of(own, b) for c in range(D)
        ]  # fmt: skip
        wanted += sum(errors) / len(errors)
    assert run(build_for("fitnet", student, teacher), student, teacher, targets)["features"].item() == pytest.approx(wanted, rel=1e-4)


def test_pkd_is_one_minus_pearsons_r_per_channel():
    student, teacher, targets = outputs()
    wanted = 0.0
    for own, other in level_pairs(student, teacher):
        inside = ~own.padding
        count = int(inside.sum())
        # 1/2 mean (a - b)^2 = (1 - r) (n - 1) / n where a and b are standardised with n - 1
        r = [np.corrcoef(own.features[:, c][inside], other.features[:, c][inside])[0, 1] for c in range(D)]
        wanted += float(np.mean([(1 - value) * (count - 1) / count for value in r]))
    assert run(build_for("pkd", student, teacher), student, teacher, targets)["features"].item() == pytest.approx(wanted, rel=1e-4)


def test_pkd_does_not_see_the_scale_and_the_offset_of_a_channel():
    _, teacher, targets = outputs()
    method = build_for("pkd", teacher, teacher)
    student = replace(teacher, memory=tuple(replace(level, features=level.features * 3 + 5) for level in teacher.memory))
    assert run(method, student, teacher, targets)["features"].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_cwd_is_the_divergence_of_every_channels_distribution_over_cells(temperature: float):
    student, teacher, targets = outputs()
    wanted = 0.0
    for own, other in level_pairs(student, teacher):
        for b in range(2):
            for c in range(D):
                cells = cells_of(own, b)
                p = softmax([float(other.features[b, c, y, x]) / temperature for y, x in cells])
                q = softmax([float(own.features[b, c, y, x]) / temperature for y, x in cells])
                wanted += temperature**2 * sum(t * math.log(t / s) for t, s in zip(p, q, strict=True)) / (2 * D)
    method = build_for("cwd", student, teacher, temperature=temperature)
    assert run(method, student, teacher, targets)["channels"].item() == pytest.approx(wanted, rel=1e-4)


def test_mgd_makes_the_teachers_map_out_of_the_cells_that_are_not_hidden():
    student, teacher, targets = outputs()
    method: Any = build_for("mgd", student, teacher, mask_ratio=0.5)
    generator = torch.Generator().manual_seed(method.seed + 3)
    wanted = 0.0
    for own, other in level_pairs(student, teacher):
        first, _, second = method.generators[str(own.stride)]
        drawn = torch.rand(2, 1, *own.features.shape[-2:], generator=generator)
        kept = (drawn >= 0.5) & ~own.padding[:, None]
        hidden = own.features * kept
        made = F.conv2d(F.conv2d(hidden, first.weight, first.bias, padding=1).relu(), second.weight, second.bias, padding=1)
        for b in range(2):
            for y, x in cells_of(own, b):
                wanted += float((made[b, :, y, x] - other.features[b, :, y, x]).detach().square().sum()) / 2
    assert run(method, student, teacher, targets, step=3)["features"].item() == pytest.approx(wanted, rel=1e-4)


def test_mgd_hides_the_stated_share_of_cells_and_others_in_every_step():
    student = random_output(1, (2, 4), width=1, levels=((8, 40, 40),))
    for level in student.memory:
        level.features.fill_(1.0)
    teacher = random_output(1, (2, 4), width=1, levels=((8, 40, 40),))
    for level in teacher.memory:
        level.features.zero_()
    method: Any = build_for("mgd", student, teacher)
    for layer in (method.generators["8"][0], method.generators["8"][2]):
        identity(layer)
    inside = int((~student.memory[0].padding).sum())
    seen = [run(method, student, teacher, batch_of([0, 0], 3), step)["features"].item() * 2 / inside for step in (0, 0, 1)]
    assert seen[0] == seen[1] != seen[2]
    assert seen == pytest.approx([0.35] * 3, abs=0.03)


def attentions(features: Tensor, cells: list[tuple[int, int]], temperature: float) -> tuple[dict[tuple[int, int], float], list[float]]:
    """Spatial and channel attention of one image."""
    spatial = softmax([float(sum(abs(features[c, y, x]) for c in range(D)) / D / temperature) for y, x in cells])
    channel = softmax([float(sum(abs(features[c, y, x]) for y, x in cells) / len(cells) / temperature) for c in range(D)])
    return {cell: value * len(cells) for cell, value in zip(cells, spatial, strict=True)}, [value * D for value in channel]


def painted(targets: TargetBatch, b: int, cells: list[tuple[int, int]]) -> list[dict[tuple[int, int], float]]:
    """Foreground and background weight of every real cell, by painting one box after the other."""
    height, width = max(y for y, _ in cells) + 1, max(x for _, x in cells) + 1
    foreground = dict.fromkeys(cells, 0.0)
    for box in targets.boxes[b][targets.valid[b]]:
        x1, y1, x2, y2 = (float(v) * s for v, s in zip(cxcywh_to_xyxy(box), (width, height, width, height), strict=True))
        rows, columns = range(math.floor(y1), math.ceil(y2) + 1), range(math.floor(x1), math.ceil(x2) + 1)
        for y in rows:
            for x in columns:
                if (y, x) in foreground:
                    foreground[y, x] = max(foreground[y, x], 1 / len(rows) / len(columns))
    empty = [cell for cell in cells if foreground[cell] == 0]
    return [foreground, {cell: 1 / len(empty) if cell in empty else 0.0 for cell in cells}]


def test_fgd_equals_loops_over_images_cells_and_channels():
    student, teacher, targets = outputs()
    method: Any = build_for("fgd", student, teacher)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    wanted = dict.fromkeys(method.term_names, 0.0)
    for own, other in level_pairs(student, teacher):
        key = str(own.stride)
        for b in range(2):
            cells, s, t = cells_of(own, b), own.features[b], other.features[b]
            (spatial, channel), (own_spatial, own_channel) = attentions(t, cells, 0.5), attentions(s, cells, 0.5)
            foreground, background = painted(targets, b, cells)
            for y, x in cells:
                error = sum(channel[c] * float(t[c, y, x] - s[c, y, x]) ** 2 for c in range(D)) * spatial[y, x]
                wanted["foreground"] += foreground[y, x] * error / 2
                wanted["background"] += background[y, x] * error / 2
                wanted["attention"] += abs(spatial[y, x] - own_spatial[y, x]) / 2
            wanted["attention"] += sum(abs(a - c) for a, c in zip(channel, own_channel, strict=True)) / 2
            contexts = []
            for values, block in ((s, method.student_context[key]), (t, method.teacher_context[key])):
                weights = softmax([float(block.weigh.weight[0, :, 0, 0] @ values[:, y, x]) for y, x in cells])
                pooled = torch.stack([w * values[:, y, x] for w, (y, x) in zip(weights, cells, strict=True)]).sum(0)
                down, norm, _, up = block.transform
                hidden = F.linear(pooled, down.weight[:, :, 0, 0], down.bias)
                hidden = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + 1e-5).sqrt()
                hidden = hidden * norm.weight[:, 0, 0] + norm.bias[:, 0, 0]
                contexts.append(F.linear(hidden.relu(), up.weight[:, :, 0, 0], up.bias))
            for y, x in cells:
                wanted["relation"] += float(((s[:, y, x] + contexts[0]) - (t[:, y, x] + contexts[1])).square().sum()) / 2
    terms = run(method, student, teacher, targets)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(wanted, rel=1e-3)


def test_fgd_gives_an_overlap_to_the_smaller_box_and_one_to_the_background_of_every_image():
    inside = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    boxes = torch.tensor([[[0.5, 0.5, 0.9, 0.9], [0.25, 0.25, 0.2, 0.2]], [[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]]])
    targets = TargetBatch(boxes, torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[True, True], [False, False]]))
    foreground, background = foreground_and_background(targets, inside)
    # 0.05..0.95 of 8 cells are 0.4..7.6: cells 0 to 8, of which 8 is outside; 0.15..0.35 are 1.2..2.8: cells 1 to 3
    wanted = torch.full((8, 8), 1 / 81)
    wanted[1:4, 1:4] = 1 / 9
    torch.testing.assert_close(foreground[0, 0], wanted)
    assert not foreground[1].any(), "ignored targets are background"
    assert background[0].sum() == 0 and background[1].sum() == pytest.approx(1.0)


def test_fkd_masks_both_attentions_and_compares_means_through_its_adaptors():
    student, teacher, targets = outputs()
    method: Any = build_for("fkd", student, teacher)
    wanted = dict.fromkeys(("features", "channel", "spatial"), 0.0)
    for own, other in level_pairs(student, teacher):
        modules = method.levels[str(own.stride)]
        squares = dict.fromkeys(wanted, 0.0)
        own_mean, other_mean = own.features.mean(1, keepdim=True) * ~own.padding[:, None], other.features.mean(1)
        spatial = F.conv2d(own_mean, modules.spatial.weight, modules.spatial.bias, padding=1)[:, 0]
        for b in range(2):
            cells, s, t = cells_of(own, b), own.features[b], other.features[b]
            (ts, tc), (ss, sc) = attentions(t, cells, 0.1), attentions(s, cells, 0.1)
            for y, x in cells:
                adapted = F.linear(s[:, y, x], modules.features.weight[:, :, 0, 0], modules.features.bias)
                mask = (ts[y, x] + ss[y, x]) / 2
                squares["features"] += sum(mask * (tc[c] + sc[c]) / 2 * float(adapted[c] - t[c, y, x]) ** 2 for c in range(D))
                squares["spatial"] += float(spatial[b, y, x] - other_mean[b, y, x]) ** 2
            means = [torch.stack([values[:, y, x] for y, x in cells]).mean(0) for values in (s, t)]
            squares["channel"] += float((modules.channel(means[0]) - means[1]).square().sum())
        wanted = {name: wanted[name] + math.sqrt(squares[name]) for name in wanted}
    terms = run(method, student, teacher, targets)
    assert {name: terms[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("stride", [16, 32], ids=["windows of 4", "windows of 2"])
def test_fkds_non_local_term_equals_loops_over_cells_and_windows(stride: int):
    student, teacher = (random_output(1, (2, 4), width=D, levels=((stride, 3, 6),), seed=seed) for seed in (0, 1))
    method: Any = build_for("fkd", student, teacher)
    modules, side = method.levels[str(stride)], {16: 4, 32: 2}[stride]
    with torch.no_grad():
        for block in (modules.student, modules.teacher):
            block.norm.weight.normal_()
            block.norm.bias.normal_()
    relations: list[list[Tensor]] = []
    for level, block in ((student.memory[0], modules.student), (teacher.memory[0], modules.teacher)):
        answers: list[Tensor] = []
        for b in range(2):
            cells, values = cells_of(level, b), level.features[b]
            query, key, value = (
                {cell: F.linear(values[:, cell[0], cell[1]], layer.weight[:, :, 0, 0], layer.bias) for cell in cells}
                for layer in (block.query, block.key, block.value)
            )
            windows: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for y, x in cells:
                windows.setdefault((y // side, x // side), []).append((y, x))
            largest = [[torch.stack([table[cell] for cell in members]).amax(0) for table in (key, value)] for members in windows.values()]
            for cell in cells:
                answer = torch.stack([(query[cell] @ k) * v for k, v in largest]).sum(0) / len(windows)
                answers.append(F.linear(answer, block.out.weight, block.out.bias))
        rows = torch.stack(answers)
        rows = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt() * block.norm.weight + block.norm.bias
        features = [level.features[b, :, y, x] for b in range(2) for y, x in cells_of(level, b)]
        relations.append([feature + row for feature, row in zip(features, rows, strict=True)])
    adapted = [F.linear(row, modules.non_local.weight[:, :, 0, 0], modules.non_local.bias) for row in relations[0]]
    wanted = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(adapted, relations[1], strict=True)))
    terms = run(method, student, teacher, batch_of([1, 1], 3))
    assert terms["non_local"].item() == pytest.approx(wanted, rel=1e-3)


def test_fgfis_mask_equals_a_loop_over_anchors_and_targets():
    config = FGFIConfig(scales=(1.0, 2.0), ratios=(0.5, 1.0, 2.0))
    _, teacher, targets = outputs()
    level = teacher.memory[0]
    mask = imitation_mask(config, targets, ~level.padding[:, None])
    for b in range(2):
        cells = cells_of(level, b)
        height, width = max(y for y, _ in cells) + 1, max(x for _, x in cells) + 1
        wanted: set[tuple[int, int]] = set()
        for box in targets.boxes[b][targets.valid[b]]:
            corners = cxcywh_to_xyxy(box) * torch.tensor([width, height, width, height])
            ious: dict[tuple[int, int], float] = {}
            for y, x in cells:
                for scale in config.scales:
                    for ratio in config.ratios:
                        w, h = scale / math.sqrt(ratio), scale * math.sqrt(ratio)
                        anchor = torch.tensor([[x + 0.5 - w / 2, y + 0.5 - h / 2, x + 0.5 + w / 2, y + 0.5 + h / 2]])
                        ious[y, x] = max(ious.get((y, x), 0.0), float(box_iou(anchor, corners[None])))
            wanted |= {cell for cell, iou in ious.items() if iou > 0.5 * max(ious.values())}
        assert {(int(y), int(x)) for y, x in mask[b].nonzero()} == wanted
        assert wanted


def test_fgfi_divides_the_squared_error_near_objects_by_twice_the_number_of_cells():
    student, teacher, targets = outputs()
    method: Any = build_for("fgfi", student, teacher, scales=(1.0,), ratios=(1.0,))
    wanted = 0.0
    for own, other in level_pairs(student, teacher):
        conv = method.adaptor.convolutions[str(own.stride)]
        adapted = F.conv2d(own.features * ~own.padding[:, None], conv.weight, conv.bias, padding=1)
        near = imitation_mask(method.config, targets, ~own.padding[:, None]).nonzero()
        errors = [float((adapted[b, :, y, x] - other.features[b, :, y, x]).detach().square().sum()) for b, y, x in near]
        wanted += sum(errors) / (2 * len(errors))
    assert run(method, student, teacher, targets)["features"].item() == pytest.approx(wanted, rel=1e-4)
