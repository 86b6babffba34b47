"""Foreign checkpoints: the one place that reads a pickle-based file, restricted to tensors, and public layouts as detector folders."""

from pathlib import Path

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from workbench.datasets.transforms import TransformConfig
from workbench.detectors.conversion.layouts import layout
from workbench.detectors.detector import InputSpec
from workbench.detectors.registry import family, load_detector
from workbench.detectors.weights import WEIGHTS_FILE, read_tensors
from workbench.errors import CheckpointError, ConfigError
from workbench.files import replacing, replacing_folder
from workbench.resources import share_path


class CheckpointDescription(BaseModel):
    """Says what a public checkpoint does not say about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    model: dict[str, object]
    """Configuration of the checkpoint's family, as below ``student:`` of a recipe."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the class head."""
    transform: TransformConfig = TransformConfig()
    """Size and normalisation of the images that the checkpoint was trained on."""


def convert(source: Path, out: Path) -> int:
    """Writes the tensors of a ``.pth`` as safetensors; returns how many.

    Raises:
        CheckpointError: no such file, it holds something other than tensors, or is damaged.
    """
    tensors = read_checkpoint(source)
    with replacing(out) as temporary:
        save_file(tensors, temporary)
    return len(tensors)


def convert_detector(source: Path, layout_name: str, description: Path, out: Path) -> int:
    """Writes a public checkpoint as a folder that ``load_detector`` loads; returns the number of its parameters.

    Args:
        source: a ``.pth`` of tensors or a safetensors file.
        layout_name: whose names the file has, see ``workbench.detectors.conversion``.
        description: YAML of a ``CheckpointDescription``, or the name of one that ships in ``recipes/checkpoints``.
        out: the folder to make.

    Raises:
        ConfigError: unknown layout, or a description that is wrong or of another family.
        CheckpointError: no such file, ``out`` is there already, or keys that do not fit, each named.
    """
    found = layout(layout_name)
    if out.exists():
        raise CheckpointError(f"{out} is there already. Choose another folder, or remove it.")
    described, config = _describe(description, found.family)
    tensors = found.convert(read_tensors(source) if source.suffix == ".safetensors" else read_checkpoint(source))
    transform = described.transform.model_dump(mode="json")
    spec = InputSpec(described.classes, described.transform.mean, described.transform.std, transform["resize"])
    with replacing_folder(out) as folder:
        family(found.family).detector.build(config, spec).save(folder)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        try:
            detector = load_detector(folder)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(folder / WEIGHTS_FILE), str(source), 1)) from error
        detector.save(folder)
    return sum(parameter.numel() for parameter in detector.parameters())


def read_checkpoint(source: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth``, of its ``state_dict`` or ``model`` where it has one.

    Raises:
        CheckpointError: no such file, it holds something other than tensors, or is damaged.
    """
    if not source.is_file():
        raise CheckpointError(f"there is no file {source}.")
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{source} cannot be read as tensors only: {_first_line(error)} Files with other objects are "
            "refused; save the state dict alone."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{source} holds a {type(loaded).__name__}, not a state dict.")
    tensors = {str(k): v.clone().contiguous() for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{source} holds no tensors.")
    return tensors


def _describe(path: Path, wanted: str) -> tuple[CheckpointDescription, BaseModel]:
    shipped = share_path("recipes") / "checkpoints"
    place = path if path.is_file() else shipped / f"{path.name}.yaml"
    try:
        described = CheckpointDescription.model_validate(yaml.safe_load(place.read_text(encoding="utf-8")))
        name = described.model.get("family")
        if name != wanted:
            raise ConfigError(f"{place}: model.family is '{name}', the layout is one of '{wanted}'.")
        return described, family(wanted).config.model_validate(described.model)
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
        raise ConfigError(f"no description '{path}': it is no file, and the shipped ones are {known}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place} is not valid YAML: {error}") from error
    except ValidationError as error:
        wrong = "\n".join(f"  {'.'.join(map(str, item['loc'])) or 'model'}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{place} does not describe a checkpoint:\n{wrong}") from error


def _first_line(error: Exception) -> str:
    """Without the hints for code that loads anyway."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line.partition(". ")[0].rstrip(".") + "."
