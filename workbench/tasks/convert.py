"""Converts foreign checkpoints: writes a ``.pth`` as safetensors, and turns public layouts into detector folders."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file

from workbench.datasets.transforms import TransformConfig
from workbench.detectors.conversion.layouts import layout
from workbench.detectors.detector import InputSpec
from workbench.detectors.pickled_tensors import read_checkpoint
from workbench.detectors.registry import family, load_detector
from workbench.detectors.weights import WEIGHTS_FILE, read_tensors
from workbench.errors import CheckpointError, ConfigError
from workbench.files import replacing, replacing_folder
from workbench.resources import named_file, share_path
from workbench.yaml_text import YamlError, parse_yaml


class CheckpointDescription(BaseModel):
    """Describes what a public checkpoint's file does not say."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    model: dict[str, object]
    """Configuration of the checkpoint's family, as below ``student:`` of a recipe."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the class head."""
    transform: TransformConfig = TransformConfig()
    """Size and normalisation of the images that the checkpoint was trained on."""


def convert(source: Path, out: Path) -> int:
    """Writes the tensors of a ``.pth`` file as safetensors and returns their number.

    Raises:
        CheckpointError: the file does not exist, is damaged, or holds something other than tensors.
    """
    tensors = read_checkpoint(source)
    with replacing(out) as temporary:
        save_file(tensors, temporary)
    return len(tensors)


def convert_detector(source: Path, layout_name: str, description: Path, out: Path) -> int:
    """Writes a public checkpoint as a folder for ``load_detector`` and returns the number of its parameters.

    Args:
        source: a ``.pth`` file of tensors, or a safetensors file.
        layout_name: the layout whose names the file uses; see ``workbench.detectors.conversion``.
        description: YAML of a ``CheckpointDescription``, or the name of one that ships in ``recipes/checkpoints``.
        out: the folder to make.

    Raises:
        ConfigError: the layout is unknown, or the description is wrong or names another family.
        CheckpointError: the file does not exist, ``out`` exists already, or keys do not fit; the message names each.
    """
    found = layout(layout_name)
    if out.exists():
        raise CheckpointError(f"{out} already exists. Choose another folder, or remove it.")
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


def _describe(path: Path, wanted: str) -> tuple[CheckpointDescription, BaseModel]:
    shipped = share_path("recipes") / "checkpoints"
    place = named_file(str(path)) or shipped / f"{path.name}.yaml"
    try:
        described = CheckpointDescription.model_validate(parse_yaml(place.read_text(encoding="utf-8")))
        name = described.model.get("family")
        if name != wanted:
            raise ConfigError(
                f"{place}: model.family is '{name}', but the layout belongs to '{wanted}'. Choose a description of that family."
            )
        return described, family(wanted).config.model_validate(described.model)
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
        raise ConfigError(f"there is no description '{path}': no such file exists, and the shipped ones are {known}.") from error
    except (YamlError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place} is not valid YAML: {error}") from error
    except ValidationError as error:
        wrong = "\n".join(f"  {'.'.join(map(str, item['loc'])) or 'model'}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{place} does not describe a checkpoint:\n{wrong}") from error
