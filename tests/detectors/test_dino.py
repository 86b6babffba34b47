"""DINO keeps the contract of every detector, and its denoising queries stay out of everybody's sight."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.examples import SPEC, batch_of, images_of
from workbench.datasets.targets import TargetBatch
from workbench.detectors import dino
from workbench.detectors.criterion import set_loss
from workbench.detectors.denoising import NoisedTargets
from workbench.detectors.detector import InputSpec
from workbench.detectors.dino import Dino, DinoModelConfig
from workbench.detectors.output import Queries, QueryOutput
from workbench.detectors.registry import load_detector
from workbench.errors import CheckpointError, ConfigError, IncompatibleError, WorkbenchError
from workbench.matching import match_targets

SMALL: dict[str, Any] = {
    "backbone": {"stem": 8, "widths": [8, 16], "depths": [1, 1], "levels": [2]},
    "width": 32, "heads": 4, "ffn": 32, "encoder_layers": 1, "decoder_layers": 3, "queries": 6, "levels": 1, "denoising": 6,
}  # fmt: skip
TWO_LEVELS = {"levels": 2, "backbone": SMALL["backbone"] | {"levels": [1, 2]}}
VARIANTS: dict[str, dict[str, Any]] = {
    "one level": {},
    "two levels": TWO_LEVELS,
    "extra levels, heads apart": {"levels": 3, "share_heads": False},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
SIZES = ((64, 96), (64, 80), (40, 96))
COUNTS = (2, 0, 3)


def small_dino(seed: int = 0, spec: InputSpec = SPEC, **changes: Any) -> Dino:
    """A tiny DINO in eval mode whose every weight and statistic is random."""
    torch.manual_seed(seed)
    detector = Dino.build(DinoModelConfig.model_validate(SMALL | changes), spec).eval()
    with torch.no_grad():
        for name, value in detector.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.add_(0.1 * torch.randn_like(value))
    return detector


@pytest.fixture(scope="module")
def detectors() -> dict[str, Dino]:
    return {name: small_dino(**changes) for name, changes in VARIANTS.items()}


def some_targets() -> TargetBatch:
    return batch_of(COUNTS, 3, torch.Generator().manual_seed(7))


def trained_output(detector: Dino, seed: int = 0) -> QueryOutput:
    torch.manual_seed(seed)
    return detector.train()(*images_of(*SIZES), some_targets())


def same(one: QueryOutput, two: QueryOutput, **tolerance: float) -> None:
    for a, b in ((one.logits, two.logits), (one.boxes, two.boxes), (one.states, two.states)):
        torch.testing.assert_close(a, b, **(tolerance or {"atol": 1e-5, "rtol": 1e-5}))


@every_variant
def test_the_output_has_every_layer_and_the_queries_that_went_in(detectors: dict[str, Dino], variant: str):
    output = detectors[variant](*images_of(*SIZES))
    assert output.logits.shape == (3, 3, 6, 3) and output.boxes.shape == (3, 3, 6, 4) and output.states.shape == (3, 3, 6, 32)
    assert ((output.boxes > 0) & (output.boxes < 1)).all()
    assert torch.equal(output.queries.content, detectors[variant].content.weight.expand(3, -1, -1))
    assert output.queries.position is None and output.queries.reference is not None
    assert output.queries.reference.shape == (3, 6, 4) and not output.queries.reference.requires_grad
    assert output.aux == () and output.activation == "sigmoid"
    last = detectors[variant].class_heads[-1](output.states[-1])
    torch.testing.assert_close(last, output.logits[-1])


@every_variant
def test_queries_are_the_cells_whose_best_class_scores_highest(detectors: dict[str, Dino], variant: str):
    detector = detectors[variant]
    output = detector(*images_of(*SIZES))
    cells = torch.cat([level.features.flatten(2) for level in output.memory], 2).transpose(1, 2)
    padding = torch.cat([level.padding.flatten(1) for level in output.memory], 1)
    with torch.no_grad():
        scores = detector.proposal_class(detector.proposal_norm(detector.proposal(cells.masked_fill(padding[..., None], 0.0)))).amax(-1)
    for image in range(3):
        best = sorted(range(scores.shape[1]), key=lambda cell: -float(scores[image, cell]))
        real = [cell for cell in output.queries.source[image].tolist() if not padding[image, cell]]
        # cells of padding all score alike, so that any of them may stand for the others
        assert real == [cell for cell in best if not padding[image, cell]][: len(real)]
        assert scores[image, output.queries.source[image]].sort().values.tolist() == scores[image].sort().values[-6:].tolist()


def test_a_query_starts_at_the_box_that_its_cell_proposes():
    detector = small_dino()
    output = detector(*images_of((64, 96)))
    assert output.queries.reference is not None
    (level,) = output.memory
    with torch.no_grad():
        cells = detector.proposal_norm(detector.proposal(level.features.flatten(2).transpose(1, 2)))
        delta = detector.proposal_box(cells)[0]
    for query, source in enumerate(output.queries.source[0].tolist()):
        row, column = divmod(source, 12)
        anchor = torch.tensor([(column + 0.5) / 12, (row + 0.5) / 8, 0.05, 0.05])
        torch.testing.assert_close(output.queries.reference[0, query], (delta[source] + anchor.logit()).sigmoid())


@every_variant
@pytest.mark.parametrize("training", [False, True])
def test_decoding_the_own_queries_again_gives_the_same_output(detectors: dict[str, Dino], variant: str, training: bool):
    detector = copy.deepcopy(detectors[variant]).train(training)
    with torch.no_grad():
        output = detector(*images_of(*SIZES), some_targets())
        again = detector.decode(output.queries, output.context)
    same(again, output)
    assert again.memory is output.memory and again.aux == ()


def extra_group(output: QueryOutput, count: int) -> Queries:
    generator = torch.Generator().manual_seed(5)
    batch, width = output.states.shape[1], output.states.shape[-1]
    content = torch.randn(batch, count, width, generator=generator, requires_grad=True)
    reference = torch.rand(batch, count, 4, generator=generator).mul(0.8).add(0.1).requires_grad_()
    return Queries(content, None, reference, torch.full((batch, count), -1))


@every_variant
@pytest.mark.parametrize("training", [False, True])
def test_an_extra_group_leaves_the_own_output_unchanged_to_the_bit(detectors: dict[str, Dino], variant: str, training: bool):
    detector = copy.deepcopy(detectors[variant]).train(training)
    outputs = []
    for with_group in (False, True):
        torch.manual_seed(0)
        output = detector(*images_of(*SIZES), some_targets())
        if with_group:
            group = detector.decode(extra_group(output, 9), output.context)
            assert group.logits.shape == (3, 3, 9, 3) and group.boxes.shape == (3, 3, 9, 4)
        outputs.append(output)
    assert torch.equal(outputs[0].logits, outputs[1].logits) and torch.equal(outputs[0].boxes, outputs[1].boxes)
    assert torch.equal(detector.decode(output.queries, output.context).logits, detector.decode(output.queries, output.context).logits)


@every_variant
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_of_an_extra_group_reach_its_queries_and_the_shared_weights(variant: str, dropout: float):
    for training in (False, True):
        detector = small_dino(**VARIANTS[variant] | {"dropout": dropout}).train(training)
        output = detector(*images_of(*SIZES), some_targets())
        queries = extra_group(output, 4)
        group = detector.decode(queries, output.context)
        (group.logits.square().sum() + group.boxes.square().sum()).backward()
        for value in (queries.content, queries.reference):
            assert value is not None and value.grad is not None and value.grad.abs().sum() > 0
        names = ("class_heads.0.weight", "decoder.0.self_attn.q_proj.weight", "encoder.0.mlp.fc1.weight", "position_head.layers.0.weight")
        for name in names:
            gradient = detector.get_parameter(name).grad
            assert gradient is not None and gradient.abs().sum() > 0, name


def test_queries_that_are_not_valid_are_seen_by_no_other(detectors: dict[str, Dino]):
    output = detectors["two levels"](*images_of(*SIZES))
    group = extra_group(output, 4)
    valid = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    plain = detectors["two levels"].decode(replace(group, valid=valid), output.context)
    content = torch.where(valid[..., None], group.content, torch.full_like(group.content, 3.0))
    changed = detectors["two levels"].decode(replace(group, content=content, valid=valid), output.context)
    assert torch.equal(changed.logits[:, valid], plain.logits[:, valid])
    assert not torch.equal(changed.logits[:, ~valid], plain.logits[:, ~valid])
    alone = detectors["two levels"].decode(Queries(group.content[:, :2], None, group.reference[:, :2], group.source[:, :2]), output.context)
    torch.testing.assert_close(alone.logits[:, 0], plain.logits[:, 0, :2], atol=1e-5, rtol=1e-5)
    assert torch.isfinite(plain.logits).all()


def test_queries_without_boxes_cannot_be_decoded(detectors: dict[str, Dino]):
    output = detectors["one level"](*images_of((64, 96)))
    for reference in (None, torch.rand(1, 6, 2)):
        with pytest.raises(IncompatibleError, match="reference boxes"):
            detectors["one level"].decode(replace(output.queries, reference=reference), output.context)


@every_variant
def test_permuted_queries_give_permuted_answers(detectors: dict[str, Dino], variant: str):
    output = detectors[variant](*images_of(*SIZES))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    queries = output.queries
    assert queries.reference is not None
    permuted = replace(queries, content=queries.content[:, order], reference=queries.reference[:, order])
    again = detectors[variant].decode(permuted, output.context)
    torch.testing.assert_close(again.logits, output.logits[:, :, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.boxes, output.boxes[:, :, order], atol=1e-5, rtol=1e-5)


@every_variant
def test_an_image_answers_the_same_alone_and_in_a_batch_of_its_size(detectors: dict[str, Dino], variant: str):
    images, padding = images_of(*SIZES)
    together = detectors[variant](images, padding)
    for index in range(3):
        alone = detectors[variant](images[index : index + 1], padding[index : index + 1])
        torch.testing.assert_close(alone.logits[:, 0], together.logits[:, index], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, index], atol=1e-5, rtol=1e-5)
        assert torch.equal(alone.queries.source[0], together.queries.source[index])


def test_what_padded_cells_hold_does_not_matter():
    detector = small_dino(**TWO_LEVELS)
    images, padding = images_of(*SIZES)
    plain = detector(images, padding)
    for level, projection in zip(plain.neck, detector.neck, strict=True):
        projection.register_forward_hook(lambda module, args, output, mask=level.padding[:, None]: output.masked_fill(mask, 1e3))
    changed = detector(images, padding)
    assert (changed.neck[0].features - plain.neck[0].features).abs().max() > 100
    assert torch.equal(changed.logits, plain.logits) and torch.equal(changed.boxes, plain.boxes)


@every_variant
def test_feature_levels_have_the_strides_shapes_and_padding_of_the_images(detectors: dict[str, Dino], variant: str):
    images, padding = images_of(*SIZES)
    output = detectors[variant](images, padding)
    strides = {"one level": [8], "two levels": [4, 8], "extra levels, heads apart": [8, 16, 32]}[variant]
    for levels in (output.memory, output.neck):
        assert [level.stride for level in levels] == strides
        for level in levels:
            assert level.features.shape == (3, 32, 64 // level.stride, 96 // level.stride)
            # a cell is padding where the pixel it starts at is
            assert torch.equal(level.padding, padding[:, :: level.stride, :: level.stride])
    assert [(level.stride, level.features.shape[1]) for level in output.backbone] == [(s, {4: 8, 8: 16}[s]) for s in strides if s < 16]
    assert torch.equal(output.neck[0].features, detectors[variant].neck[0](output.backbone[0].features))


@pytest.mark.parametrize("size", [(65, 65), (40, 200), (33, 129)])
def test_sizes_that_are_no_multiple_of_the_strides_fit(detectors: dict[str, Dino], size: tuple[int, int]):
    output = detectors["extra levels, heads apart"](*images_of(size))
    assert [level.features.shape[2:] for level in output.memory] == [tuple(-(-side // stride) for side in size) for stride in (8, 16, 32)]
    assert torch.isfinite(output.logits).all()


def test_images_with_fewer_cells_than_queries_are_refused(detectors: dict[str, Dino]):
    with pytest.raises(ConfigError, match="4 encoder cells, fewer than the 6 queries"):
        detectors["one level"](*images_of((16, 16)))


@pytest.mark.parametrize("queries", [6, 1025])
def test_methods_can_learn_its_widths_from_a_blank_image_whatever_the_number_of_queries(queries: int):
    detector = small_dino(queries=queries)
    assert detector.blank_output().queries.content.shape == (1, queries, 32)
    assert detector.level_channels("memory") == {8: 32} and detector.level_channels("backbone") == {8: 16}


@every_variant
def test_denoising_leaves_the_inference_queries_untouched(detectors: dict[str, Dino], variant: str):
    detector = copy.deepcopy(detectors[variant])
    one, two = trained_output(detector, seed=0), trained_output(detector, seed=1)
    denoising = one.aux[0]
    assert denoising.name == "denoising" and denoising.logits.shape == (3, 3, 12, 3) and denoising.boxes.shape == (3, 3, 12, 4)
    assert not torch.equal(denoising.logits, two.aux[0].logits), "another seed draws other noise"
    assert torch.equal(one.logits, two.logits) and torch.equal(one.boxes, two.boxes)
    without = detector(*images_of(*SIZES))
    same(one, without)
    assert one.logits.shape == (3, 3, 6, 3)


def test_a_change_of_one_denoising_group_changes_no_other(monkeypatch: pytest.MonkeyPatch):
    detector = small_dino()
    drawn = dino.noised_targets

    def changed(*arguments: Any) -> NoisedTargets:
        noised = drawn(*arguments)
        boxes, labels = noised.boxes.clone(), noised.labels.clone()
        boxes[:, :6], labels[:, :6] = 0.5, (labels[:, :6] + 1) % 3
        return replace(noised, boxes=boxes, labels=labels)

    plain = trained_output(detector)
    monkeypatch.setattr(dino, "noised_targets", changed)
    other = trained_output(detector)
    assert plain.aux[0].copies == 2
    assert not torch.equal(plain.aux[0].logits[:, :, :6], other.aux[0].logits[:, :, :6])
    assert torch.equal(plain.aux[0].logits[:, :, 6:], other.aux[0].logits[:, :, 6:])
    assert torch.equal(plain.logits, other.logits)


def test_a_denoising_query_sees_the_inference_queries():
    detector = small_dino()
    plain = trained_output(detector)
    with torch.no_grad():
        detector.content.weight[0] += 1
    assert not torch.equal(trained_output(detector).aux[0].logits, plain.aux[0].logits)


def test_no_gradient_of_the_inference_queries_reaches_the_label_embedding():
    detector = small_dino()
    output = trained_output(detector)
    (output.logits.sum() + output.boxes.sum()).backward(retain_graph=True)
    gradient = detector.label_embedding.weight.grad
    assert gradient is None or not gradient.any()
    output.aux[0].logits.sum().backward()
    assert detector.label_embedding.weight.grad is not None and detector.label_embedding.weight.grad.any()


def test_no_gradient_of_the_decoder_reaches_the_heads_of_the_proposals():
    detector = small_dino()
    for output in (trained_output(detector), detector.eval()(*images_of(*SIZES))):
        heads = [*detector.proposal_box.parameters(), *detector.proposal_class.parameters()]
        total = output.logits.sum() + output.boxes.sum() + sum(g.boxes.sum() for g in output.aux if g.name == "denoising")
        assert all(gradient is None for gradient in torch.autograd.grad(total, heads, allow_unused=True))


def test_there_is_denoising_in_training_with_targets_only(detectors: dict[str, Dino]):
    detector = copy.deepcopy(detectors["one level"])
    images = images_of(*SIZES)
    assert [group.name for group in detector.train()(*images, some_targets()).aux] == ["denoising", "encoder"]
    assert [group.name for group in detector.train()(*images).aux] == ["encoder"]
    assert detector.eval()(*images, some_targets()).aux == ()
    plain = small_dino(denoising=0).train()
    assert [group.name for group in plain(*images, some_targets()).aux] == ["encoder"]
    assert set(plain.loss_weights) == {f"{term}{end}" for term in ("class", "bbox", "giou") for end in ("", "_encoder")}


def test_losses_are_those_of_the_published_criterion():
    detector = small_dino()
    targets = some_targets()
    output = trained_output(detector)
    losses = detector.losses(output, targets, 5.0)
    assert detector.loss_weights == {
        f"{term}{end}": weight for end in ("", "_encoder", "_denoising") for term, weight in (("class", 1.0), ("bbox", 5.0), ("giou", 2.0))
    }
    assert set(losses) == set(detector.loss_weights)
    denoising, encoder = output.aux
    # every group holds each target once, so the sum is divided by their number too
    assert denoising.match is not None and denoising.copies == 2
    wanted = set_loss(denoising.logits, denoising.boxes, denoising.match, targets, 5.0 * 2)
    # proposals know classes and are matched like a decoder layer
    matched = match_targets(encoder.logits, encoder.boxes, targets)
    proposed = set_loss(encoder.logits, encoder.boxes, matched, targets, 5.0)
    assert not encoder.any_class and encoder.logits.shape == (1, 3, 6, 3)
    for term in ("class", "bbox", "giou"):
        assert torch.equal(losses[f"{term}_denoising"], wanted[term])
        assert torch.equal(losses[f"{term}_encoder"], proposed[term])


def test_positives_are_trained_towards_their_target_and_negatives_towards_nothing():
    targets = some_targets()
    (denoising, _) = trained_output(small_dino()).aux
    assert denoising.match is not None
    # COUNTS targets, three positive and three negative slots in each of two groups
    assert denoising.match[0].tolist() == [[0, 1, -1, -1, -1, -1] * 2, [-1] * 12, [0, 1, 2, -1, -1, -1] * 2]
    assert torch.equal(denoising.match, denoising.match[:1].expand(3, -1, -1))
    perfect = torch.full_like(denoising.logits, -20.0)
    boxes = denoising.boxes.detach().clone()
    for image, row in enumerate(denoising.match[0].tolist()):
        for slot, target in enumerate(row):
            if target >= 0:
                perfect[:, image, slot, targets.labels[image, target]] = 20.0
                boxes[:, image, slot] = targets.boxes[image, target]
    losses = set_loss(perfect, boxes, denoising.match, targets, 1.0)
    assert sum(losses.values()).item() == pytest.approx(0.0, abs=1e-4)


@every_variant
def test_every_parameter_is_trained_with_targets_and_without_any(variant: str):
    for counts in (COUNTS, (0, 0, 0)):
        detector = small_dino(**VARIANTS[variant]).train()
        targets = batch_of(counts, 3)
        losses = detector.losses(detector(*images_of(*SIZES), targets), targets, 5.0)
        total = torch.stack([losses[name] * weight for name, weight in detector.loss_weights.items()]).sum()
        assert torch.isfinite(total)
        total.backward()
        assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []
        if not any(counts):
            assert all(losses[f"{term}_denoising"] == 0 for term in ("class", "bbox", "giou"))


def test_boxes_look_forward_twice():
    detector = small_dino(share_heads=False)
    output = detector(*images_of((64, 96)))

    def reached(layer: int) -> list[bool]:
        gradients = torch.autograd.grad(
            output.boxes[layer].sum(), [head.layers[0].weight for head in detector.box_heads], retain_graph=True, allow_unused=True
        )
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    assert [reached(layer) for layer in range(3)] == [[True, False, False], [True, True, False], [False, True, True]]


def test_heads_are_shared_between_layers_or_not():
    for shared in (True, False):
        detector = small_dino(share_heads=shared)
        assert len({id(head) for head in detector.class_heads}) == len({id(head) for head in detector.box_heads}) == (1 if shared else 3)


def test_a_fresh_model_starts_at_the_focal_prior_with_boxes_at_their_proposals():
    torch.manual_seed(0)
    detector = Dino.build(DinoModelConfig.model_validate(SMALL), SPEC).eval()
    output = detector(*images_of((64, 96)))
    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)
    for layer in output.boxes:
        torch.testing.assert_close(layer, output.queries.reference, atol=1e-4, rtol=0)
    sampling: Any = detector.encoder[0].self_attn
    offsets = sampling.sampling_offsets.bias.view(4, 1, 4, 2)
    torch.testing.assert_close(offsets[:, 0, 1], torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]]), atol=1e-6, rtol=0)


def test_the_same_seed_builds_the_same_model_and_a_copy_answers_for_itself():
    one, two, other = small_dino(1), small_dino(1), small_dino(2)
    images = images_of((64, 96))
    assert torch.equal(one(*images).logits, two(*images).logits) and not torch.equal(one(*images).logits, other(*images).logits)
    clone = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(0.1)
    assert torch.equal(one(*images).logits, two(*images).logits) and not torch.equal(clone(*images).logits, one(*images).logits)


@pytest.mark.parametrize("share", [True, False])
def test_a_reset_head_knows_the_new_classes_and_keeps_everything_else(share: bool):
    detector = small_dino(share_heads=share)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    spec = InputSpec(("cat", "dog", "bird", "cow", "sheep"), SPEC.mean, SPEC.std)
    fresh = detector.reset_classes(spec)
    assert detector.spec == spec
    after = detector.state_dict()
    layers = [0] if share else [0, 1, 2]
    heads = [f"{head}.{part}" for head in (*(f"class_heads.{i}" for i in layers), "proposal_class") for part in ("weight", "bias")]
    assert sorted(fresh) == sorted([*heads, "label_embedding.weight"])
    for name, value in after.items():
        if not name.startswith(("class_heads", "proposal_class", "label_embedding")):
            assert torch.equal(value, before[name]), name
    output = trained_output(detector)
    assert output.logits.shape[-1] == output.aux[0].logits.shape[-1] == output.aux[1].logits.shape[-1] == 5


@every_variant
def test_a_saved_detector_loads_with_equal_outputs(variant: str, tmp_path: Path):
    spec = InputSpec(("cat", "<b>dog</b>", "../bird"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), {"height": 64, "width": 96})
    detector = small_dino(spec=spec, **VARIANTS[variant])
    detector.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "workbench.json"]
    loaded = load_detector(tmp_path).eval()
    assert isinstance(loaded, Dino) and loaded.spec == spec and loaded.config == detector.config
    images = images_of(*SIZES)
    one, two = detector(*images), loaded(*images)
    assert torch.equal(one.logits, two.logits) and torch.equal(one.boxes, two.boxes)
    assert len({id(head) for head in loaded.class_heads}) == len({id(head) for head in detector.class_heads})


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_every_key_that_does_not_fit_is_named(tmp_path: Path, change: str):
    small_dino().save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    keys = [name for name in tensors if name.startswith("decoder.") and name.endswith("mlp.fc1.weight")]
    assert len(keys) == 3
    for key in keys:
        if change == "missing":
            del tensors[key]
        elif change == "unexpected":
            tensors[key + "_more"] = tensors[key].clone()
        else:
            tensors[key] = torch.zeros(3, 5)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_detector(tmp_path)
    for key in keys:
        assert any(line.strip().startswith(change) and key in line for line in str(caught.value).splitlines())


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "dino"}', '{"model_type": "dino", "width": "wide"}'])
def test_a_broken_description_is_one_message_with_its_path(tmp_path: Path, content: str):
    small_dino().save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WorkbenchError, match=r"config\.json"):
        load_detector(tmp_path)


def test_attention_maps_are_of_the_inference_queries_and_asking_for_them_changes_nothing(detectors: dict[str, Dino]):
    detector = copy.deepcopy(detectors["two levels"])
    for training in (False, True):
        detector.train(training)
        torch.manual_seed(0)
        plain = detector(*images_of(*SIZES), some_targets())
        torch.manual_seed(0)
        with detector.collecting_attentions():
            output = detector(*images_of(*SIZES), some_targets())
            again = detector.decode(output.queries, output.context)
        same(output, plain)
        assert plain.attentions is None and output.attentions is not None and again.attentions is not None
        cells = sum(level.padding[0].numel() for level in output.memory)
        assert output.attentions.self_attention.shape == (3, 3, 4, 6, 6)
        assert output.attentions.cross_attention.shape == (3, 3, 1, 6, cells)
        torch.testing.assert_close(output.attentions.self_attention.sum(-1), torch.ones(3, 3, 4, 6))
        torch.testing.assert_close(again.attentions.self_attention, output.attentions.self_attention)
        torch.testing.assert_close(again.attentions.cross_attention, output.attentions.cross_attention)


def test_mixed_precision_trains_with_finite_losses():
    detector = small_dino().train()
    targets = some_targets()
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(*images_of(*SIZES), targets)
    assert output.logits.dtype == output.boxes.dtype == torch.float32
    total: Tensor = torch.stack(list(detector.losses(output, targets, 5.0).values())).sum()
    total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in detector.parameters() if parameter.grad is not None)
    precise = trained_output(small_dino())
    assert (output.boxes - precise.boxes).abs().mean() < 0.05


@pytest.mark.parametrize(("changes", "message"), [
    ({"width": 48}, "multiple of 32"),
    ({"heads": 5}, "not a multiple of heads"),
    ({"levels": 1, "backbone": SMALL["backbone"] | {"levels": [1, 2]}}, "less than the backbone's 2"),
    ({"levels": 6}, "less than or equal to 5"),
    ({"two_stage": True}, "Extra inputs"),
])  # fmt: skip
def test_an_architecture_that_cannot_be_built_is_refused_with_the_reason(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        DinoModelConfig.model_validate(SMALL | changes)


def test_the_defaults_are_the_published_ones():
    config = DinoModelConfig.model_validate({"backbone": {"name": "resnet50"}})
    assert config.model_dump(exclude={"backbone", "family"}) == {
        "width": 256, "heads": 8, "ffn": 2048, "encoder_layers": 6, "decoder_layers": 6, "queries": 900, "levels": 4, "points": 4,
        "dropout": 0.0, "share_heads": True, "denoising": 100, "label_noise": 0.5, "box_noise": 1.0,
    }  # fmt: skip
