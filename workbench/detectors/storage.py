"""Weights on disk: a plain transformers folder with ``workbench.json`` beside it; every key must fit."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workbench.detectors.base import InputSpec
from workbench.errors import CheckpointError
from workbench.files import read_json, write_json

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SPEC_FILE = "workbench.json"
WEIGHTS_FILE = "model.safetensors"


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict without BatchNorm counters and with each shared tensor once, under its first name."""
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked") or (value.data_ptr() in seen and value.numel()):
            continue
        seen.add(value.data_ptr())
        state[name] = value.detach().to("cpu").contiguous()
    return state


def save_weights(folder: Path, model: Any, family: str, spec: InputSpec, extra: dict[str, Any]) -> None:
    """Writes ``config.json``, ``model.safetensors`` and ``workbench.json`` into ``folder``."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_file(unique_state(model), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(
        folder / SPEC_FILE,
        {"family": family, "classes": list(spec.classes), "mean": list(spec.mean), "std": list(spec.std), "resize": spec.resize, **extra},
    )


def read_spec(folder: Path, config: Any) -> tuple[InputSpec, dict[str, Any]]:
    """The input specification beside the weights, or ImageNet's mean and std with transformers' label names."""
    path = folder / SPEC_FILE
    if not path.exists():
        names = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
        return InputSpec(names, IMAGENET_MEAN, IMAGENET_STD), {}
    values = read_json(path)
    try:
        spec = InputSpec(tuple(values.pop("classes")), tuple(values.pop("mean")), tuple(values.pop("std")), values.pop("resize"))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} lacks {error}; it was not written by 'workbench'.") from error
    return spec, values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: missing, cut short or not safetensors.
    """
    if not path.exists():
        found = ", ".join(sorted(p.name for p in path.parent.glob("*"))) if path.parent.is_dir() else "no such folder"
        raise CheckpointError(f"{path} is missing (there: {found}). Weights are read from safetensors only; 'workbench convert FILE' "
                              "turns a .pth into one.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error}. Copy it again, or 'workbench convert' a .pth."
        ) from error


def load_weights(folder: Path, model: nn.Module) -> None:
    """Loads ``model.safetensors``; every tensor of the model must be there with its shape, and nothing else.

    Raises:
        CheckpointError: names each missing, unexpected and mismatched key.
    """
    path = folder / WEIGHTS_FILE
    tensors = {name: value for name, value in read_tensors(path).items() if not name.endswith("num_batches_tracked")}
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    groups: dict[int, list[str]] = {}
    for name, value in own.items():
        groups.setdefault(value.data_ptr() if value.numel() else id(value), []).append(name)
    problems = [f"unexpected: {name}" for name in tensors if name not in own]
    complete: dict[str, Tensor] = {}
    for names in groups.values():
        present = [name for name in names if name in tensors]
        if not present:
            problems.append(f"missing: {names[0]}")
            continue
        for name in names:
            value = tensors[name] if name in tensors else tensors[present[0]]
            if value.shape != own[name].shape:
                problems.append(f"shape: {name} is {list(value.shape)} in the file, {list(own[name].shape)} in the model")
            complete[name] = value
    if problems:
        shown = "\n  ".join(problems[:40]) + (f"\n  and {len(problems) - 40} more" if len(problems) > 40 else "")
        raise CheckpointError(f"{path} does not fit the model; nothing was loaded:\n  {shown}\n"
                              "Use the configuration the weights were trained with, or 'head: reset' if only the classes differ.")
    with torch.no_grad():
        for name, value in complete.items():
            own[name].copy_(value)
