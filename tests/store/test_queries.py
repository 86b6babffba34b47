"""The query table on disk: whole, in order, and read with bound values."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.batches import random_batch, rows_of
from workbench.errors import RunError
from workbench.store.queries import TEACHER_STEP, _ascending, query_facts, query_writer, read_facts, read_layers, read_queries
from workbench.store.query_schema import QUERY_SCHEMA
from workbench.store.run import Run

KEYS = ["image_id", "model", "layer", "query"]


def write(run: Run, step: int, seeds: list[int], rows_per_part: int = 1_000_000) -> pd.DataFrame:
    """Writes one batch per seed with images 100 * seed + 0, 1, 2 and returns its rows in the promised order."""
    tables = []
    with query_writer(run, "val", step, rows_per_part) as writer:
        for seed in seeds:
            batch = random_batch(seed)
            batch["image_ids"] = [100 * seed + 2, 100 * seed, 100 * seed + 1]
            for model in ("teacher_group", "student") if step >= 0 else ("teacher",):
                tables.append(rows_of({**batch, "model": model}))
                writer.write(tables[-1])
    rows = pd.concat([table.to_pandas() for table in tables]).sort_values(KEYS, ignore_index=True)
    rows.insert(0, "step", pd.Series(step, rows.index, dtype="int32"))
    return rows


@pytest.mark.parametrize("seeds", [[1, 2, 3], [3, 1, 2]], ids=["ascending", "shuffled"])
@pytest.mark.parametrize("rows_per_part", [1, 50, 10_000])
def test_what_is_written_is_read_back_sorted_whatever_order_it_came_in(seeds: list[int], rows_per_part: int):
    run = Run.create("order", {})
    expected = write(run, 10, seeds, rows_per_part)
    pd.testing.assert_frame_equal(read_queries(run, "val"), expected, check_dtype=False)
    assert run.query_steps("val") == [10]


def test_parts_are_split_by_size_and_named_with_their_hashes_in_the_manifest():
    run = Run.create("parts", {})
    rows = write(run, 10, [1, 2, 3], rows_per_part=40)
    folder = run.queries_path("val", 10)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == len(rows)
    there = {kind: sorted(path.name for path in folder.glob(f"{kind}-*.parquet")) for kind in ("part", "matched")}
    assert sorted(manifest["files"]) == sorted(there["part"] + there["matched"])
    assert len(there["part"]) == len(there["matched"]) == 3


@pytest.mark.parametrize("older", [False, True], ids=["with a file of their own", "of an earlier version"])
@pytest.mark.parametrize("seeds", [[1, 2, 3], [3, 1, 2]], ids=["ascending", "shuffled"])
def test_rows_with_a_target_are_read_apart(seeds: list[int], older: bool):
    run = Run.create("matched", {})
    rows = write(run, 10, seeds, rows_per_part=50)
    folder = run.queries_path("val", 10)
    if older:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"] = {name: value for name, value in manifest["files"].items() if name.startswith("part-")}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    expected = rows[(rows["match"] >= 0) & (rows["layer"] == 1)].reset_index(drop=True)
    assert 0 < len(expected) < (rows["layer"] == 1).sum()
    found = read_queries(run, "val", where="layer = $layer or false", parameters={"layer": 1}, matched=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_teacher_rows_and_steps_are_told_apart():
    run = Run.create("steps", {})
    expected = pd.concat([write(run, step, [1]) for step in (TEACHER_STEP, 5, 20)], ignore_index=True)
    pd.testing.assert_frame_equal(read_queries(run, "val"), expected, check_dtype=False)
    assert set(read_queries(run, "val", steps=[20])["step"]) == {20}
    assert set(read_queries(run, "val", steps=[TEACHER_STEP])["model"]) == {"teacher"}


def test_values_in_a_condition_are_bound_and_never_sql():
    run = Run.create("bound", {})
    rows = write(run, 5, [1, 2])
    found = read_queries(
        run,
        "val",
        columns=["image_id", "layer", "query", "score"],
        where="image_id = $image and layer in $layers and model = $model",
        parameters={"image": 201, "layers": [1], "model": "student"},
    )
    wanted = rows[(rows.image_id == 201) & (rows.layer == 1) & (rows.model == "student")][["image_id", "layer", "query", "score"]]
    pd.testing.assert_frame_equal(found, wanted.reset_index(drop=True), check_dtype=False)
    assert read_queries(run, "val", where="model = $model", parameters={"model": "student' or 'a' = 'a"}).empty


def test_a_writer_that_fails_leaves_what_was_there():
    run = Run.create("failing", {})
    before = write(run, 5, [1])
    with pytest.raises(KeyboardInterrupt), query_writer(run, "val", 5, rows_per_part=1) as writer:
        writer.write(rows_of(random_batch(9)))
        raise KeyboardInterrupt
    pd.testing.assert_frame_equal(read_queries(run, "val"), before, check_dtype=False)
    assert [path.name for path in run.queries_path("val", 5).parent.iterdir()] == ["step=5"]


def test_writing_a_step_again_replaces_it_for_a_reader_that_read_it_before():
    run = Run.create("again", {})
    for seeds, rows_per_part in (([1, 2, 3], 1), ([4], 100), ([5], 100)):
        pd.testing.assert_frame_equal(write(run, 5, seeds, rows_per_part), read_queries(run, "val"), check_dtype=False)


def test_a_run_reads_its_own_queries():
    run = Run.create("own", {})
    rows = write(run, 5, [1, 2])
    found = read_queries(run, "val", where="image_id = $image", parameters={"image": 201}, columns=["query", "score"])
    wanted = rows.loc[rows.image_id == 201, ["query", "score"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)


@given(values=st.lists(st.tuples(*[st.integers(0, 2)] * 3), max_size=8))
def test_rows_are_taken_for_sorted_when_they_are(values: list[tuple[int, ...]]):
    keys = [np.array([value[place] for value in values], dtype=np.int64) for place in range(3)]
    assert _ascending(keys) == (values == sorted(values))


def test_a_step_without_images_is_complete_and_empty():
    run = Run.create("empty", {})
    with query_writer(run, "val", 3):
        pass
    assert run.query_steps("val") == [3] and read_queries(run, "val").empty


def test_a_folder_without_its_manifest_is_not_there():
    run = Run.create("cut", {})
    write(run, 5, [1])
    write(run, 6, [1])
    (run.queries_path("val", 5) / "manifest.json").unlink()
    assert set(read_queries(run, "val")["step"]) == {6}


def test_missing_steps_and_columns_are_named():
    run = Run.create("missing", {})
    with pytest.raises(RunError, match="Steps with a table: none"):
        read_queries(run, "val")
    write(run, 5, [1])
    with pytest.raises(RunError, match=r"at step 7\. Steps with a table: 5"):
        read_queries(run, "val", steps=[7])
    with pytest.raises(ValueError, match="no column scoer"):
        read_queries(run, "val", columns=["scoer"])


def test_a_runs_folder_may_hold_what_looks_like_a_partition_or_a_pattern(tmp_path: Path):
    run = Run.create("plain", {}, tmp_path / "arm=2" / "step=x" / "[ab]*?")
    expected = write(run, 5, [1])
    assert list(read_queries(run, "val").columns) == list(expected.columns)
    assert set(read_queries(run, "val")["step"]) == {5}


def test_a_row_group_is_small_enough_to_find_one_image_in():
    run = Run.create("groups", {})
    batch = random_batch(1, layers=6, images=16, queries=900)
    with query_writer(run, "val", 5) as writer:
        writer.write(rows_of({**batch, "image_ids": range(16)}))
    part = next(run.queries_path("val", 5).glob("part-*.parquet"))
    assert pq.ParquetFile(part).num_row_groups == 2


def test_reading_needs_no_torch_so_that_pages_start_quickly():
    code = "import sys, workbench.store.queries, workbench.analysis.stability.churn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_manifest_of_a_one_to_one_table_is_that_of_earlier_versions():
    assert list(query_facts(3, True, "key").items()) == [("images", 3), ("sampled", True), ("input", "key")]
    run = Run.create("usual", {})
    facts = []
    for step, told in ((10, query_facts(3, True, "key")), (20, None)):
        with query_writer(run, "val", step, facts=told) as writer:
            writer.write(rows_of(random_batch(1)))
        facts.append(read_facts(run, "val", step))
    usual = {"assignment": "one", "geometric": False, "rows": "all", "grid": None}
    assert facts == [{"images": 3, "sampled": True, "input": "key", **usual}, {"images": None, "sampled": False, "input": None, **usual}]


def test_a_many_to_one_table_says_what_it_is_and_how_many_rows_it_has():
    run, grid = Run.create("dense", {}), {"strides": [8, 16], "sizes_differ": True, "shapes": 9, "levels": 2}
    own = {"assignment": "many", "geometric": True, "rows": "top", "grid": grid}
    with query_writer(run, "val", 10, facts=query_facts(3, False, "key", **own)) as writer:
        writer.write(rows_of(random_batch(1)))
    assert read_facts(run, "val", 10) == {"images": 3, "sampled": False, "input": "key", **own}
    manifest = json.loads((run.queries_path("val", 10) / "manifest.json").read_text())
    assert manifest["rows"] == len(read_queries(run, "val", [10])) and manifest["kept"] == "top"


def test_the_layers_of_a_model_are_known_without_a_query_0():
    run = Run.create("layers", {})
    rows = pd.concat([rows_of(random_batch(1, layers=3)).to_pandas(), rows_of({**random_batch(1), "model": "teacher_group"}).to_pandas()])
    with query_writer(run, "val", 10) as writer:
        writer.write(pa.Table.from_pandas(rows[rows["query"] > 1], QUERY_SCHEMA, preserve_index=False))
    assert read_layers(run, "val", 10, "student") == [0, 1, 2] and read_layers(run, "val", 10, "teacher_group") == [0, 1]
    assert read_layers(run, "val", 10, "teacher") == []
