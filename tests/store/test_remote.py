"""Runs in an object store: what is written there is read there, without a copy; by a local server that speaks S3."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from moto.server import ThreadedMotoServer

from tests.analysis.run_examples import finished_run
from tests.store.batches import random_batch, rows_of
from workbench.analysis.derived import match_frame
from workbench.errors import MissingExtraError, RunError, WorkbenchError
from workbench.files import read_json, write_json
from workbench.remote import as_path, file_system, is_remote
from workbench.store.queries import query_writer, read_queries
from workbench.store.run import Run, list_runs
from workbench.store.states import masked_images, read_masks, read_states, states_writer

ROOT = "s3://bucket/runs"


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    """A bucket whose folder ``runs`` is empty."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "any"), ("AWS_SECRET_ACCESS_KEY", "any"), ("AWS_DEFAULT_REGION", "us-east-1"),
                            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")):  # fmt: skip
            patch.setenv(name, value)
        root = as_path(ROOT)
        file_system(root).mkdir("bucket")
        yield root
    server.stop()


def upload(run: Run, store: Path) -> Run:
    """The same run in the store."""
    file_system(store).put(str(run.path), f"bucket/runs/{run.name}", recursive=True)
    return Run.open(f"{ROOT}/{run.name}")


def test_runs_are_listed_opened_and_read_in_place(store: Path, monkeypatch: pytest.MonkeyPatch):
    local = [finished_run("first", 1)[0], finished_run("second", 2)[0]]
    for run in local:
        upload(run, store)
    monkeypatch.setenv("WORKBENCH_RUNS", ROOT)
    found = list_runs()
    assert [run.name for run in found] == ["first", "second"]
    assert all(is_remote(run.path) and not run.is_running() for run in found)
    for run, wanted in zip(found, local, strict=True):
        assert run.info() == wanted.info() and run.evaluations() == wanted.evaluations() and run.timings() == wanted.timings()
        pd.testing.assert_frame_equal(match_frame(run, "agreement"), match_frame(wanted, "agreement"))
    with pytest.raises(RunError, match=r"no run 'third' in s3://bucket/runs\. Runs there: first, second"):
        Run.open("third")


def test_rows_of_a_remote_table_are_those_of_the_local_one_and_results_are_kept_beside_it(store: Path):
    local, _ = finished_run("rows", 3)
    remote = upload(local, store)
    pd.testing.assert_frame_equal(read_queries(remote, "val"), read_queries(local, "val"), check_exact=True)
    where, image = "image_id = $image and layer = 1", {"image": 101}
    one = read_queries(remote, "val", where=where, parameters=image, steps=[20])
    assert len(one) == 5
    pd.testing.assert_frame_equal(one, read_queries(local, "val", where=where, parameters=image, steps=[20]), check_exact=True)
    for _ in ("computed", "read back"):
        pd.testing.assert_frame_equal(match_frame(remote, "churn_steps"), match_frame(local, "churn_steps"))
    assert len(list((remote.path / "derived").iterdir())) == 1


def test_tables_and_tensors_are_written_to_the_store_whole_or_not_at_all(store: Path):
    run = Run(as_path(f"{ROOT}/written"))
    write_json(run.info_path, {"state": "done"})
    assert read_json(run.info_path) == {"state": "done"}
    tables = [rows_of(random_batch(seed)) for seed in (1, 2)]
    for rows in tables:
        with query_writer(run, "val", 5, rows_per_part=10) as writer:
            writer.write(rows)
    found = read_queries(run, "val", [5]).drop(columns="step")
    wanted = tables[1].to_pandas().sort_values(["image_id", "model", "layer", "query"], ignore_index=True)
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
    with pytest.raises(KeyboardInterrupt), query_writer(run, "val", 6) as writer:
        writer.write(tables[0])
        raise KeyboardInterrupt
    assert run.query_steps("val") == [5]
    states, mask = np.ones((2, 3, 4), np.float32), np.eye(3, dtype=np.float32)
    with states_writer(run, "val", 5) as tensors:
        tensors.write(7, {(1, 0): mask}, states)
        tensors.write(70, {(1, 0): mask + 1}, states + 1)
    assert masked_images(run, "val", 5) == [7, 70]
    assert (read_states(run, "val", 5, 7) == states).all() and (read_masks(run, "val", 5, 70)[1, 0] == mask + 1).all()


def test_training_and_removing_are_refused_where_there_is_no_local_folder(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", ROOT)
    with pytest.raises(RunError, match="not a local folder, but training needs one"):
        Run.create("new", {})
    with pytest.raises(RunError, match="only read"):
        Run(as_path(f"{ROOT}/rows")).remove()


def test_an_address_that_nothing_reads_is_told():
    with pytest.raises(WorkbenchError, match="nosuch://bucket/runs cannot be read"):
        as_path("nosuch://bucket/runs")
    with pytest.raises(MissingExtraError, match="abfs"):
        as_path("abfs://bucket/runs")
