"""The query table of a run on disk: Parquet below ``queries/split=<s>/step=<n>/``, read through DuckDB (docs/formats.md)."""

import contextlib
import functools
import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workbench.errors import RunError
from workbench.files import replacing_folder
from workbench.remote import file_system, is_remote
from workbench.store.manifest import MANIFEST, check_files, is_complete, manifest_files, read_manifest, write_manifest
from workbench.store.query_schema import QUERY_SCHEMA
from workbench.store.run import Run

TEACHER_STEP = -1
_ROW_GROUP = 1 << 16  # small enough to find the rows of one image by the statistics of their group
# dictionary encoding of floats, which hardly ever repeat, takes three times as long and 1.5 times the space
_REPEATING = [field.name for field in QUERY_SCHEMA if not pa.types.is_floating(field.type)]
_PART, _MATCHED = "part", "matched"  # all rows, and a copy of those with a target: a few per cent, which most analyses read
Assignment = Literal["one", "many"]
Kept = Literal["all", "top"]
_KEPT = "kept"  # name of the fact `rows` in the manifest, whose own `rows` is their number
_UNLESS_TOLD: dict[str, Any] = {"assignment": "one", "geometric": False, _KEPT: "all", "grid": None}
_COMPRESSION = "lz4"  # written 1.4 times as fast as zstd and read twice as fast, with 10 % more space


class QueryWriter:
    """Collects rows and writes them in parts; use ``query_writer`` to make one."""

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
        """Writes the pending rows, sorts everything and adds the manifest."""
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
    """Streams rows of one split and step to disk; they all appear at once when the block ends without an error.

    The stored rows are sorted by image_id, model, layer and query, in whatever order they came. They replace earlier rows of the same split
    and step.

    Args:
        run: the run they belong to.
        split: split of the data.
        step: training step of the weights; ``TEACHER_STEP`` for teacher rows, which are written once.
        rows_per_part: number of rows held in memory before they are written.
        facts: result of ``query_facts``, stored in the manifest.
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
    """Returns rows of the query table, ordered by step, image, model, layer and query.

    Example:
        >>> read_queries(run, "val", where="image_id = $image and layer = $layer", parameters={"image": 7, "layer": 2})

    Args:
        run: the run to read.
        split: split of the data.
        steps: steps to read; None reads all that exist, including ``TEACHER_STEP``.
        columns: columns of ``QUERY_SCHEMA``, or ``step``; None reads all.
        where: a condition in SQL, written by the programmer; values belong in ``parameters``.
        parameters: values of the ``$names`` in ``where``.
        matched: read only queries with a target, which is many times faster than the same condition in ``where``.

    Returns:
        A frame with the column ``step`` and the requested ones.

    Raises:
        RunError: the run has no such rows.
        ValueError: a column does not exist.
    """
    there = complete_steps(run, split)
    wanted = there if steps is None else sorted(set(steps))
    if not wanted or set(wanted) - set(there):
        raise RunError(
            f"run '{run.name}' has no query table of split '{split}' at step {', '.join(map(str, wanted)) or 'any'}. "
            f"Steps with a table: {', '.join(map(str, there)) or 'none'}."
        )
    known = ["step", *QUERY_SCHEMA.names]
    chosen = known if columns is None else list(columns)
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"the query table has no column {', '.join(unknown)}; its columns are {', '.join(known)}")
    # column names come from the list above, steps are numbers and `where` is the programmer's; file names and values are bound
    source = ", ".join(f'"{name}"' for name in QUERY_SCHEMA.names)
    tables = [f"SELECT {step}::INTEGER AS step, {source} FROM read_parquet($files_{index})" for index, step in enumerate(wanted)]
    condition = f"({where or 'true'}) AND {'match >= 0' if matched else 'true'}"
    query = f"""SELECT {", ".join(f'"{name}"' for name in chosen)} FROM ({" UNION ALL ".join(tables)}) WHERE {condition}"""
    files = {f"files_{index}": [glob.escape(str(file)) for file in _files(run.queries_path(split, step), matched)]
             for index, step in enumerate(wanted)}  # fmt: skip
    return _asked(run, query, {**files, **(parameters or {})}).df()


def _files(folder: Path, matched: bool) -> list[Path]:
    """Returns the files with all rows, or those with only matched queries if they exist; tables of earlier versions have none.

    Raises:
        WorkbenchError: one of them is missing or damaged.
    """
    there = manifest_files(folder)
    kinds = {kind: [file for file in there if file.name.startswith(f"{kind}-")] for kind in (_PART, _MATCHED)}
    files = (matched and kinds[_MATCHED]) or kinds[_PART]
    if not files:
        raise RunError(f"{folder / MANIFEST} is damaged: it lists no rows. Restore it from a copy, or write it with 'workbench record'.")
    check_files(folder, files)
    return files


def query_facts(
    images: int,
    sampled: bool,
    input_key: str,
    *,
    assignment: Assignment = "one",
    geometric: bool = False,
    rows: Kept = "all",
    grid: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns what the manifest of a query table holds besides the number of its rows and its files.

    Args:
        images: number of images with rows.
        sampled: True if the split has more images.
        input_key: equal for two tables whose candidates (encoder cells, anchors) are the same places.
        assignment: ``one`` if a target has one positive candidate at most, as in a DETR; ``many`` if it may have several.
        geometric: True if the assignment depends on the boxes of targets and anchors alone, so that training cannot change it.
        rows: ``all`` if every candidate has a row; ``top`` if only the positive ones and the best by score have one.
        grid: of a dense detector, JSON that describes its cells; None where candidates are no cells.
    """
    own = {"assignment": assignment, "geometric": geometric, _KEPT: rows, "grid": dict(grid) if grid is not None else None}
    # a manifest without them is that of an earlier version, and equal to it byte by byte
    told = {name: value for name, value in own.items() if value != _UNLESS_TOLD[name]}
    return {"images": images, "sampled": sampled, "input": input_key, **told}


def read_facts(run: Run, split: str, step: int) -> dict[str, Any]:
    """Returns the facts of a complete table by the names of ``query_facts``, ``input_key`` as ``input``.

    Tables of earlier versions have no ``images``, ``sampled`` and ``input``, and hold every image; those without the other facts are of
    detectors with a one-to-one assignment and have a row for every candidate.
    """
    manifest = read_manifest(run.queries_path(split, step))
    unless_told = {"images": None, "sampled": False, "input": None, **_UNLESS_TOLD}
    return {"rows" if name == _KEPT else name: manifest.get(name, value) for name, value in unless_told.items()}


def read_layers(run: Run, split: str, step: int, model: str) -> list[int]:
    """Returns the layers of which a complete table has rows of a model, ascending; the rows themselves are not brought into memory."""
    files = [glob.escape(str(file)) for file in _files(run.queries_path(split, step), matched=False)]
    query = "SELECT DISTINCT layer FROM read_parquet($files) WHERE model = $model ORDER BY layer"
    found = _asked(run, query, {"files": files, "model": model}).fetchall()
    return [int(layer) for (layer,) in found]


def complete_steps(run: Run, split: str) -> list[int]:
    """Lists the steps whose rows are complete, ascending; ``TEACHER_STEP`` comes first if there is a teacher."""
    return [step for step in (TEACHER_STEP, *run.query_steps(split)) if is_complete(run.queries_path(split, step))]


def _asked(run: Run, query: str, parameters: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
    """Returns the answer to a query about files below a run's folder; its own cursor makes it safe for threads.

    Raises:
        RunError: a file cannot be read, or is no table of queries.
    """
    database = _database(None, str(run.path.parent)) if not is_remote(run.path) else _database(file_system(run.path))
    try:
        return database.cursor().execute(query, dict(parameters))
    except duckdb.Error as error:
        said = str(error).strip().splitlines()[0]
        raise RunError(f"the query table of run '{run.name}' cannot be read: {said} Write it again with 'workbench record'.") from error


@functools.cache
def _database(remote: Any, folder: str = "") -> duckdb.DuckDBPyConnection:
    """Returns an in-memory database that opens no file but those it is for.

    Args:
        remote: a file system that is read in place; None reads local files.
        folder: the folder of runs whose files it may open.
    """
    database = duckdb.connect()
    if remote is not None:
        database.register_filesystem(remote)
        database.execute("SET disabled_filesystems = 'LocalFileSystem'")
    else:
        # the system already caches local files; a second copy would fill the memory of a page
        database.execute("SET enable_external_file_cache = false")
        # files are named by patterns, in which some characters are escaped
        database.execute("SET allowed_directories = [$folder, $pattern]", {"folder": folder, "pattern": glob.escape(folder)})
        database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def _in_order(table: pa.Table) -> pa.Table:
    """Returns the rows sorted by image, model, layer and query."""
    model = table["model"].combine_chunks().dictionary_encode()
    rank = np.argsort(np.argsort(np.asarray(model.dictionary.to_pylist(), dtype=str)))
    keys = [table["image_id"].to_numpy(), rank[model.indices], table["layer"].to_numpy(), table["query"].to_numpy()]
    return table if _ascending(keys) else table.take(np.lexsort(keys[::-1]))


def _ascending(keys: Sequence[np.ndarray]) -> bool:
    """True if rows are ordered by the first key, equal ones by the second, and so on."""
    undecided = np.ones(max(len(keys[0]) - 1, 0), dtype=bool)
    for key in keys:
        if (undecided & (key[1:] < key[:-1])).any():
            return False
        undecided &= key[1:] == key[:-1]
    return True
