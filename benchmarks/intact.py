"""Measures what checking the hashes of files costs where a query table of 9 million rows is read for the first time, on two cores."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from benchmarks.harness import Figure, interleaved, median_ratio
from benchmarks.store_rows import IMAGES, LAYERS, QUERIES, query_chunks
from workbench.store import intact
from workbench.store.queries import query_writer, read_queries
from workbench.store.run import Run

REPEATS = 9


def figures() -> Iterator[Figure]:
    """Writes one step into a temporary folder, reads it with and without a check, and removes it."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    pa.set_cpu_count(2)
    folder = Path(tempfile.mkdtemp(prefix="workbench-intact-"))
    try:
        run = Run.create("distilled", {}, folder)
        with query_writer(run, "val", 1) as writer:
            for rows in query_chunks(1):
                writer.write(rows)

        def checked() -> None:
            intact.forget_checked()
            remembered()

        def remembered() -> None:
            assert len(read_queries(run, "val", [1])) == IMAGES * LAYERS * QUERIES

        seconds = interleaved({"checked": checked, "remembered": remembered}, REPEATS)
        ratio = median_ratio(seconds["checked"], seconds["remembered"])
        name = "reading 9 million rows for the first time, over reading them again without a check"
        yield Figure(name, ratio.value, "x", "<= 1.05", (ratio.low, ratio.high), REPEATS)
    finally:
        shutil.rmtree(folder)
