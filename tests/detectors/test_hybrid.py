"""RT-DETR, RT-DETRv2, D-FINE and DEIMv2 train with transformers' own loss, term by term, and keep denoising apart.

Where transformers departs from the published code of D-FINE, test_d_fine.py has the published rule.
"""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.loss.loss_rt_detr import RTDetrLoss
from transformers.models.d_fine.modeling_d_fine import weighting_function

from tests.examples import SPEC, batch_of, images_of
from tests.families import tiny, tiny_config
from workbench.datasets.targets import TargetBatch
from workbench.detectors.d_fine import DFine, united
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import AuxGroup, Queries, QueryOutput
from workbench.detectors.registry import family
from workbench.detectors.rt_detr import RtDetr
from workbench.errors import CheckpointError

FAMILIES = ("rt_detr", "rt_detr_v2", "d_fine", "deimv2")
REFINED = ("d_fine", "deimv2")
every_family = pytest.mark.parametrize("name", FAMILIES)
IMAGES, PADDING = images_of((64, 96), (64, 96), (64, 96))


def hybrid(name: str, **changes: Any) -> RtDetr:
    detector = tiny(name, **changes)
    assert isinstance(detector, RtDetr)
    return detector


def some_targets() -> TargetBatch:
    """Two, none and three targets; the second of the third image may not be matched."""
    torch.manual_seed(1)
    targets = batch_of([2, 0, 3], 3)
    targets.valid[2, 1] = False
    return targets


def labels_of(targets: TargetBatch) -> list[dict[str, Tensor]]:
    rows = zip(targets.labels, targets.boxes, targets.valid, strict=True)
    return [{"class_labels": label[valid], "boxes": box[valid]} for label, box, valid in rows]


def answer(detector: RtDetr, targets: TargetBatch | None, seed: int = 3) -> QueryOutput:
    torch.manual_seed(seed)
    return detector(IMAGES, PADDING, targets)


@every_family
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_equals_transformers_own_outputs(name: str, training: bool):
    detector, targets = hybrid(name).train(training), some_targets()
    output = answer(detector, targets)
    torch.manual_seed(3)
    theirs = detector.model(IMAGES, labels=labels_of(targets))
    assert output.logits.shape == (2, 3, 6, 3) and output.boxes.shape == (2, 3, 6, 4) and output.states.shape == (2, 3, 6, 32)
    torch.testing.assert_close(output.logits[-1], theirs.logits[:, -6:], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(output.boxes[-1], theirs.pred_boxes[:, -6:].clamp(0, 1), atol=1e-6, rtol=1e-6)
    assert torch.equal(output.states[-1], theirs.last_hidden_state[:, -6:])
    if name not in REFINED:
        first = theirs.auxiliary_outputs[0]
        torch.testing.assert_close(output.logits[0], first["logits"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(output.boxes[0], first["pred_boxes"], atol=1e-6, rtol=1e-6)
    elif training:
        # the only auxiliary output of two layers is the guess before them: transformers' lists start at different layers
        (guess,) = (group for group in output.aux if group.name == "first")
        torch.testing.assert_close(guess.logits[0], theirs.auxiliary_outputs[0]["logits"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(output.logits, theirs.intermediate_logits.transpose(0, 1)[1:, :, -6:], atol=1e-6, rtol=1e-6)
        boxes = theirs.intermediate_reference_points.transpose(0, 1)[1:, :, -6:].clamp(0, 1)
        torch.testing.assert_close(output.boxes, boxes, atol=1e-6, rtol=1e-6)


def their_loss(detector: RtDetr, labels: list[dict[str, Tensor]]) -> Tensor:
    """What transformers' criterion makes of its model; its older releases left denoising queries among those of the last layer."""
    inner = detector.model.model(IMAGES, labels=labels)
    meta = inner.denoising_meta_values
    noisy = meta["dn_num_split"][0]
    logits, boxes = inner.intermediate_logits.transpose(0, 1), inner.intermediate_reference_points.transpose(0, 1)
    layers = [{"logits": a, "pred_boxes": b} for a, b in zip(logits[:, :, noisy:], boxes[:, :, noisy:], strict=True)]
    encoder = {"logits": inner.enc_topk_logits, "pred_boxes": inner.enc_topk_bboxes}
    denoising = [{"logits": a, "pred_boxes": b} for a, b in zip(logits[:, :, :noisy], boxes[:, :, :noisy], strict=True)]
    others = {"auxiliary_outputs": [*layers[:-1], encoder], "dn_auxiliary_outputs": denoising, "denoising_meta_values": meta}
    return torch.stack(list(RTDetrLoss(detector.model.config)(layers[-1] | others, labels).values())).sum()


@pytest.mark.parametrize("name", ["rt_detr", "rt_detr_v2"])
def test_weighted_losses_and_gradients_equal_transformers_own(name: str):
    detector, targets = hybrid(name).train(), some_targets()
    terms = detector.losses(answer(detector, targets), targets, 4.0)
    ours = torch.stack([detector.loss_weights[key] * value for key, value in terms.items()]).sum()
    torch.manual_seed(3)
    theirs = their_loss(detector, labels_of(targets))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    parameters = list(detector.parameters())
    for (key, _), a, b in zip(
        detector.named_parameters(), torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3, msg=key)


def their_terms(detector: DFine, output: QueryOutput, targets: TargetBatch) -> dict[str, Tensor]:
    """transformers' criterion on our groups, every layer with the distribution that is its own, boxes with DEIMv2's common matching."""
    deim = detector.family == "deimv2"
    criterion, labels = (Deimv2Loss if deim else DFineLoss)(detector.model.config), labels_of(targets)
    criterion.up.data = detector.model.model.decoder.up.data
    criterion.reg_scale = detector.model.model.decoder.reg_scale.data
    main = AuxGroup("", output.logits, output.boxes, None, distribution=output.box_distribution, reference=output.context["reference"])
    found: dict[str, Tensor] = {}
    common: list[Any] = []
    for group in (main, *output.aux):
        if group.match is None:
            answers = [{"logits": logits, "pred_boxes": boxes} for logits, boxes in zip(group.logits, group.boxes, strict=True)]
            common += [criterion.matcher(layer, labels) for layer in answers]
    # D-FINE publishes the same rule, but transformers has it for DEIMv2 alone
    common = Deimv2Loss._get_dense_o2o_indices(criterion, common[0], common[1:])  # pyright: ignore[reportArgumentType]
    pairs = max(sum(len(row) for row, _ in common), 1)
    for group in (main, *output.aux):
        end = f"_{group.name}" if group.name else ""
        copies = group.copies
        for layer in range(len(group.logits)):
            answers = {"logits": group.logits[layer], "pred_boxes": group.boxes[layer]}
            losses = ["mal" if deim else "vfl", "boxes"]
            if group.distribution is not None and group.reference is not None:
                losses.append("local")
                answers |= {
                    "pred_corners": group.distribution[layer].flatten(2), "ref_points": group.reference,
                    "teacher_corners": group.distribution[-1].flatten(2), "teacher_logits": group.logits[-1],
                }  # fmt: skip
            if group.match is None:
                indices = criterion.matcher(answers, labels)
            else:
                # the place of a target among those that may be matched
                place = [valid.cumsum(0) - 1 for valid in targets.valid]
                rows = [row.nonzero()[:, 0] for row in group.match[layer] >= 0]
                indices = [(row, place[image][group.match[layer, image, row]]) for image, row in enumerate(rows)]
            for loss in losses:
                shared = group.match is None and loss in ("boxes", "local")
                terms = criterion.get_loss(loss, answers, labels, common if shared else indices, pairs if shared else 4.0 * copies)
                for key, value in terms.items():
                    ours = {"loss_vfl": "class", "loss_mal": "class"}.get(key, key.removeprefix("loss_")) + end
                    found[ours] = found.get(ours, torch.zeros(())) + value
    return found


@pytest.mark.parametrize("name", REFINED)
def test_every_term_equals_transformers_criterion_on_the_layers_own_distribution(name: str):
    detector, targets = hybrid(name), some_targets()
    assert isinstance(detector, DFine)
    output = answer(detector.train(), targets)
    ours, theirs = detector.losses(output, targets, 4.0), their_terms(detector, output, targets)
    assert set(ours) == set(theirs) == set(detector.loss_weights)
    # transformers weights the two parts of this term by the counts of the denoising queries themselves
    del theirs["ddf_denoising"]
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=1e-4, rtol=1e-4, msg=key)
    assert ours["fgl_denoising"] > 0 and ours["ddf"] > 0, "nothing was compared"


@pytest.mark.parametrize("name", REFINED)
def test_boxes_are_read_from_their_distribution(name: str):
    detector = hybrid(name)
    assert isinstance(detector, DFine)
    output = answer(detector, None)
    assert output.box_distribution is not None and output.box_distribution.shape == (2, 3, 6, 4, 9)
    decoder = detector.model.model.decoder
    positions = detector.bin_positions()
    torch.testing.assert_close(positions, weighting_function(8, decoder.up, decoder.reg_scale))
    assert (positions.diff() > 0).all() and positions[4] == 0
    distance = output.box_distribution.softmax(-1) @ positions
    scale, start = decoder.reg_scale.abs(), output.context["reference"]
    near = start[..., :2] - (0.5 * scale + distance[..., :2]) * start[..., 2:] / scale
    far = start[..., :2] + (0.5 * scale + distance[..., 2:]) * start[..., 2:] / scale
    torch.testing.assert_close(torch.cat([(near + far) / 2, far - near], -1).clamp(0, 1), output.boxes)


def test_a_d_fine_that_answers_before_its_last_layer_is_refused():
    detector = hybrid("d_fine")
    detector.model.config.eval_idx = 0
    with pytest.raises(CheckpointError, match="eval_idx 0"):
        DFine(detector.model, SPEC, trainable_norm=True)


def test_a_common_matching_gives_every_query_the_target_that_most_layers_give_it():
    match = torch.tensor([[[0, 1, -1, -1]], [[1, 0, -1, 2]], [[1, -1, -1, 0]]])
    assert united(match, 3).tolist() == [[1, 0, -1, 0]]
    assert united(match[:, :, :0], 3).shape == (1, 0)


@pytest.mark.parametrize("changes", [{}, {"points": 2}])
def test_a_deimv2_on_a_vit_has_levels_of_three_strides(changes: dict[str, Any]):
    options = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32, "patch_size": 16}
    backbone = {"name": "transformers/dinov3_vit", "options": options, "levels": [2, 3, 4]}
    detector = tiny("deimv2", backbone=backbone, **{"points": [2, 3, 2]} | changes)
    output = detector(IMAGES, PADDING)
    theirs = detector.model(IMAGES)  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(output.logits[-1], theirs.logits, atol=1e-6, rtol=1e-6)
    assert [level.stride for level in output.neck] == [8, 16, 32] and [level.stride for level in output.backbone] == [16]
    assert detector.side_multiple == 32


@every_family
def test_denoising_is_invisible_and_ends_in_its_own_group_with_the_targets_it_was_made_of(name: str):
    detector, targets = hybrid(name).train(), some_targets()
    output, without = answer(detector, targets), answer(detector, None)
    # BatchNorm sees the same images; only the attention mask keeps the groups apart
    torch.testing.assert_close(output.logits, without.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.boxes, without.boxes, atol=1e-5, rtol=1e-5)
    assert {group.name for group in without.aux} == {"encoder"} | ({"first"} if name in REFINED else set())
    (group,) = (group for group in output.aux if group.name == "denoising")
    assert group.match is not None and group.copies == 4 and group.logits.shape[:3] == group.match.shape == (2, 3, 16)
    matched = [group.match[0, image][group.match[0, image] >= 0].tolist() for image in range(3)]
    assert matched == [[0, 1] * 4, [], [0, 2] * 4], "four copies of every target that may be matched"
    # two targets a copy: first their positives, then their negatives
    assert (group.match[0, 0].view(4, 4)[:, 2:] == -1).all()


@every_family
def test_a_batch_without_targets_trains_every_parameter(name: str):
    detector = hybrid(name).train()
    targets = TargetBatch.of_nothing(3, torch.device("cpu"))
    terms = detector.losses(answer(detector, targets), targets, 1.0)
    assert set(terms) == set(detector.loss_weights) and all(torch.isfinite(value) for value in terms.values())
    sum(terms.values()).backward()
    trained = {key for key, p in detector.named_parameters() if p.grad is not None}
    assert "model.model.denoising_class_embed.weight" in trained
    boxes_only = {key for key, p in detector.named_parameters() if p.requires_grad} - trained
    assert not boxes_only, "each has a gradient, if only of zeros"


@every_family
def test_queries_name_the_encoder_cell_they_were_selected_from(name: str):
    detector = hybrid(name)
    output = answer(detector, None)
    inner = detector.model.model
    memory = torch.cat([level.features.flatten(2) for level in output.memory], 2).transpose(1, 2)
    _, valid = inner.generate_anchors(tuple((f.features.shape[2], f.features.shape[3]) for f in output.memory))
    content = inner.enc_output(valid * memory).gather(1, output.queries.source[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(output.queries.content, content)
    assert [level.stride for level in output.memory] == [level.stride for level in output.neck] == [4, 8]
    assert not detector.reads_padding and detector.side_multiple == 8


@every_family
def test_an_extra_group_leaves_training_with_denoising_alone_and_reaches_queries_and_weights(name: str):
    detector, targets = hybrid(name).train(), some_targets()
    alone, output = answer(copy.deepcopy(detector), targets), answer(detector, targets)
    content = torch.randn(3, 9, 32, requires_grad=True)
    reference = torch.rand(3, 9, 4).mul(0.8).add(0.1).requires_grad_()
    group = detector.decode(Queries(content, None, reference, torch.full((3, 9), -1)), output.context)
    assert torch.equal(alone.logits, output.logits) and torch.equal(alone.boxes, output.boxes)
    assert group.logits.shape == (2, 3, 9, 3) and group.aux == ()
    (group.logits.sum() + group.boxes.sum()).backward()
    for value in (content, reference, detector.model.model.decoder.layers[0].self_attn.q_proj.weight):
        assert value.grad is not None and value.grad.abs().sum() > 0


@every_family
def test_the_map_of_one_head_times_the_memory_is_what_its_attention_returns(name: str):
    detector = hybrid(name, heads=1)
    seen: list[tuple[dict[str, Any], Tensor]] = []
    layers = detector.model.model.decoder.layers
    layers[1].encoder_attn.register_forward_hook(lambda m, a, kwargs, out: seen.append((kwargs, out[0])), with_kwargs=True)
    with detector.collecting_attentions():
        output = answer(detector, None)
    assert output.attentions is not None
    cross = output.attentions.cross_attention[1, :, 0]
    memory, module = seen[0][0]["encoder_hidden_states"], layers[1].encoder_attn
    if name in REFINED:
        read = cross @ memory
    else:
        read = module.output_proj(cross @ module.value_proj(memory))
    torch.testing.assert_close(read, seen[0][1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["rt_detr", "rt_detr_v2"])
def test_a_checkpoint_without_auxiliary_loss_answers_alike(name: str):
    detector = hybrid(name)
    wanted = answer(detector, None)
    detector.model.config.auxiliary_loss = False
    output, theirs = answer(detector, None), detector.model(IMAGES, labels=labels_of(some_targets()))
    assert torch.equal(output.logits, wanted.logits) and torch.equal(output.logits[-1], theirs.logits)


@every_family
@pytest.mark.parametrize("training", [False, True])
def test_queries_that_fill_up_a_group_are_hidden_from_the_others(name: str, training: bool):
    detector = hybrid(name).train(training)
    output = answer(detector, some_targets())
    queries = output.queries
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[:, 4:] = False
    assert queries.reference is not None
    fewer = Queries(queries.content[:, :4], None, queries.reference[:, :4], queries.source[:, :4])
    hidden = detector.decode(dataclasses.replace(queries, valid=valid), output.context)
    wanted = detector.decode(fewer, output.context)
    torch.testing.assert_close(hidden.logits[:, :, :4], wanted.logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(output.logits[:, :, :4], wanted.logits, atol=1e-3)


@every_family
def test_new_classes_get_a_fresh_denoising_embedding(name: str):
    detector = hybrid(name)
    fresh = detector.reset_classes(InputSpec(("a", "b", "c", "d", "e"), SPEC.mean, SPEC.std))
    assert "model.denoising_class_embed.weight" in fresh and "model.enc_score_head.weight" in fresh
    assert detector.model.model.denoising_class_embed.weight.shape == (6, 32)
    assert answer(detector.train(), some_targets()).logits.shape == (2, 3, 6, 5)


@every_family
def test_a_fresh_model_has_norms_of_ordinary_scale(name: str):
    torch.manual_seed(0)
    detector = type(hybrid(name)).build(_config(name), SPEC)
    scales = [m.weight for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert scales and all((scale == 1).all() for scale in scales)
    assert detector.eval()(IMAGES, PADDING).logits.sigmoid().max() < 0.2


def _config(name: str) -> Any:
    return family(name).config.model_validate(tiny_config(name))
