"""Tensors of a run that are no rows: selection masks, as uint8 with a scale and an offset each.

A tensor is called ``<image_id>/psi/<layer>/<level>``; ``value = offset + scale * stored``, both in the metadata of its shard.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from workbench.cache.manifest import is_complete, write_manifest
from workbench.errors import NonFiniteError, RunError
from workbench.files import read_json, replacing_folder
from workbench.runs import MANIFEST, Run

Masks = Mapping[tuple[int, int], np.ndarray]
_IMAGES_PER_SHARD = 128  # so that reading one image parses a short header


def write_masks(run: Run, split: str, step: int, masks: Iterable[tuple[int, Masks]]) -> None:
    """Writes the selection masks of one split and step, replacing what was there.

    Args:
        run: whose masks.
        split: of the data.
        step: of the weights; ``TEACHER_STEP`` for masks of the teacher.
        masks: image id and its masks ``{(layer, level): [H, W]}``.

    Raises:
        NonFiniteError: a mask holds NaN or infinity; nothing is written.
    """
    with replacing_folder(run.states_path(split, step)) as folder:
        shards: list[Path] = []
        images: dict[str, str] = {}
        tensors: dict[str, np.ndarray] = {}
        metadata: dict[str, str] = {}
        held = 0

        def flush() -> None:
            path = folder / f"shard-{len(shards):05d}.safetensors"
            save_file(tensors, path, metadata=dict(metadata))
            shards.append(path)
            tensors.clear()
            metadata.clear()

        for image_id, of_image in masks:
            for (layer, level), values in of_image.items():
                name = f"{image_id}/psi/{layer}/{level}"
                if not np.isfinite(values).all():
                    raise NonFiniteError(f"selection mask of image {image_id}, layer {layer}, level {level} holds NaN or infinity.")
                tensors[name], scale, offset = _quantised(values)
                metadata[name] = json.dumps([scale, offset])
            images[str(image_id)] = f"shard-{len(shards):05d}.safetensors"
            held += 1
            if held % _IMAGES_PER_SHARD == 0:
                flush()
        if tensors or not shards:
            flush()
        write_manifest(folder, shards, images=images)


def read_masks(run: Run, split: str, step: int, image_id: int) -> dict[tuple[int, int], np.ndarray]:
    """Selection masks of one image, ``{(layer, level): [H, W] float32}``, within half a 255th of each mask's range.

    Raises:
        RunError: no masks were kept for this split, step or image.
    """
    folder = run.states_path(split, step)
    shard = read_json(folder / MANIFEST)["images"].get(str(image_id)) if is_complete(folder) else None
    if shard is None:
        raise RunError(f"run '{run.name}' keeps no selection masks of image {image_id} of split '{split}' at step {step}.")
    masks = {}
    with safe_open(folder / shard, framework="np") as file:
        metadata = file.metadata()
        for name in file.keys():
            image, _, layer, level = name.split("/")
            if image == str(image_id):
                scale, offset = json.loads(metadata[name])
                masks[int(layer), int(level)] = np.float32(offset) + np.float32(scale) * file.get_tensor(name)
    return masks


def masked_images(run: Run, split: str, step: int) -> list[int]:
    """Images whose masks were kept, ascending; none when the step has no masks."""
    folder = run.states_path(split, step)
    return sorted(int(image) for image in read_json(folder / MANIFEST)["images"]) if is_complete(folder) else []


def _quantised(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """uint8 values, scale, offset."""
    values = np.asarray(values, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    scale = (high - low) / 255
    stored = np.zeros(values.shape) if scale == 0 else np.rint((values - low) / scale)
    return stored.astype(np.uint8), scale, low
