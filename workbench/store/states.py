"""Stores the tensors of a run that are not rows: decoder states as float16, selection masks as uint8 with scale and offset.

A mask has the name ``<image_id>/psi/<layer>/<level>`` and ``value = offset + scale * stored``; scale and offset are in the metadata of its
shard. The states of all layers of an image are ``<image_id>/states``, ``[L, N, D]``.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from workbench.errors import NonFiniteError, RunError
from workbench.files import replacing_folder
from workbench.store.manifest import check_files, is_complete, read_manifest, write_manifest
from workbench.store.masks import quantise, restore
from workbench.store.run import Run

Masks = Mapping[tuple[int, int], np.ndarray]
_IMAGES_PER_SHARD = 128  # few, so that reading one image parses a short header
_MASKS, _STATES = "psi", "states"
_DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}  # the types that are written


class StatesWriter:
    """Collects tensors and writes them in shards; use ``states_writer`` to make one."""

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
            image_id: id of the image; each is written once.
            masks: ``{(layer, level): [H, W]}``.
            states: ``[L, N, D]``; stored as float16, or as float32 if a value exceeds the range of float16.

        Raises:
            NonFiniteError: a value is NaN or infinite; then nothing of the split and step is written.
        """
        for (layer, level), values in (masks or {}).items():
            _check(values, f"selection mask of image {image_id}, layer {layer}, level {level}")
            name = f"{image_id}/{_MASKS}/{layer}/{level}"
            self._tensors[name], scale, offset = quantise(values)
            self._metadata[name] = json.dumps([float(scale), float(offset)])
        if states is not None:
            _check(states, f"decoder states of image {image_id}")
            small = np.abs(states).max(initial=0) <= np.finfo(np.float16).max
            self._tensors[f"{image_id}/{_STATES}"] = np.ascontiguousarray(states, dtype=np.float16 if small else np.float32)
        self._kinds |= {kind for kind, given in ((_MASKS, masks), (_STATES, states)) if given is not None}
        self._images[str(image_id)] = f"shard-{len(self._shards):05d}.safetensors"
        if len(self._images) % _IMAGES_PER_SHARD == 0:
            self._flush()

    def finish(self) -> None:
        """Writes the pending tensors and adds the manifest."""
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
    """Streams tensors of one split and step to disk; they replace earlier ones when the block ends without an error.

    Args:
        run: the run they belong to.
        split: split of the data.
        step: training step of the weights; ``TEACHER_STEP`` for the teacher.
    """
    with replacing_folder(run.states_path(split, step)) as folder:
        writer = StatesWriter(folder)
        yield writer
        writer.finish()


def read_masks(run: Run, split: str, step: int, image_id: int) -> dict[tuple[int, int], np.ndarray]:
    """Returns the selection masks of one image, ``{(layer, level): [H, W] float32}``, exact to half a 255th of each mask's range.

    Raises:
        RunError: this split, step or image has no stored masks.
    """
    masks = {}
    metadata, tensors = _read(_shard(run, split, step, image_id, _MASKS, "selection masks"), f"{image_id}/{_MASKS}/")
    for name, stored in tensors.items():
        _, _, layer, level = name.split("/")
        scale, offset = json.loads(metadata[name])
        masks[int(layer), int(level)] = restore(stored, scale, offset)
    return masks


def read_states(run: Run, split: str, step: int, image_id: int) -> np.ndarray:
    """Returns the decoder states of one image, ``[L, N, D]`` float32 of float16 precision; layers and queries as in the query table.

    Raises:
        RunError: this split, step or image has no stored states.
    """
    name = f"{image_id}/{_STATES}"
    return _read(_shard(run, split, step, image_id, _STATES, "decoder states"), name)[1][name].astype(np.float32)


def masked_images(run: Run, split: str, step: int) -> list[int]:
    """Lists the images with stored masks, ascending; empty if the step has none."""
    return _images(run, split, step, _MASKS)


def images_with_states(run: Run, split: str, step: int) -> list[int]:
    """Lists the images with stored decoder states, ascending; empty if the step has none."""
    return _images(run, split, step, _STATES)


def _images(run: Run, split: str, step: int, kind: str) -> list[int]:
    folder = run.states_path(split, step)
    if not is_complete(folder):
        return []
    manifest = read_manifest(folder)
    return sorted(int(image) for image in manifest["images"]) if kind in manifest.get("kinds", [_MASKS]) else []


def _shard(run: Run, split: str, step: int, image_id: int, kind: str, what: str) -> Path:
    if image_id not in _images(run, split, step, kind):
        raise RunError(f"run '{run.name}' has no {what} of image {image_id} of split '{split}' at step {step}.")
    folder = run.states_path(split, step)
    file = folder / read_manifest(folder)["images"][str(image_id)]
    check_files(folder, [file])
    return file


def _read(path: Path, prefix: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Returns a safetensors file's metadata and its tensors with that name prefix; of a remote file only these bytes are fetched.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            tensors = {}
            for name, entry in header.items():
                if name.startswith(prefix):
                    begin, end = entry["data_offsets"]
                    file.seek(8 + length + begin)
                    tensors[name] = np.frombuffer(file.read(end - begin), _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise RunError(f"{path} is damaged: {error}. Write it again with 'workbench record'.") from error
    return header.get("__metadata__", {}), tensors


def _check(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{what} holds NaN or infinity.")
