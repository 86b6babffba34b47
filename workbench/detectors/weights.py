"""Reads and writes weights, as a plain transformers folder or one of ours, with ``workbench.json`` beside them. Every key must fit."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, logging

from workbench.datasets.transforms import TransformConfig
from workbench.detectors.detector import InputSpec
from workbench.errors import CheckpointError
from workbench.files import read_json, write_json

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SPEC_FILE = "workbench.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
EXACT_NORMS = "exact_norms"  # key of SPEC_FILE; see ``Detector.exact_norms``

ModelConfig = TypeVar("ModelConfig", bound=BaseModel)


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict with each shared tensor once, under the name that transformers reads it from."""
    state = model.state_dict()
    # transformers fills these names from others; DAB-DETR's box head stays random if it is saved only under the decoder's name
    filled = getattr(model, "all_tied_weights_keys", None) or {}
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        groups.setdefault(value.data_ptr() if value.numel() else id(value), []).append(name)
    names = [next((name for name in group if name not in filled), group[0]) for group in groups.values()]
    return {name: state[name].detach().to("cpu").contiguous() for name in names}


def save_weights(folder: Path, model: Any, family: str, spec: InputSpec, extra: dict[str, Any]) -> None:
    """Writes ``config.json``, ``model.safetensors`` and ``workbench.json`` into ``folder``."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _write_state(folder, model, family, spec, extra)


def save_own(folder: Path, model: nn.Module, family: str, spec: InputSpec, config: BaseModel, extra: dict[str, Any]) -> None:
    """Writes a model that transformers has no class for, like ``save_weights`` but with ``config`` as ``config.json``.

    Args:
        folder: existing folder to write into.
        model: model whose state is written.
        family: registry name, stored as ``model_type``.
        spec: what the model was trained to see.
        config: the family's model configuration.
        extra: what else is kept beside the specification.
    """
    write_json(folder / CONFIG_FILE, {"model_type": family, **config.model_dump(mode="json", exclude={"family"})})
    _write_state(folder, model, family, spec, extra)


_Spread = Annotated[FiniteFloat, Field(gt=0)]


class _StoredSpec(BaseModel):
    """The part of ``workbench.json`` that every detector has: its classes, and what its images look like."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    classes: list[str]
    """Names of the classes."""

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    """Mean of each channel."""

    std: tuple[_Spread, _Spread, _Spread]
    """Standard deviation of each channel."""

    resize: dict[str, Any] | None
    """How images are resized, as in a recipe."""


def read_own(folder: Path, kind: type[ModelConfig]) -> tuple[ModelConfig, InputSpec, dict[str, Any]]:
    """Reads the configuration, the input specification and the extra that ``save_own`` wrote.

    ``load_weights`` then fills a model built from them.

    Raises:
        CheckpointError: a file is missing or incomplete, or the configuration is not a valid ``kind``.
    """
    path = folder / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a usable configuration: it must hold a mapping.")
    try:
        config = kind.model_validate({key: value for key, value in values.items() if key != "model_type"})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'model'}: {item['msg']}" for item in error.errors())
        raise CheckpointError(f"{path} is not a usable configuration: {wrong}") from error
    written_here = read_spec(folder)
    if written_here is None:
        raise CheckpointError(
            f"{folder / SPEC_FILE} is missing: it names the classes and the normalisation of the images. Copy the whole folder."
        )
    return config, *written_here


def _write_state(folder: Path, model: nn.Module, family: str, spec: InputSpec, extra: dict[str, Any]) -> None:
    save_file(unique_state(model), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(
        folder / SPEC_FILE,
        {"family": family, "classes": list(spec.classes), "mean": list(spec.mean), "std": list(spec.std), "resize": spec.resize, **extra},
    )


def read_spec(folder: Path) -> tuple[InputSpec, dict[str, Any]] | None:
    """Reads the input specification beside the weights and what else was saved with it; None if the workbench did not write the folder.

    Raises:
        CheckpointError: the file is incomplete.
    """
    path = folder / SPEC_FILE
    if not path.exists():
        return None
    values = read_json(path)
    try:
        stored = _StoredSpec.model_validate(values)
        TransformConfig.model_validate({"resize": stored.resize})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip() for item in error.errors()[:3])
        raise CheckpointError(f"{path} is damaged or was not written by the workbench: {wrong}. Restore it from a copy.") from error
    spec = InputSpec(tuple(stored.classes), stored.mean, stored.std, stored.resize)
    return spec, {key: value for key, value in values.items() if key not in _StoredSpec.model_fields}


def plain_spec(config: Any) -> InputSpec:
    """Returns the specification of a plain transformers model: its label names, and ImageNet's mean and std."""
    return InputSpec(tuple(str(config.id2label[index]) for index in sorted(config.id2label)), IMAGENET_MEAN, IMAGENET_STD)


def read_config(folder: Path, kind: Any) -> Any:
    """Reads a transformers configuration of class ``kind``.

    Raises:
        CheckpointError: the file is missing or broken, or this version of transformers refuses a value.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers' validation may raise anything, and the user can only fix the file
        raise CheckpointError(f"{folder / 'config.json'} is not a usable configuration: {_one_line(error)}") from error


def load_plain(folder: Path, kind: Any) -> Any:
    """Loads a model of class ``kind`` from a folder that transformers' ``save_pretrained`` wrote, with its renaming of old keys.

    Raises:
        CheckpointError: the folder is unreadable, or keys are missing, unexpected or of another shape; the message names each of them.
    """
    read_config(folder, kind.config_class)
    if not (folder / f"{WEIGHTS_FILE}.index.json").exists():
        read_tensors(folder / WEIGHTS_FILE)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded by transformers: {_one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    problems = [f"missing: {name}" for name in sorted(report["missing_keys"]) if not name.endswith("num_batches_tracked")]
    problems += [f"unexpected: {name}" for name in sorted(report["unexpected_keys"]) if not name.endswith("num_batches_tracked")]
    mismatched = sorted(report["mismatched_keys"])
    problems += [f"shape: {name} is {list(there)} in the file, {list(here)} in the model" for name, there, here in mismatched]
    problems += [str(message) for message in report["error_msgs"]]
    _refuse(folder, problems)
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing, cut short or not safetensors.
    """
    if not path.exists():
        found = ", ".join(sorted(p.name for p in path.parent.glob("*"))) if path.parent.is_dir() else "no such folder"
        raise CheckpointError(
            f"{path} is missing (there: {found}). Weights are read from safetensors only; 'workbench convert FILE' turns a .pth into one."
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error}. Copy it again, or 'workbench convert' a .pth."
        ) from error


def load_weights(folder: Path, model: nn.Module, ignored: Iterable[str] = ()) -> None:
    """Loads ``model.safetensors`` into the model; see ``fill_weights``.

    Args:
        folder: the detector folder.
        model: model to fill.
        ignored: names of tensors that the file may hold and the model no longer has.

    Raises:
        CheckpointError: keys are missing, unexpected or mismatched; the message names each of them.
    """
    path = folder / WEIGHTS_FILE
    left_out = set(ignored)
    fill_weights(model, {name: value for name, value in read_tensors(path).items() if name not in left_out}, path)


def fill_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copies ``tensors`` into the model. They must hold every tensor of the model with its shape, and nothing else.

    One name is enough for a tensor that the model knows under several. If a transformers model shares a tensor but the file holds
    different values for its names, the tensor is split, as in transformers itself: Deformable DETR's class heads are one tensor in the
    library, but one per layer in published checkpoints.

    Args:
        model: model to fill. BatchNorm's batch counters may be absent from ``tensors``.
        tensors: tensors by name.
        path: where the tensors come from, for the message.

    Raises:
        CheckpointError: keys are missing, unexpected or mismatched, or copies of a shared tensor differ; the message names each of them.
    """
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    own = _state(model)
    groups: dict[int, list[str]] = {}
    for name, value in own.items():
        groups.setdefault(value.data_ptr() if value.numel() else id(value), []).append(name)
    problems = [f"unexpected: {name}" for name in tensors if name not in own]
    present = {names[0]: [name for name in names if name in tensors] for names in groups.values()}
    differing = [(found[0], name) for found in present.values() for name in found[1:] if not torch.equal(tensors[name], tensors[found[0]])]
    problems += [
        f"shared: {name} differs from {first}, which the model holds as one"
        for first, name in differing
        if not isinstance(model, PreTrainedModel) or _owner(model, first) is _owner(model, name)
    ]
    # whole modules are split: a layer whose weight differs has a bias of its own, even if the biases are equal
    split = {name for names in groups.values() if any(name in names for _, name in differing) for name in names[1:]}
    owners = {name.rpartition(".")[0] for name in split}
    parted = [name for names in groups.values() for name in names[1:] if name.rpartition(".")[0] in owners]
    complete: dict[str, Tensor] = {}
    for names in groups.values():
        if not present[names[0]]:
            problems.append(f"missing: {names[0]}")
            continue
        problems += [f"missing: {name}" for name in names if name in parted and name not in tensors]
        for name in names:
            value = tensors[name] if name in tensors else tensors[present[names[0]][0]]
            if value.shape != own[name].shape:
                problems.append(f"shape: {name} is {list(value.shape)} in the file, {list(own[name].shape)} in the model")
            complete[name] = value
    _refuse(path, problems)
    for name in parted:
        module, leaf = _owner(model, name), name.rpartition(".")[2]
        shared = getattr(module, leaf)
        setattr(module, leaf, nn.Parameter(shared.detach().clone(), shared.requires_grad))
    own = _state(model)
    with torch.no_grad():
        for name, value in complete.items():
            own[name].copy_(value)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(
            f"{path} does not fit the model; nothing was loaded:\n  "
            + "\n  ".join(problems)
            + "\nUse the configuration the weights were trained with."
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
