"""D-FINE's criterion, with one matching for the boxes of all layers, equals loops over queries and numbers worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from tests.examples import batch_of, images_of
from tests.families import tiny
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch, Targets
from workbench.detectors.d_fine import DFine
from workbench.detectors.distribution import bin_positions, distribution_losses
from workbench.detectors.output import AuxGroup, DetectorOutput
from workbench.matching import match_targets

IMAGES, PADDING = images_of((64, 96), (64, 96), (64, 96))


def refined(name: str, **changes: Any) -> DFine:
    detector = tiny(name, **changes)
    assert isinstance(detector, DFine)
    return detector.train()


def votes(matches: list[Tensor], image: int, query: int) -> int:
    """The target that most of the matchings ``[B, N]`` give a query, the first of several; -1 if none does."""
    given = [int(match[image, query]) for match in matches if match[image, query] >= 0]
    return min(given, key=lambda target: (-given.count(target), target)) if given else -1


def edges_loss(logits: Tensor, reference: Tensor, box: Tensor, positions: list[float], scale: float) -> float:
    """The cross-entropy with the two bins around the true distance, summed over the four edges of one query."""
    centre, sides = reference[:2].tolist(), reference[2:].tolist()
    corners, total = cxcywh_to_xyxy(box).tolist(), 0.0
    for edge in range(4):
        axis, sign = edge % 2, 1 if edge >= 2 else -1
        distance = sign * (corners[edge] - centre[axis]) / (sides[axis] / scale) - 0.5 * scale
        left = max((n for n in range(len(positions) - 1) if positions[n] <= distance), default=0)
        share = min(max((distance - positions[left]) / (positions[left + 1] - positions[left]), 0.0), 1.0)
        score = logits[edge].log_softmax(-1)
        total += -(1 - share) * float(score[left]) - share * float(score[left + 1])
    return total


def boxes_of_group(group: AuxGroup, chosen: list[Tensor], targets: TargetBatch, pairs: float, detector: DFine) -> dict[str, float]:
    """The three terms of matched boxes, summed over layers; ``chosen`` is ``[B, N]`` for each layer."""
    found: dict[str, float] = dict.fromkeys(("bbox", "giou", "fgl"), 0.0)
    positions, scale = detector.bin_positions().tolist(), float(detector.model.model.decoder.reg_scale)
    for layer, match in enumerate(chosen):
        for image, query in (match >= 0).nonzero().tolist():
            box, wanted = group.boxes[layer, image, query], targets.boxes[image, int(match[image, query])]
            found["bbox"] += float((box - wanted).abs().sum()) / pairs
            a, b = cxcywh_to_xyxy(box)[None], cxcywh_to_xyxy(wanted)[None]
            found["giou"] += (1 - float(generalized_box_iou(a, b))) / pairs
            if group.distribution is not None and group.reference is not None:
                loss = edges_loss(group.distribution[layer, image, query], group.reference[image, query], wanted, positions, scale)
                found["fgl"] += float(box_iou(a, b)) * loss / pairs
    return found


def divergence(group: AuxGroup, chosen: list[Tensor], targets: TargetBatch, counts: list[tuple[int, int]]) -> float:
    """The divergence of each layer from the last; ``counts`` are the matched and unmatched queries that weight each layer's two means."""
    assert group.distribution is not None
    total = 0.0
    for layer in range(len(chosen) - 1):
        parts: tuple[list[float], list[float]] = ([], [])
        for image in range(group.boxes.shape[1]):
            for query in range(group.boxes.shape[2]):
                target = int(chosen[layer][image, query])
                weight = float(group.logits[-1, image, query].sigmoid().max())
                if target >= 0:
                    box, wanted = group.boxes[layer, image, query], targets.boxes[image, target]
                    weight = float(box_iou(cxcywh_to_xyxy(box)[None], cxcywh_to_xyxy(wanted)[None]))
                for edge in range(4):
                    p = (group.distribution[-1, image, query, edge] / 5).softmax(-1)
                    q = (group.distribution[layer, image, query, edge] / 5).softmax(-1)
                    parts[target < 0].append(weight * 25 * float((p * (p / q).log()).sum()))
        roots = [math.sqrt(count) for count in counts[layer]]
        total += sum(root * sum(part) / len(part) for root, part in zip(roots, parts, strict=True) if part) / sum(roots)
    return total


@torch.no_grad()
def expected(detector: DFine, output: DetectorOutput, targets: TargetBatch, shared: bool) -> dict[str, float]:
    """All terms of boxes by loops."""
    main = AuxGroup("", output.logits, output.boxes, None, distribution=output.box_distribution, reference=output.context["reference"])
    groups = [main, *output.aux]
    own = {g.name: list(match_targets(g.logits, g.boxes, targets) if g.match is None else g.match) for g in groups}
    everywhere = [match for g in groups if g.match is None for match in own[g.name]]
    images, queries = main.boxes.shape[1:3]
    union = torch.tensor([[votes(everywhere, image, query) for query in range(queries)] for image in range(images)])
    number = max(float(targets.valid.sum()), 1.0)
    found: dict[str, float] = {}
    for group in groups:
        common = shared and group.match is None
        chosen = [union] * len(group.boxes) if common else own[group.name]
        pairs = max(float((union >= 0).sum()), 1.0) if common else number * group.copies
        terms = boxes_of_group(group, chosen, targets, pairs, detector)
        if group.distribution is None:
            del terms["fgl"]
        else:
            ordinary = [union] * len(main.boxes) if shared else own[""]
            weighing = ordinary if group is main else [ordinary[-2]] * len(group.boxes)
            counts = [(int((match >= 0).sum()), int((match < 0).sum())) for match in weighing]
            terms["ddf"] = divergence(group, chosen, targets, counts)
        found |= {f"{name}_{group.name}".rstrip("_"): value for name, value in terms.items()}
    return found


@pytest.mark.parametrize("targets_of", [[2, 0, 3], [5, 1, 4], [0, 0, 1], [0, 0, 0]], ids=str)
@pytest.mark.parametrize(("name", "shared"), [("d_fine", True), ("deimv2", True), ("deimv2", False)])
def test_every_term_of_boxes_equals_loops_with_denoising_and_images_without_targets(name: str, shared: bool, targets_of: list[int]):
    detector = refined(name, decoder_layers=3, queries=8)
    if not shared:
        detector.model.config.use_dense_one_to_one = False
    targets = batch_of(targets_of, 3, torch.Generator().manual_seed(5))
    if targets_of[0] > 1:
        targets.valid[0, 1] = False
    torch.manual_seed(3)
    output = detector(IMAGES, PADDING, targets)
    ours = detector.losses(output, targets, max(float(targets.valid.sum()), 1.0))
    wanted = expected(detector, output, targets, shared)
    assert {name for name in ours if not name.startswith("class")} == set(wanted)
    assert {name: float(ours[name].detach()) for name in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert any(targets_of) == (wanted["ddf_denoising"] > 0)


def one_target() -> TargetBatch:
    return TargetBatch.of([Targets(torch.tensor([[0.4, 0.5, 0.2, 0.2]]), torch.tensor([0]), torch.tensor([True]))])


def shifted(*layers: tuple[float, ...]) -> Tensor:
    """Boxes ``[L, 1, N, 4]`` that lie so far to the right of the target."""
    boxes = one_target().boxes[0, 0].repeat(len(layers), 1, len(layers[0]), 1)
    boxes[..., 0] += torch.tensor(layers)[:, None]
    return boxes


def test_boxes_are_trained_where_any_layer_the_first_guess_or_the_encoder_matches_a_target():
    detector = refined("d_fine", queries=3)
    logits = torch.zeros(2, 1, 3, 3)
    first = AuxGroup("first", logits[:1], shifted((0.2, 0.0, 0.1)), match=None)
    encoder = AuxGroup("encoder", logits[:1], shifted((0.3, 0.2, 0.0)), match=None)
    output = detector(IMAGES[:1], PADDING[:1])
    assert output.box_distribution is not None
    output = replace(output, logits=logits, boxes=shifted((0.0, 0.1, 0.2), (0.1, 0.0, 0.3)), aux=(first, encoder))
    terms = detector.losses(output, one_target(), 1.0)
    # the layers match queries 0 and 1, the first guess 1, the encoder 2: three pairs, and every layer is trained on all of them
    assert terms["bbox"].item() == pytest.approx((0.0 + 0.1 + 0.2 + 0.1 + 0.0 + 0.3) / 3, abs=1e-6)
    assert terms["bbox_first"].item() == pytest.approx((0.2 + 0.0 + 0.1) / 3, abs=1e-6)
    assert terms["bbox_encoder"].item() == pytest.approx((0.3 + 0.2 + 0.0) / 3, abs=1e-6)
    # a box of side 0.2 that lies 0.1 beside another has a third of their union and all of their hull, one that lies 0.2 or 0.3 beside it
    # has nothing of the union, and 0 or 0.1 of a hull of 0.5 lies between them
    near, touching, apart = 2 / 3, 1.0, 1.0 + 0.1 / 0.5
    assert terms["giou"].item() == pytest.approx((near + touching + near + apart) / 3, abs=1e-5)
    # classes keep the matching of their own layer: of three queries at probability 0.5 the matched one has the quality 1
    right, wrong = math.log(2), 0.75 * 0.25 * math.log(2)
    assert terms["class"].item() == pytest.approx(2 * (right + 8 * wrong), abs=1e-5)


def test_the_two_parts_of_the_divergence_are_weighted_by_the_counts_that_are_given():
    positions = bin_positions(4, torch.tensor([0.5]), torch.tensor([4.0]))
    distribution = torch.zeros(2, 1, 2, 4, 5)
    distribution[0, ..., 0] = 5 * math.log(3)
    boxes, logits = shifted((0.0, 0.5), (0.0, 0.5)), torch.zeros(2, 1, 2, 3)
    match = torch.tensor([[[0, -1]], [[0, -1]]])
    # at temperature 5 the first layer has 3/7 in one bin and 1/7 in four, the last 1/5 in each
    each = 25 * (math.log(7 / 5) - math.log(3) / 5)
    matched, unmatched = each * 1.0, each * 0.5  # times the IoU, times the best score
    arguments = (distribution, logits, boxes, boxes[0], match, one_target(), 1.0, positions, torch.tensor([4.0]))
    assert distribution_losses(*arguments)["ddf"].item() == pytest.approx((matched + unmatched) / 2, rel=1e-5)
    given = distribution_losses(*arguments, torch.tensor([4, 9]))["ddf"].item()
    assert given == pytest.approx((2 * matched + 3 * unmatched) / 5, rel=1e-5)
    assert given == pytest.approx(2.0431, abs=1e-4)
