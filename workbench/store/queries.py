"""The query table of a run on disk: Parquet below ``queries/split=<s>/step=<n>/``, read through DuckDB (docs/formats.md)."""

import contextlib
import functools
import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workbench.errors import RunError
from workbench.files import read_json, replacing_folder
from workbench.remote import file_system, is_remote
from workbench.store.manifest import MANIFEST, is_complete, manifest_files, write_manifest
from workbench.store.query_schema import QUERY_SCHEMA
from workbench.store.run import Run

TEACHER_STEP = -1
_ROW_GROUP = 1 << 16  # small enough that the rows of one image are found by the statistics of their group
# a dictionary of floats, hardly two of them equal, takes three times as long and half as much space again
_REPEATING = [field.name for field in QUERY_SCHEMA if not pa.types.is_floating(field.type)]
_PART, _MATCHED = "part", "matched"  # all rows; once more those with a target, a few in a hundred, which most of analysis reads
_COMPRESSION = "lz4"  # written 1.4 times as fast as zstd and read twice as fast, for a tenth more space


class QueryWriter:
    """Collects rows and writes them in parts; made by ``query_writer``."""

    def __init__(self, folder: Path, rows_per_part: int, facts: Mapping[str, Any]):
        self._folder = folder
        self._facts = facts
        self._rows_per_part = rows_per_part
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._files: dict[str, list[Path]] = {_PART: [], _MATCHED: []}
        self._last_image: int | None = None
        self._in_order = True

    def write(self, rows: pa.Table) -> None:
        """Adds a table of ``QUERY_SCHEMA``."""
        self._pending.append(rows)
        self._pending_rows += rows.num_rows
        if self._pending_rows >= self._rows_per_part:
            self._flush()

    def finish(self) -> None:
        """Writes what is held, puts everything in order and adds the manifest."""
        if self._pending_rows or not self._files[_PART]:
            self._flush()
        if not self._in_order:
            self._pending = [pq.ParquetFile(part).read() for part in self._files[_PART]]
            for written in self._files.values():
                while written:
                    written.pop().unlink()
            self._flush()
        rows = sum(pq.read_metadata(part).num_rows for part in self._files[_PART])
        write_manifest(self._folder, [file for written in self._files.values() for file in written], rows=rows, **self._facts)

    def _flush(self) -> None:
        table = _in_order(pa.concat_tables([QUERY_SCHEMA.empty_table(), *self._pending]))
        self._pending, self._pending_rows = [], 0
        images = table["image_id"]
        if len(images):
            self._in_order &= self._last_image is None or images[0].as_py() > self._last_image
            self._last_image = images[-1].as_py()
        for kind, rows in ((_PART, table), (_MATCHED, table.filter(pc.field("match") >= 0))):
            file = self._folder / f"{kind}-{len(self._files[kind]):05d}.parquet"
            pq.write_table(rows, file, row_group_size=_ROW_GROUP, compression=_COMPRESSION, use_dictionary=_REPEATING)  # pyright: ignore[reportArgumentType] - a list is allowed
            self._files[kind].append(file)


@contextlib.contextmanager
def query_writer(
    run: Run, split: str, step: int, rows_per_part: int = 1_000_000, facts: Mapping[str, Any] | None = None
) -> Iterator[QueryWriter]:
    """Streams rows of one split and step to disk; they appear, all at once, when the block ends without an error.

    In the folder rows are sorted by image_id, model, layer and query, in whatever order they came. Rows of the same split and step
    that were there before are replaced.

    Args:
        run: whose table.
        split: of the data.
        step: of the weights; ``TEACHER_STEP`` for teacher rows, which are written once.
        rows_per_part: rows held in memory before they are written.
        facts: of ``query_facts``, kept in the manifest.
    """
    with replacing_folder(run.queries_path(split, step)) as folder:
        writer = QueryWriter(folder, rows_per_part, facts or {})
        yield writer
        writer.finish()


def read_queries(
    run: Run,
    split: str,
    steps: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    where: str = "",
    parameters: Mapping[str, Any] | None = None,
    matched: bool = False,
) -> pd.DataFrame:
    """Rows of the query table in order of step, image, model, layer and query.

    Example: ``read_queries(run, "val", where="image_id = $image and layer = $layer", parameters={"image": 7, "layer": 2})``

    Args:
        run: whose table.
        split: of the data.
        steps: all that are there by default, ``TEACHER_STEP`` included.
        columns: of ``QUERY_SCHEMA``, and ``step``; all by default.
        where: a condition in SQL, written by the programmer; values belong into ``parameters``.
        parameters: values of the ``$names`` in ``where``.
        matched: only queries with a target, many times faster than the same condition in ``where``.

    Returns:
        A frame with the column ``step`` and those asked for.

    Raises:
        RunError: the run has no such rows.
        ValueError: a column that does not exist.
    """
    there = complete_steps(run, split)
    wanted = there if steps is None else sorted(set(steps))
    if not wanted or set(wanted) - set(there):
        raise RunError(
            f"run '{run.name}' has no query table of split '{split}' at step {', '.join(map(str, wanted)) or 'any'}; "
            f"steps there: {', '.join(map(str, there)) or 'none'}."
        )
    known = ["step", *QUERY_SCHEMA.names]
    chosen = known if columns is None else list(columns)
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"no column {', '.join(unknown)} in the query table; it has {', '.join(known)}")
    # names of columns are of the list above, steps are numbers and `where` is the programmer's; file names and values are bound
    source = ", ".join(f'"{name}"' for name in QUERY_SCHEMA.names)
    tables = [f"SELECT {step}::INTEGER AS step, {source} FROM read_parquet($files_{index})" for index, step in enumerate(wanted)]
    condition = f"({where or 'true'}) AND {'match >= 0' if matched else 'true'}"
    query = f"""SELECT {", ".join(f'"{name}"' for name in chosen)} FROM ({" UNION ALL ".join(tables)}) WHERE {condition}"""
    files = {f"files_{index}": [glob.escape(str(file)) for file in _files(run.queries_path(split, step), matched)]
             for index, step in enumerate(wanted)}  # fmt: skip
    return _connection(run.path).cursor().execute(query, {**files, **(parameters or {})}).df()


def _files(folder: Path, matched: bool) -> list[Path]:
    """Files with all rows, or with those of matched queries where there are such; tables of earlier versions have none."""
    kinds: dict[str, list[Path]] = {_PART: [], _MATCHED: []}
    for file in manifest_files(folder):
        kinds[file.name.split("-")[0]].append(file)
    return (matched and kinds[_MATCHED]) or kinds[_PART]


def query_facts(images: int, sampled: bool, input_key: str) -> dict[str, Any]:
    """What the manifest of a query table says besides rows and files.

    Args:
        images: of which there are rows.
        sampled: whether the split has more.
        input_key: equal where encoder cells of two tables mean the same places.
    """
    return {"images": images, "sampled": sampled, "input": input_key}


def read_facts(run: Run, split: str, step: int) -> dict[str, Any]:
    """The facts of a complete table; tables of earlier versions have none, they hold every image."""
    manifest = read_json(run.queries_path(split, step) / MANIFEST)
    return {"images": None, "sampled": False, "input": None, **{k: v for k, v in manifest.items() if k in ("images", "sampled", "input")}}


def complete_steps(run: Run, split: str) -> list[int]:
    """Steps whose rows are there, ascending, ``TEACHER_STEP`` first where there is a teacher."""
    return [step for step in (TEACHER_STEP, *run.query_steps(split)) if is_complete(run.queries_path(split, step))]


def _connection(path: Path) -> duckdb.DuckDBPyConnection:
    """A database that can read below ``path``; every read takes a cursor of its own, which threads may do."""
    return _database(file_system(path) if is_remote(path) else None)


@functools.cache
def _database(remote: Any) -> duckdb.DuckDBPyConnection:
    """One in-memory database for the process, and one for each remote file system, which it reads in place."""
    database = duckdb.connect()
    if remote is not None:
        database.register_filesystem(remote)
    else:
        # the system keeps what was read of local files; a second copy would fill the memory of a page
        database.execute("SET enable_external_file_cache = false")
    return database


def _in_order(table: pa.Table) -> pa.Table:
    """Rows by image, model, layer and query."""
    model = table["model"].combine_chunks().dictionary_encode()
    rank = np.argsort(np.argsort(np.asarray(model.dictionary.to_pylist(), dtype=str)))
    keys = [table["image_id"].to_numpy(), rank[model.indices], table["layer"].to_numpy(), table["query"].to_numpy()]
    return table if _ascending(keys) else table.take(np.lexsort(keys[::-1]))


def _ascending(keys: Sequence[np.ndarray]) -> bool:
    """Whether rows are in order of the first key, among equals of the second, and so on."""
    undecided = np.ones(max(len(keys[0]) - 1, 0), dtype=bool)
    for key in keys:
        if (undecided & (key[1:] < key[:-1])).any():
            return False
        undecided &= key[1:] == key[:-1]
    return True
