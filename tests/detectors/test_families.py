"""What holds for every family with queries: one output, a decoder that can be called again, its own losses, weights on disk."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForObjectDetection

from tests.examples import SMALL, SPEC, batch_of, images_of
from tests.families import QUERY_NAMES, tiny
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.output import Queries, QueryOutput
from workbench.detectors.query_detector import QueryDetector
from workbench.detectors.registry import load_detector
from workbench.detectors.transformers_adapter import TransformersDetector

TWO_STAGE = {"two_stage": True, "levels": 2, "backbone": SMALL["backbone"] | {"levels": [1, 2]}}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in QUERY_NAMES} | {
    "two-stage deformable_detr": ("deformable_detr", TWO_STAGE),
}
every_form = pytest.mark.parametrize("form", FORMS)
SIZE = (64, 96)
CLASSES = len(SPEC.classes)


@cache
def shared(form: str) -> QueryDetector:
    """One detector of a form; tests that change it take a copy."""
    name, changes = FORMS[form]
    detector = tiny(name, **changes)
    assert isinstance(detector, QueryDetector)
    return detector


def fresh(form: str, training: bool = False) -> QueryDetector:
    return copy.deepcopy(shared(form)).train(training)


def batch(count: int = 2, padded: bool = True) -> tuple[Tensor, Tensor]:
    return images_of(*([SIZE, (64, 80), (40, 96)] if padded else [SIZE] * 3)[:count])


def answer(detector: Detector, images: Tensor, padding: Tensor, targets: TargetBatch | None = None, seed: int = 7) -> QueryOutput:
    """A forward whose random draws (denoising) are those of ``seed``."""
    torch.manual_seed(seed)
    return detector(images, padding, targets)


def extra_group(output: QueryOutput, count: int, seed: int = 5) -> Queries:
    """``count`` random queries of the kind that the family's own are."""
    generator = torch.Generator().manual_seed(seed)
    own = output.queries

    def like(value: Tensor | None, share: bool = False) -> Tensor | None:
        if value is None:
            return None
        shape = (value.shape[0], count, value.shape[-1])
        if not share:
            return torch.randn(shape, generator=generator).requires_grad_()
        return torch.rand(shape, generator=generator).mul(0.6).add(0.2).requires_grad_()

    content = like(own.content)
    assert content is not None
    return Queries(content, like(own.position), like(own.reference, share=True), torch.full(content.shape[:2], -1))


def some_targets(*counts: int) -> TargetBatch:
    return batch_of(counts, CLASSES, torch.Generator().manual_seed(1))


@every_form
@pytest.mark.parametrize("training", [False, True])
def test_the_output_has_the_shapes_of_the_contract(form: str, training: bool):
    detector = fresh(form, training)
    images, padding = batch(2, detector.reads_padding)
    output = answer(detector, images, padding, some_targets(2, 1))
    layers, count = detector.num_layers, detector.num_queries
    columns = CLASSES + (detector.activation == "softmax")
    assert output.activation == detector.activation
    assert output.logits.shape == (layers, 2, count, columns)
    assert output.boxes.shape == (layers, 2, count, 4)
    if detector.reference_form != "xyzr":  # AdaMixer's boxes may leave the image
        assert output.boxes.min() >= 0 and output.boxes.max() <= 1
    assert output.states.shape == (layers, 2, count, detector.width)
    assert output.logits.dtype == output.boxes.dtype == torch.float32
    queries = output.queries
    assert queries.content.shape[:2] == queries.source.shape == (2, count)
    if queries.reference is not None:
        assert queries.reference.shape[-1] in (2, 4)
        assert ("references" in detector.provides) and torch.isfinite(queries.reference).all()
    for name, levels in (("memory", output.memory), ("neck", output.neck), ("backbone", output.backbone)):
        assert bool(levels) == (name in detector.provides), name
        for level in levels:
            assert level.features.shape[0] == 2 and level.padding.dtype == torch.bool
            assert level.padding.shape == (2, *level.features.shape[-2:])
            assert level.features.shape[-2:] == (-(-images.shape[2] // level.stride), -(-images.shape[3] // level.stride))
            if detector.reads_padding:
                assert torch.equal(level.padding, padding[:, :: level.stride, :: level.stride])
            else:
                assert not level.padding.any()


@every_form
def test_training_only_groups_stay_out_of_inference(form: str):
    detector = fresh(form)
    images, padding = batch(2, False)
    alone = answer(detector, images, padding)
    with_targets = answer(detector, images, padding, some_targets(2, 1))
    assert alone.aux == with_targets.aux == ()
    assert torch.equal(alone.logits, with_targets.logits)


@every_form
def test_learned_queries_have_no_source_and_selected_ones_name_an_encoder_cell(form: str):
    detector = shared(form)
    output = answer(detector, *batch(2, False))
    if "learned_queries" in detector.provides:
        assert (output.queries.source == -1).all()
    else:
        cells = sum(level.features[0, 0].numel() for level in output.memory or output.neck)
        assert output.queries.source.min() >= 0 and output.queries.source.max() < cells
        for row in output.queries.source:
            assert len(row.unique()) == len(row), "no cell is selected twice"


@every_form
@pytest.mark.parametrize("training", [False, True])
def test_decoding_the_own_queries_again_gives_the_own_output(form: str, training: bool):
    detector = fresh(form, training)
    images, padding = batch(2, detector.reads_padding)
    with torch.no_grad():
        output = answer(detector, images, padding, some_targets(2, 1))
        again = detector.decode(output.queries, output.context)
    torch.testing.assert_close(again.logits, output.logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(again.boxes, output.boxes, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(again.states, output.states, atol=2e-5, rtol=1e-5)
    assert again.aux == () and again.memory is output.memory


@every_form
@pytest.mark.parametrize("training", [False, True])
def test_an_extra_group_leaves_the_own_output_as_it_was(form: str, training: bool):
    images, padding = batch(2, shared(form).reads_padding)
    targets = some_targets(2, 1)
    untouched = answer(fresh(form, training), images, padding, targets)
    detector = fresh(form, training)
    first = answer(detector, images, padding, targets)
    group = detector.decode(extra_group(first, 4), first.context)
    assert group.logits.shape == (*first.logits.shape[:2], 4, first.logits.shape[-1])
    assert torch.equal(first.logits, untouched.logits) and torch.equal(first.boxes, untouched.boxes)
    detector.train(False)
    after, wanted = answer(detector, images, padding), answer(fresh(form), images, padding)
    if not training:  # in training the running statistics of the norms have moved
        assert torch.equal(after.logits, wanted.logits), "the group leaves nothing behind"


@every_form
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_an_extra_group_reach_its_queries_and_the_shared_weights(form: str, training: bool):
    detector = fresh(form, training)
    images, padding = batch(2, detector.reads_padding)
    output = answer(detector, images, padding, some_targets(2, 1))
    detector.zero_grad()
    queries = extra_group(output, 3)
    group = detector.decode(queries, output.context)
    (group.logits.square().sum() + group.boxes.square().sum()).backward()
    for name in ("content", "position", "reference"):
        value = getattr(queries, name)
        if value is not None:
            assert value.grad is not None and value.grad.abs().sum() > 0, name
    reached = {name for name, p in detector.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("decoder" in name or name.startswith("layers.") for name in reached), "the decoder"
    assert any("backbone" in name or "conv_encoder" in name for name in reached), "through the memory, the backbone"


@every_form
def test_permuted_queries_give_permuted_answers(form: str):
    detector = shared(form)
    output = answer(detector, *batch(2, detector.reads_padding))
    order = torch.tensor([3, 0, 4, 1, 2])
    queries = extra_group(output, 5)

    def permuted(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[:, order]

    moved = Queries(queries.content[:, order], permuted(queries.position), permuted(queries.reference), queries.source[:, order])
    with torch.no_grad():
        one, two = detector.decode(queries, output.context), detector.decode(moved, output.context)
    torch.testing.assert_close(two.logits, one.logits[:, :, order], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(two.boxes, one.boxes[:, :, order], atol=2e-5, rtol=1e-4)


@every_form
def test_an_image_answers_the_same_alone_and_in_a_batch(form: str):
    detector = shared(form)
    images, padding = batch(3, False)
    with torch.no_grad():
        together = answer(detector, images, padding)
        for index in range(3):
            alone = answer(detector, images[index : index + 1], padding[index : index + 1])
            torch.testing.assert_close(alone.logits[:, 0], together.logits[:, index], atol=5e-5, rtol=1e-4)
            torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, index], atol=5e-5, rtol=1e-4)


@every_form
def test_the_own_criterion_has_a_weight_for_every_term_and_trains_every_parameter(form: str):
    detector = fresh(form, True)
    targets = some_targets(2, 1)
    output = answer(detector, *batch(2, detector.reads_padding), targets)
    losses = detector.losses(output, targets, 3.0)
    assert set(losses) == set(detector.loss_weights) and {"class", "bbox", "giou"} <= set(losses)
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    torch.stack([detector.loss_weights[name] * value for name, value in losses.items()]).sum().backward()
    untrained = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert untrained == []


@every_form
@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (30, 1)])
def test_images_without_targets_and_more_targets_than_queries_train(form: str, counts: tuple[int, int]):
    detector = fresh(form, True)
    targets = some_targets(*counts)
    output = answer(detector, *batch(2, detector.reads_padding), targets)
    losses = detector.losses(output, targets, max(1.0, float(sum(counts))))
    total = torch.stack([detector.loss_weights[name] * value for name, value in losses.items()]).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


@every_form
def test_a_saved_detector_loads_with_equal_outputs(form: str, tmp_path: Path):
    detector = shared(form)
    detector.save(tmp_path)
    loaded = load_detector(tmp_path).eval()
    assert type(loaded) is type(detector) and loaded.spec == detector.spec
    images, padding = batch(2, detector.reads_padding)
    with torch.no_grad():
        one, two = answer(detector, images, padding), answer(loaded, images, padding)
    assert torch.equal(one.logits, two.logits) and torch.equal(one.boxes, two.boxes)


@every_form
def test_a_trained_detector_is_a_plain_transformers_folder(form: str, tmp_path: Path):
    detector = fresh(form, True)
    if not isinstance(detector, TransformersDetector):
        assert FORMS[form][0] in ("dino", "adamixer"), "only these families are not transformers' own"
        return
    images, padding = batch(2, False)
    answer(detector, images, padding, some_targets(1, 1))  # the norms' statistics move
    detector.eval().save(tmp_path)
    plain = AutoModelForObjectDetection.from_pretrained(tmp_path, local_files_only=True).eval()
    with torch.no_grad():
        ours, theirs = answer(detector, images, padding), plain(images, pixel_mask=(~padding).long())
    torch.testing.assert_close(theirs.logits, ours.logits[-1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(theirs.pred_boxes, ours.boxes[-1], atol=1e-6, rtol=0)


@every_form
def test_a_reset_head_knows_the_new_classes(form: str, tmp_path: Path):
    detector = fresh(form)
    spec = InputSpec(("cat", "dog", "bird", "cow", "sheep"), SPEC.mean, SPEC.std)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    made = detector.reset_classes(spec)
    images, padding = batch(2, False)
    output = answer(detector, images, padding)
    assert output.logits.shape[-1] == 5 + (detector.activation == "softmax") and detector.spec == spec
    after = detector.state_dict()
    changed = {name for name, value in after.items() if value.shape != before[name].shape or not torch.equal(value, before[name])}
    named = {name for name in after if any(name.endswith(made_name) for made_name in made)}
    tied = {name for name in after if any(after[name].data_ptr() == after[other].data_ptr() for other in named)}
    assert made and changed <= named | tied, "the report names everything that was re-initialised"
    detector.save(tmp_path)
    assert torch.equal(answer(load_detector(tmp_path).eval(), images, padding).logits, output.logits)


@every_form
def test_the_same_seed_builds_the_same_model_and_a_copy_answers_for_itself(form: str):
    name, changes = FORMS[form]
    one, two = tiny(name, 3, **changes), tiny(name, 3, **changes)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    images, padding = batch(2, False)
    clone = copy.deepcopy(one)
    with torch.no_grad():
        before = answer(one, images, padding)
        for parameter in clone.parameters():
            parameter.add_(0.05)
        assert not torch.equal(answer(clone, images, padding).logits, before.logits)
        assert torch.equal(answer(one, images, padding).logits, before.logits)


@pytest.mark.parametrize("name", QUERY_NAMES)
def test_a_decoder_of_one_layer_is_built_and_kept_or_refused_by_name(name: str, tmp_path: Path):
    if name in ("d_fine", "deimv2", "rt_detr_v2"):
        with pytest.raises(ValidationError, match="decoder_layers"):
            tiny(name, decoder_layers=1)
        return
    detector = tiny(name, decoder_layers=1).eval()
    detector.save(tmp_path)
    images, padding = batch(1, padded=False)
    with torch.no_grad():
        own, again = detector(images, padding), load_detector(tmp_path).eval()(images, padding)
    assert len(own.logits) == 1
    assert torch.equal(own.logits, again.logits) and torch.equal(own.boxes, again.boxes)
