"""Ways to damage a file, and a run of each kind of file to damage."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from tests.faults.conftest import SAVED
from workbench.store.intact import HASHES, write_hash, write_hashes
from workbench.store.run import Run

# one file of each role; the others of the run are read by the same code
LOGS = ("metrics.jsonl", "timings.jsonl", "evaluations.jsonl")
TABLES = (
    "detections/split=val/step=6.parquet", "queries/split=val/step=6/manifest.json", "queries/split=val/step=6/part-00000.parquet",
    "queries/split=val/step=6/matched-00000.parquet", "queries/split=val/step=-1/manifest.json",
    "queries/split=val/step=-1/matched-00000.parquet", "states/split=val/step=-1/manifest.json",
    "states/split=val/step=-1/shard-00000.safetensors", "states/split=val/step=6/shard-00000.safetensors",
)  # fmt: skip
CHECKPOINT = ("config.json", "model.safetensors", "workbench.json", "trainer.json", "trainer.safetensors", HASHES, "DONE")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path) -> None:
    """One bit in the middle; in a text this is another letter or digit."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def other_shape(path: Path) -> None:
    """A file of the same format that holds something else."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"a": [1, 2]}), path)
    elif path.suffix == ".safetensors":
        save_file({"a": np.zeros(2, np.float32)}, path)
    elif path.suffix == ".jsonl":
        path.write_text('{"a": 1}\n{"step": []}\n')
    else:
        path.write_text('{"a": {"b": [null]}}\n')


def missing(path: Path) -> None:
    path.unlink()


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "empty": empty, "cut": cut, "flipped": flipped, "other shape": other_shape, "missing": missing,
}  # fmt: skip


def make_run(folder: Path, source: str = "distilled") -> Run:
    """A copy of a stored run as the code of today writes one, with the hashes that the stored one lacks."""
    run = Run(Path(shutil.copytree(SAVED / source, folder)))
    for file in folder.glob("detections/*/*.parquet"):
        write_hash(file)
    for step in run.checkpoint_steps():
        done = run.checkpoint_path(step) / "DONE"
        done.unlink()
        write_hashes(done.parent)
        done.write_text(f"{step}\n")
    if run.info()["state"] == "done":
        run.finish()
    return run
