"""Tensors of a run that are no rows: decoder states as float16, selection masks as uint8 with a scale and an offset each.

A mask is called ``<image_id>/psi/<layer>/<level>``, ``value = offset + scale * stored``, both in the metadata of its shard; the states of
all layers of an image are ``<image_id>/states``, ``[L, N, D]``.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
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
_MASKS, _STATES = "psi", "states"


class StatesWriter:
    """Collects tensors and writes them in shards; made by ``states_writer``."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._shards: list[Path] = []
        self._images: dict[str, str] = {}
        self._kinds: set[str] = set()
        self._tensors: dict[str, np.ndarray] = {}
        self._metadata: dict[str, str] = {}

    def write(self, image_id: int, masks: Masks | None = None, states: np.ndarray | None = None) -> None:
        """Adds the tensors of one image.

        Args:
            image_id: written once.
            masks: ``{(layer, level): [H, W]}``.
            states: ``[L, N, D]``; kept as float16, or float32 where a value is beyond its range.

        Raises:
            NonFiniteError: NaN or infinity; nothing of the split and step is written.
        """
        for (layer, level), values in (masks or {}).items():
            _check(values, f"selection mask of image {image_id}, layer {layer}, level {level}")
            name = f"{image_id}/{_MASKS}/{layer}/{level}"
            self._tensors[name], scale, offset = _quantised(values)
            self._metadata[name] = json.dumps([scale, offset])
        if states is not None:
            _check(states, f"decoder states of image {image_id}")
            small = np.abs(states).max(initial=0) <= np.finfo(np.float16).max
            self._tensors[f"{image_id}/{_STATES}"] = np.ascontiguousarray(states, dtype=np.float16 if small else np.float32)
        self._kinds |= {kind for kind, given in ((_MASKS, masks), (_STATES, states)) if given is not None}
        self._images[str(image_id)] = f"shard-{len(self._shards):05d}.safetensors"
        if len(self._images) % _IMAGES_PER_SHARD == 0:
            self._flush()

    def finish(self) -> None:
        """Writes what is held and adds the manifest."""
        if self._tensors or not self._shards:
            self._flush()
        write_manifest(self._folder, self._shards, images=self._images, kinds=sorted(self._kinds))

    def _flush(self) -> None:
        path = self._folder / f"shard-{len(self._shards):05d}.safetensors"
        save_file(self._tensors, path, metadata=dict(self._metadata))
        self._shards.append(path)
        self._tensors.clear()
        self._metadata.clear()


@contextlib.contextmanager
def states_writer(run: Run, split: str, step: int) -> Iterator[StatesWriter]:
    """Streams tensors of one split and step to disk; they take the place of what was there when the block ends without an error.

    Args:
        run: whose tensors.
        split: of the data.
        step: of the weights; ``TEACHER_STEP`` for the teacher.
    """
    with replacing_folder(run.states_path(split, step)) as folder:
        writer = StatesWriter(folder)
        yield writer
        writer.finish()


def read_masks(run: Run, split: str, step: int, image_id: int) -> dict[tuple[int, int], np.ndarray]:
    """Selection masks of one image, ``{(layer, level): [H, W] float32}``, within half a 255th of each mask's range.

    Raises:
        RunError: no masks were kept for this split, step or image.
    """
    masks = {}
    with safe_open(_shard(run, split, step, image_id, _MASKS, "selection masks"), framework="np") as file:
        metadata = file.metadata()
        for name in file.keys():
            image, kind, *place = name.split("/")
            if image == str(image_id) and kind == _MASKS:
                scale, offset = json.loads(metadata[name])
                masks[int(place[0]), int(place[1])] = np.float32(offset) + np.float32(scale) * file.get_tensor(name)
    return masks


def read_states(run: Run, split: str, step: int, image_id: int) -> np.ndarray:
    """Decoder states of one image, ``[L, N, D]`` float32 of float16 precision, layers and queries as in the query table.

    Raises:
        RunError: no states were kept for this split, step or image.
    """
    with safe_open(_shard(run, split, step, image_id, _STATES, "decoder states"), framework="np") as file:
        return file.get_tensor(f"{image_id}/{_STATES}").astype(np.float32)


def masked_images(run: Run, split: str, step: int) -> list[int]:
    """Images whose masks were kept, ascending; none when the step has no masks."""
    return _images(run, split, step, _MASKS)


def images_with_states(run: Run, split: str, step: int) -> list[int]:
    """Images whose decoder states were kept, ascending; none when the step has none."""
    return _images(run, split, step, _STATES)


def _images(run: Run, split: str, step: int, kind: str) -> list[int]:
    folder = run.states_path(split, step)
    if not is_complete(folder):
        return []
    manifest = read_json(folder / MANIFEST)
    return sorted(int(image) for image in manifest["images"]) if kind in manifest.get("kinds", [_MASKS]) else []


def _shard(run: Run, split: str, step: int, image_id: int, kind: str, what: str) -> Path:
    if image_id not in _images(run, split, step, kind):
        raise RunError(f"run '{run.name}' keeps no {what} of image {image_id} of split '{split}' at step {step}.")
    folder = run.states_path(split, step)
    return folder / read_json(folder / MANIFEST)["images"][str(image_id)]


def _check(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{what} holds NaN or infinity.")


def _quantised(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """uint8 values, scale, offset."""
    values = np.asarray(values, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    scale = (high - low) / 255
    stored = np.zeros(values.shape) if scale == 0 else np.rint((values - low) / scale)
    return stored.astype(np.uint8), scale, low
