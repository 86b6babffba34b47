"""A saved detector is a plain transformers folder that loads with equal answers, or does not load at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForObjectDetection, DeformableDetrForObjectDetection

from tests.examples import SMALL, SPEC, batch_of, images_of, small_detector
from workbench.detectors.deformable_detr import DeformableDetr, DeformableDetrModelConfig
from workbench.detectors.detector import InputSpec
from workbench.detectors.registry import family, load_detector
from workbench.detectors.weights import fill_weights
from workbench.errors import CheckpointError, ConfigError, WorkbenchError

TWO_STAGE: dict[str, Any] = {"two_stage": True, "levels": 2}
VARIANTS: dict[str, dict[str, Any]] = {"refined": {}, "plain": {"box_refine": False}, "two-stage": TWO_STAGE}
IMAGES = images_of((64, 96), (64, 80))


def answer(model: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        output = model(IMAGES[0], pixel_mask=(~IMAGES[1]).long())
    return output.logits, output.pred_boxes


def trained(detector: DeformableDetr, steps: int = 4) -> DeformableDetr:
    """After a few steps, so that weights and BatchNorm statistics are not the initial ones."""
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    targets = batch_of([2, 1], len(detector.spec.classes), torch.Generator().manual_seed(0))
    detector.train()
    for step in range(steps):
        images, padding = images_of((64, 96), (64, 80), seed=step)
        optimizer.zero_grad()
        sum(detector.losses(detector(images, padding), targets, 3.0).values()).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    return detector.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeformableDetr, Path]:
    folder = tmp_path_factory.mktemp("saved")
    spec = InputSpec(("cat", "<b>dog</b>", "../bird"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), {"height": 64, "width": 96})
    detector = trained(small_detector(spec=spec))
    detector.save(folder)
    return detector, folder


@pytest.fixture
def folder(saved: tuple[DeformableDetr, Path], tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(saved[1], tmp_path / "copy"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_detector_loads_with_equal_outputs_and_trains_on_alike(variant: str, tmp_path: Path):
    detector = trained(small_detector(**VARIANTS[variant]))
    detector.save(tmp_path)
    loaded = load_detector(tmp_path).eval()
    assert loaded.spec == detector.spec
    before, after = detector.state_dict(), loaded.state_dict()
    for name, value in before.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, after[name]), name
    one, two = detector(*IMAGES), loaded(*IMAGES)
    assert torch.equal(one.logits, two.logits) and torch.equal(one.boxes, two.boxes)
    assert [p.requires_grad for p in detector.parameters()] == [p.requires_grad for p in loaded.parameters()]
    assert isinstance(loaded, DeformableDetr)
    for (name, a), (_, b) in zip(trained(detector, 2).state_dict().items(), trained(loaded, 2).state_dict().items(), strict=True):
        assert torch.equal(a, b) or name.endswith("num_batches_tracked"), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_transformers_loads_the_folder_with_frozen_norms_and_equal_outputs(variant: str, tmp_path: Path):
    fresh = small_detector(**VARIANTS[variant])
    moved = {name: value.clone() for name, value in fresh.state_dict().items() if name.endswith(("running_mean", "running_var"))}
    detector = trained(fresh)
    assert moved and all(not torch.equal(value, detector.state_dict()[name]) for name, value in moved.items())
    detector.save(tmp_path)
    plain, report = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert type(plain) is DeformableDetrForObjectDetection
    assert any(type(module).__name__ == "DeformableDetrFrozenBatchNorm2d" for module in plain.modules())
    assert plain.config.id2label == dict(enumerate(SPEC.classes))
    for ours, theirs in zip(answer(detector.model), answer(plain.eval()), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_that_transformers_wrote_loads_with_equal_outputs(variant: str, tmp_path: Path):
    detector = small_detector(**VARIANTS[variant] | {"backbone": SMALL["backbone"] | {"norm": "frozen"}})
    detector.model.save_pretrained(tmp_path)
    assert not (tmp_path / "workbench.json").exists()
    loaded = load_detector(tmp_path).eval()
    output = loaded(*IMAGES)
    logits, boxes = answer(detector.model)
    torch.testing.assert_close(output.logits[-1], logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.boxes[-1], boxes, atol=1e-6, rtol=0)
    assert loaded.spec == InputSpec(SPEC.classes, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_half_precision_folder_of_transformers_is_loaded_in_full_precision(tmp_path: Path):
    detector = small_detector(backbone=SMALL["backbone"] | {"norm": "frozen"})
    detector.model.half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_detector(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
@pytest.mark.parametrize("plain", [False, True], ids=["ours", "transformers'"])
def test_every_key_that_does_not_fit_is_named_and_nothing_is_loaded(folder: Path, change: str, plain: bool):
    if plain:
        (folder / "workbench.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    keys = [name for name in tensors if "decoder.layers" in name and name.endswith("mlp.fc1.weight")]
    assert len(keys) == 2
    for key in keys:
        if change == "missing":
            del tensors[key]
        elif change == "unexpected":
            tensors[key + "_more"] = tensors[key].clone()
        else:
            tensors[key] = torch.zeros(3, 5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_detector(folder)
    message = str(caught.value)
    for key in keys:
        line = next(line for line in message.splitlines() if key in line)
        assert line.strip().startswith(change)
        if change == "shape":
            assert "[3, 5]" in line and "[32, 32]" in line


def test_a_checkpoint_of_another_size_names_all_that_differs(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["num_queries"], config["d_model"] = 9, 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load_detector(folder)
    wanted = load_file(folder / "model.safetensors")
    differing = [name for name in wanted if name in str(caught.value)]
    assert "model.query_position_embeddings.weight" in differing and len(differing) > 40


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"PK\x03\x04" + bytes(100), "cut"], ids=["empty", "text", "zip", "cut short"])
@pytest.mark.parametrize("plain", [False, True], ids=["ours", "transformers'"])
def test_weights_that_are_no_complete_safetensors_are_refused(folder: Path, content: bytes | str, plain: bool):
    if plain:
        (folder / "workbench.json").unlink()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000] if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a complete safetensors file"):
        load_detector(folder)


@pytest.mark.parametrize("plain", [False, True], ids=["ours", "transformers'"])
def test_a_pickle_is_never_opened(folder: Path, plain: bool):
    if plain:
        (folder / "workbench.json").unlink()
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing.*pytorch_model\.bin.*workbench convert"):
        load_detector(folder)


@pytest.mark.parametrize("file", ["config.json", "workbench.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "deformable_detr", "d_model": "wide"}'])
def test_a_broken_description_is_one_message_with_its_path(folder: Path, file: str, content: str):
    (folder / file).write_text(content)
    with pytest.raises(WorkbenchError) as caught:
        load_detector(folder)
    assert file in str(caught.value)


def test_a_folder_that_is_no_detector_says_what_is_missing(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_detector(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"'bert'; known families: .*deformable_detr"):
        load_detector(tmp_path)


def test_an_unknown_family_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"'yolo'.*deformable_detr"):
        family("yolo")


def test_class_names_are_kept_as_text(saved: tuple[DeformableDetr, Path]):
    detector, folder = saved
    assert load_detector(folder).spec == detector.spec
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "workbench.json"]


def test_a_frozen_backbone_stays_frozen_and_a_trainable_one_trainable(tmp_path: Path):
    config = DeformableDetrModelConfig.model_validate(SMALL | {"backbone": SMALL["backbone"] | {"norm": "frozen"}})
    detector = DeformableDetr.build(config, SPEC)
    detector.save(tmp_path)
    for one in (detector, load_detector(tmp_path)):
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in one.modules())
        assert any(not p.requires_grad for p in one.parameters())


def test_class_heads_that_differ_by_layer_are_parted_and_stay_apart_when_saved(tmp_path: Path):
    """transformers ties them in a fresh model and parts them on loading; published checkpoints have one a layer."""
    detector = small_detector()
    heads = detector.model.class_embed
    assert heads[0].weight is heads[1].weight
    detector.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {f"class_embed.1.{name}": 0.1 * torch.randn_like(tensors[f"class_embed.0.{name}"]) for name in ("weight", "bias")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_detector(tmp_path).eval()
    with torch.no_grad():
        output = loaded(*IMAGES)
        for layer in (0, 1):
            scores = output.states[layer] @ tensors[f"class_embed.{layer}.weight"].T + tensors[f"class_embed.{layer}.bias"]
            torch.testing.assert_close(output.logits[layer], scores, atol=1e-5, rtol=1e-5)
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    logits, boxes = answer(AutoModelForObjectDetection.from_pretrained(again).eval())
    torch.testing.assert_close(logits, output.logits[-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(boxes, output.boxes[-1], atol=1e-6, rtol=0)
    del tensors["class_embed.0.bias"]
    tensors["class_embed.2.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected: class_embed\.2\.bias"):
        load_detector(tmp_path)


def test_copies_of_one_tensor_of_our_own_must_be_equal(tmp_path: Path):
    model = torch.nn.Module()
    model.one, model.two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    model.two.weight = model.one.weight
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fill_weights(model, state | {"one.weight": torch.ones(2, 2), "two.weight": torch.ones(2, 2)}, tmp_path)
    assert torch.equal(model.one.weight, torch.ones(2, 2))
    with pytest.raises(CheckpointError, match=r"shared: two\.weight differs from one\.weight"):
        fill_weights(model, state | {"two.weight": torch.zeros(2, 2)}, tmp_path)
    assert torch.equal(model.one.weight, torch.ones(2, 2)), "nothing was loaded"
