"""Comparisons in the real FiftyOne: its database, its datasets and its App in the browser; one of each for all tests."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import duckdb
import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from tests import inspection_examples as examples
from tests import many_to_one_examples
from tests.flows import command
from tests.patience import patience, patient, wait_until
from workbench.analysis.defined import NOT_DEFINED
from workbench.analysis.detection.lost import LEAST_SCORE
from workbench.analysis.detection.tide import find_errors
from workbench.analysis.of_run import last_with_queries
from workbench.analysis.queries.gain import target_gain
from workbench.analysis.queries.query_detections import query_detections
from workbench.analysis.report.inspection import inspect
from workbench.analysis.results.of_runs import Results
from workbench.datasets.base import Dataset
from workbench.errors import WorkbenchError
from workbench.files import cache_folder
from workbench.services import mongo
from workbench.services.servers import Server, server_file
from workbench.store.queries import read_queries
from workbench.store.run import Run
from workbench.views import box_drawing as boxes

APP_SECONDS = 180  # what a quiet machine takes at most for anything in the App
GRADED = 10
WRONG_KINDS = ("classification", "localisation", "both", "duplicate", "background")
WRONG = str(WRONG_KINDS)


@pytest.fixture(scope="module", autouse=True)
def few_are_graded() -> Iterator[None]:
    """There are fewer matched queries here than are graded otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.analysis.report.inspection.GRADED", GRADED)
        yield


@pytest.fixture(scope="module")
def data() -> Dataset:
    return examples.make_data()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> tuple[Run, Run]:
    return examples.make_runs(tmp_path_factory.mktemp("fiftyone") / "runs", data)


@pytest.fixture(scope="module")
def fiftyone(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """FiftyOne with a database of its own; yields its address."""
    from workbench.views.fiftyone.connection import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(mongo.URI, raising=False)
        # the program lies in the user's cache, everything else is the tests' own
        own = tmp_path_factory.mktemp("cache")
        (own / "workbench").mkdir()
        if (tools := cache_folder() / "tools").is_dir():
            (own / "workbench" / "tools").symlink_to(tools)
        patch.setenv("XDG_CACHE_HOME", str(own))
        patch.setenv("FIFTYONE_CONFIG_PATH", str(own / "config.json"))
        with connected() as uri:
            yield uri


@pytest.fixture(scope="module")
def comparison(fiftyone: str, runs: tuple[Run, Run]) -> Any:
    from workbench.views.fiftyone.dataset import open_comparison

    return open_comparison(*runs)


@pytest.fixture(scope="module")
def tables(runs: tuple[Run, Run], data: Dataset) -> duckdb.DuckDBPyConnection:
    """The query tables as they lie on disk, the last layer as ``teacher``, ``student`` and ``baseline`` with types of errors, and gains."""
    database = duckdb.connect()
    truth = data.coco()
    for role, run, step in (("teacher", runs[0], -1), ("student", runs[0], 30), ("baseline", runs[1], 30)):
        files = str(run.queries_path("val", step) / "part-*.parquet")
        rows = database.sql(f"SELECT * FROM '{files}' WHERE layer = {examples.LAYERS - 1}").df()
        found = find_errors(truth, query_detections(rows, data))
        kinds = found.detections[["image_id", "query", "error"]]
        database.register(f"{role}_frame", rows.merge(kinds, on=["image_id", "query"]))
        database.register(f"{role}_targets", found.targets[["image_id", "target", "error"]])
        confident = find_errors(truth, query_detections(rows[rows["score"] >= 0.3], data))
        database.register(f"{role}_confident", confident.targets[["image_id", "target", "error"]])
        database.sql(f"CREATE TABLE {role} AS SELECT * FROM {role}_frame")
    evaluations = ", ".join(f"'{runs[0].queries_path('val', step) / 'part-*.parquet'}'" for step in examples.STEPS)
    name = "regexp_extract(filename, 'step=(\\d+)', 1)::int"
    database.sql(f"CREATE TABLE held AS SELECT {name} AS step, * FROM read_parquet([{evaluations}], filename=true) WHERE match >= 0")
    gains = target_gain(*(read_queries(run, "val", steps=[30]) for run in runs), 30)
    database.register("gains", gains)
    return database


COUNTS = {
    "student lost what the teacher found":
        """SELECT count(*) FROM teacher_confident t JOIN student_confident s USING (image_id, target)
           WHERE t.error = 'found' AND s.error <> 'found'""",
    "teacher was wrong and the student followed":
        f"""SELECT count(*) FROM student s JOIN teacher t ON s.image_id = t.image_id AND s.mate = t.query
            WHERE s.error IN {WRONG} AND t.error IN {WRONG} AND s.label = t.label AND s.score >= 0.3 AND t.score >= 0.3""",
    "unstable targets":
        """SELECT count(*) FROM (
             SELECT image_id, match, avg((query = previous)::int) AS stability FROM (
               SELECT *, lag(query) OVER (PARTITION BY image_id, match ORDER BY step) AS previous FROM held WHERE layer = 1)
             WHERE previous IS NOT NULL GROUP BY image_id, match) WHERE stability <= 0.5""",
    "high-quality queries without gain":
        """SELECT count(*) FROM teacher t JOIN gains g ON t.image_id = g.image_id AND t.match = g.target
           WHERE t.quality >= 0.5 AND g.gain <= 0""",
    "errors of the student: classification errors": "SELECT count(*) FROM student WHERE error = 'classification'",
    "errors of the student: localisation errors": "SELECT count(*) FROM student WHERE error = 'localisation'",
    "errors of the student: errors of class and place": "SELECT count(*) FROM student WHERE error = 'both'",
    "errors of the student: duplicates": "SELECT count(*) FROM student WHERE error = 'duplicate'",
    "errors of the student: background": "SELECT count(*) FROM student WHERE error = 'background'",
    "errors of the student: missed targets": "SELECT count(*) FROM student_targets WHERE error = 'missed'",
    "new false positives after distillation":
        f"""SELECT count(*) FROM student s WHERE s.error IN {WRONG} AND s.score >= 0.3 AND NOT EXISTS (
              SELECT 1 FROM (SELECT *,
                greatest(0, least(b.cx + b.w / 2, s.cx + s.w / 2) - greatest(b.cx - b.w / 2, s.cx - s.w / 2))
                * greatest(0, least(b.cy + b.h / 2, s.cy + s.h / 2) - greatest(b.cy - b.h / 2, s.cy - s.h / 2)) AS shared
                FROM baseline b WHERE b.image_id = s.image_id AND b.label = s.label AND b.score >= 0.3)
              WHERE shared / (w * h + s.w * s.h - shared) >= 0.5)""",
    "best queries of the teacher": f"SELECT least(count(*), {GRADED}) FROM teacher WHERE match >= 0",
    "worst queries of the teacher": f"SELECT least(count(*) - {GRADED}, {GRADED}) FROM teacher WHERE match >= 0",
    "disagreement between layers":
        """SELECT count(*) FROM held a JOIN held b USING (step, image_id, match)
           WHERE step = 30 AND a.layer = 0 AND b.layer = 1 AND a.query <> b.query""",
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_a_saved_view_holds_as_many_boxes_as_the_query_table_answers(comparison, tables, name):
    from workbench.views.fiftyone.saved import QUESTIONS

    (question,) = [question for question in QUESTIONS if question.name == name]
    found = tables.execute(COUNTS[name]).fetchone()
    assert found is not None
    view = comparison.load_saved_view(name)
    count = len(view) if question.patches else view.count(f"{question.field}.detections")
    assert count == found[0]


def test_the_view_of_lost_targets_holds_those_that_the_page_errors_counts_at_its_least_score(comparison, runs):
    at = last_with_queries(runs[0], "val")
    lost = Results().cell_targets(at, at, LEAST_SCORE, "lost")
    shown = comparison.load_saved_view("student lost what the teacher found")
    found = {(sample.image_id, target.target) for sample in shown for target in sample.targets.detections}
    assert found == set(lost[["image_id", "target"]].itertuples(index=False, name=None))
    assert len(found) == Results().found_cells(at, at, LEAST_SCORE).query("by == 'all' and cell == 'lost'")["n"].item() > 0


def test_every_question_is_saved_and_has_an_answer_here(comparison, tables):
    assert sorted(comparison.list_saved_views()) == sorted(COUNTS)
    counts = {name: tables.execute(query).fetchone() for name, query in COUNTS.items()}
    assert [name for name, row in counts.items() if row is None or row[0] == 0] == []


def test_boxes_carry_what_the_inspection_says_of_them(comparison, runs, data):
    inspection = inspect(data, *runs)
    for role, rows in inspection.boxes.items():
        sample = comparison.match({"image_id": int(rows["image_id"].iloc[0])}).first()
        own = rows[rows["image_id"] == sample.image_id].to_dict("records")
        assert [box.query for box in sample[role].detections] == [row["query"] for row in own]
        for box, row in zip(sample[role].detections, own, strict=True):
            assert (box.label, box.error) == (data.classes[row["label"]], row["error"])
            assert box.match == (None if row["match"] < 0 else row["match"])
            assert box.confidence == pytest.approx(row["score"]) and box.loss_giou == pytest.approx(row["loss_giou"])
            assert box.stability == (None if pd.isna(row["stability"]) else pytest.approx(row["stability"]))
            x, y, w, h = box.bounding_box
            cut = min(x, y) == 0 or max(x + w, y + h) > 1 - 1e-6  # at the edge of the image
            assert cut or (x + w / 2, y + h / 2) == pytest.approx((row["cx"], row["cy"]), abs=1e-6)
    images = inspection.images.set_index("image_id")
    for sample in comparison:
        assert sample.student_contribution == pytest.approx(images["student_contribution"][sample.image_id])
        assert sample.crowding == images["crowding"][sample.image_id]
        record = next(record for record in data.records if record.image_id == sample.image_id)
        assert [target.label for target in sample.targets.detections] == [data.classes[label] for label in record.labels]


def test_the_app_can_filter_on_every_attribute(comparison):
    schema = comparison.get_field_schema(flat=True)
    names = ("query", "layer", "quality", "match", "stability", "value", "error", "loss_class", "loss_bbox", "loss_giou")
    for name in names:
        assert f"student.detections.{name}" in schema, name
    assert "student.detections.teacher_query" in schema and "teacher.detections.teacher_query" not in schema
    assert comparison.bounds("student.detections.value")[1] > 0
    assert set(comparison.distinct("student.detections.error")) <= {"correct", "ignored", *WRONG_KINDS}


def test_pictures_of_images_in_memory_are_made_once_and_hold_their_pixels(comparison, data, runs):
    from workbench.views.fiftyone.pictures import picture_paths

    paths = picture_paths(data, runs[0], "val")
    assert [sample.filepath for sample in comparison] == [str(path) for path in paths]
    assert all(np.array_equal(np.asarray(Image.open(path)), data.image(index)) for index, path in enumerate(paths))
    before = paths[0].stat().st_mtime_ns
    assert picture_paths(data, runs[0], "val")[0].stat().st_mtime_ns == before


def test_patches_have_the_states_of_their_queries_as_points(comparison, data):
    from workbench.views.fiftyone.states import principal_components

    assert sorted(comparison.list_brain_runs()) == ["student_states_pca", "teacher_states_pca"]
    results = comparison.load_brain_results("student_states_pca")
    with_states = [record.image_id for record in data.records[: examples.IMAGES // 2]]
    shown = [sample for sample in comparison if sample.image_id in with_states]
    assert len(results.points) == sum(len(sample.student.detections) for sample in shown)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(40, 5)) @ np.diag([1, 5, 2, 0.5, 3]) + 7
    ours = principal_components(states)
    left, size, _ = np.linalg.svd(states - states.mean(0), full_matrices=False)
    assert np.abs(ours) == pytest.approx(np.abs((left * size)[:, :2]))


def test_a_newer_evaluation_updates_the_boxes_and_keeps_samples_ids_and_what_the_user_added(fiftyone, runs, data, tmp_path):
    from workbench.views.fiftyone.dataset import open_comparison

    run = Run(Path(shutil.copytree(runs[0].path, tmp_path / "continued")))
    dataset = open_comparison(run)
    assert "gain" not in dataset.get_field_schema(flat=True) and not dataset.has_saved_view("high-quality queries without gain")
    before = dataset.first()
    before.tags.append("mine")
    before.save()
    ids = [box.id for box in sorted(before.student.detections, key=lambda box: box.query)]
    name, created = dataset.name, dataset.created_at
    examples.add_evaluation(run, data, 40)
    again = open_comparison(run)
    after = again.first()
    after.reload()
    assert (again.name, again.created_at, after.id, after.tags) == (name, created, before.id, ["mine"])
    assert again.info["workbench"]["step"] == 40
    rows = read_queries(run, "val", where="model = 'student' and layer = 1", steps=[40])
    own = rows[rows["image_id"] == after.image_id].set_index("query")["score"]
    shown = sorted(after.student.detections, key=lambda box: box.query)
    assert [box.id for box in shown] == ids and [box.confidence for box in shown] == pytest.approx(own.sort_index().tolist())


def test_tags_of_boxes_stay_with_their_targets_and_slots_when_their_field_is_written_again(fiftyone, runs, data, tmp_path):
    from workbench.views.fiftyone.dataset import open_comparison

    run = Run(Path(shutil.copytree(runs[0].path, tmp_path / "tagged")))
    dataset = open_comparison(run)
    sample = dataset.skip(2).first()
    slot = sample.student.detections[3].query
    sample.student.detections[3].tags = ["odd", "twice"]
    sample.targets.detections[0].tags.append("small one")
    sample.save()
    examples.add_evaluation(run, data, 40)
    again = open_comparison(run)
    assert again.count_label_tags() == {"odd": 1, "twice": 1, "small one": 1}
    after = again[sample.id]
    assert {box.query: box.tags for box in after.student.detections if box.tags} == {slot: ["odd", "twice"]}
    assert after.targets.detections[0].tags == ["small one"]


def test_a_tag_follows_a_query_that_is_selected_per_image_to_its_new_rank(fiftyone, runs, data, tmp_path):
    from workbench.views.fiftyone.dataset import open_comparison

    run = Run(Path(shutil.copytree(runs[0].path, tmp_path / "selected")))
    for step, ranks in ((40, np.arange(examples.QUERIES)), (50, np.arange(examples.QUERIES)[::-1])):
        rows = examples.answers(np.random.default_rng(step), data, "student", 0.1, 0.8)
        examples.write(run, step, rows.assign(source=100 + ranks[rows["query"]]))
        dataset = open_comparison(run)
        sample = dataset.first()
        if step == 40:
            sample.student.detections[0].tags = ["odd"]
            sample.save()
            slot, cell = sample.student.detections[0].query, sample.student.detections[0].encoder_cell
    (tagged,) = [box for box in sample.student.detections if box.tags]
    assert (tagged.encoder_cell, tagged.query) == (cell, examples.QUERIES - 1 - slot)


def test_a_dataset_with_the_attribute_names_of_an_older_version_keeps_its_tags_and_gets_the_present_names(fiftyone, runs, data, tmp_path):
    from workbench.views.fiftyone.dataset import open_comparison

    run = Run(Path(shutil.copytree(runs[0].path, tmp_path / "older")))
    rows = examples.answers(np.random.default_rng(40), data, "student", 0.1, 0.8)
    examples.write(run, 40, rows.assign(source=100 + rows["query"]))
    dataset = open_comparison(run)
    sample = dataset.first()
    box = sample.student.detections[0]
    box.tags = ["odd"]
    sample.save()
    dataset.rename_sample_fields(
        {"student.detections.encoder_cell": "student.detections.source", "student.detections.teacher_query": "student.detections.mate"}
    )
    examples.write(run, 50, rows.assign(source=100 + rows["query"].max() - rows["query"]))
    again = open_comparison(run)
    schema = again.get_field_schema(flat=True)
    assert not {"student.detections.source", "student.detections.mate"} & set(schema)
    (tagged,) = [box for box in again[sample.id].student.detections if box.tags]
    assert (tagged.tags, tagged.encoder_cell) == (["odd"], box.encoder_cell)


def test_runs_of_one_name_in_two_folders_have_a_dataset_each_and_an_older_one_keeps_its_tags(fiftyone, runs, data, tmp_path):
    import fiftyone as fo

    from workbench.views.fiftyone.connection import former_name
    from workbench.views.fiftyone.dataset import open_comparison

    twin = Run(Path(shutil.copytree(runs[0].path.parent, tmp_path / "other")) / "distilled")
    first = open_comparison(twin)
    sample = first.first()
    sample.tags = ["mine"]
    sample.save()
    first.name = former_name(twin, None, "val")  # as an earlier version called it
    again = open_comparison(twin)
    own = open_comparison(runs[0])
    assert again.first().tags == ["mine"] and own.first().tags == [] and own.name != again.name
    assert not fo.dataset_exists(former_name(twin, None, "val"))


def test_nothing_is_written_again_when_nothing_changed(comparison, runs, caplog):
    from workbench.views.fiftyone.dataset import open_comparison

    caplog.set_level("INFO", "workbench.views.fiftyone.dataset")
    open_comparison(*runs)
    assert caplog.messages[-1].endswith("written: nothing new")


def test_names_from_data_are_text(fiftyone, data, tmp_path):
    from workbench.views.fiftyone.dataset import write

    hostile = ("<img src=x onerror=alert(1)>", "$where: 1", "a.b", "{{x}}")
    run, _ = examples.make_runs(tmp_path, data)
    inspection = inspect(data, run)
    before, data.classes = data.classes, hostile
    try:
        dataset = write(inspection, "$<b>hostile</b>.name", {}, [Path(f"{index}.png") for index in range(len(data))])
    finally:
        data.classes = before
    assert dataset.name == "$<b>hostile</b>.name" and set(dataset.distinct("student.detections.label")) <= set(hostile)
    assert dataset.count("student.detections") == len(inspection.boxes["student"])


def test_the_verb_makes_the_dataset_and_says_what_is_in_it(fiftyone, runs):
    code, out, err = command("inspect", "distilled", "--against", "undistilled", "--no-app", "--runs", str(runs[0].path.parent))
    assert code == 0, err
    assert re.search(r"distilled against undistilled, val \([0-9a-f]{6}\): 8 images, 14 saved views", out)


def test_the_verb_without_a_run_says_what_to_give_and_setup_names_the_program(mongod):
    assert command("inspect")[0] == 2
    code, out, _ = command("inspect", "--setup")
    assert code == 0 and out.strip().endswith("mongod")


def test_without_fiftyone_the_verb_says_how_to_add_it(runs, monkeypatch):
    from workbench.views.fiftyone import connection

    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    code, _, err = command("inspect", "distilled", "--runs", str(runs[0].path.parent))
    assert code == 9 and "pip install 'distillation-workbench[inspect]'" in err


def test_umap_lays_out_the_same_states_and_keeps_neighbours_together(comparison, runs, data):
    from workbench.views.fiftyone.states import _umap, save_states

    keys = save_states(comparison, inspect(data, *runs), runs[0], "val", "umap")
    assert keys == ["student_states_umap", "teacher_states_umap"]
    shapes = [comparison.load_brain_results(f"student_states_{method}").points.shape for method in ("pca", "umap")]
    assert shapes[0] == shapes[1]
    for key in keys:
        comparison.delete_brain_run(key)
    two = np.random.default_rng(0).normal(size=(60, 5)) + np.repeat([[0.0], [20.0]], 30, axis=0)
    points = _umap(two)
    nearest = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(nearest, np.inf)
    assert ((nearest.argmin(axis=1) < 30) == (np.arange(60) < 30)).all()


def test_umap_that_is_not_installed_is_named(comparison, runs, data, monkeypatch):
    from workbench.views.fiftyone import states

    monkeypatch.setattr(states, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match="umap-learn"):
        states.save_states(comparison, inspect(data, *runs), runs[0], "val", "umap")


def test_a_named_database_that_does_not_answer_is_reported_without_its_address(monkeypatch):
    from workbench.views.fiftyone import connection

    monkeypatch.setenv(mongo.URI, "mongodb://user:secret@127.0.0.1:9")
    monkeypatch.setattr(connection, "PING_MS", 200)
    with pytest.raises(WorkbenchError, match="no MongoDB answers") as caught, connection.connected():
        pass
    assert "secret" not in str(caught.value) and os.environ[mongo.URI].endswith(":9")


@pytest.fixture(scope="module")
def served(fiftyone: str, comparison: Any) -> Iterator[Server]:
    """FiftyOne's App with the comparison."""
    from workbench.views.fiftyone.app import serving

    with serving(comparison, fiftyone, 5190) as server:
        yield server


@pytest.fixture(scope="module")
def app(served: Server) -> str:
    """Its address, with the token."""
    from workbench.views.fiftyone.app import address

    return address(served)


def test_the_process_that_is_watched_is_the_one_that_listens(served):
    assert served.port in {connection.laddr.port for connection in served.process.net_connections("inet")}


def asked(url: str, **headers: str) -> int:
    """The status with which the App answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=patience(60)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_app_answers_with_the_token_alone_and_to_names_of_this_machine_alone(served, comparison):
    token = served.facts["token"]
    known = {"Authorization": f"Bearer {token}"}
    for path in ("/", "/fiftyone", "/plugins", "/media?filepath=/etc/hostname", "/datasets/x"):
        assert asked(served.address + path) == 403, path
        assert asked(served.address + path, Host="evil.example", **known) == 403, path
        assert asked(served.address + path, Origin="http://evil.example", **known) == 403, path
    assert asked(served.address + "/fiftyone", **known) == 200
    words = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()]
    assert not any(token in word for word in words), "every user of the machine reads the options of a process"


def test_the_app_hands_out_the_images_of_a_comparison_and_no_other_file(served, comparison, tmp_path):
    known = {"Authorization": f"Bearer {served.facts['token']}"}
    image = Path(comparison.first().filepath)

    def media(path: str | Path) -> int:
        return asked(f"{served.address}/media?{urlencode({'filepath': str(path)})}", **known)

    assert media(image) == 200
    (tmp_path / "link.png").symlink_to(image)
    assert media(tmp_path / "link.png") == 200, "where a link leads is what counts"
    outside = [tmp_path / "secret.png", image.with_suffix(".txt"), image.parent / "sub" / "secret.png", image.with_name("link.png")]
    (image.parent / "sub").mkdir()
    outside[-1].symlink_to(outside[0])
    for path in outside[:-1]:
        path.write_text("secret")
    try:
        for path in (
            *outside,
            "/etc/hostname",
            f"{image.parent}/../../run.json",
            image.parent,
            "/dev/zero",
            "",
            "x\0",
            "/proc/self/environ",
        ):
            assert media(path) in (400, 404), path
        twice = f"/media?{urlencode([('filepath', str(image)), ('filepath', '/etc/hostname')])}"
        for path in (twice, "/media/?filepath=/etc/hostname", "/%6dedia?filepath=/etc/hostname", "//media?filepath=/etc/hostname"):
            with contextlib.suppress(urllib.error.URLError):
                request = urllib.request.Request(served.address + path, headers=known)
                answer = urllib.request.urlopen(request, timeout=patience(60)).read()
                assert Path("/etc/hostname").read_bytes() not in answer, path
    finally:
        for path in outside[1:]:
            path.unlink()
        (image.parent / "sub").rmdir()


def test_files_of_the_cache_are_for_this_user_alone_and_no_password_is_written(served, comparison, monkeypatch):
    from workbench.views.fiftyone import app as fiftyone_app

    for path in (cache_folder(), *cache_folder().rglob("*")):
        if not path.is_relative_to(cache_folder() / "tools"):
            assert not path.stat().st_mode & (0o077 if path.is_file() or path == cache_folder() else 0), path
    monkeypatch.setattr(fiftyone_app, "_tell", lambda *_: None)
    entry = server_file(fiftyone_app.APP)
    before = entry.read_bytes()
    with fiftyone_app.serving(comparison, "mongodb://me:secret@host:1", 5190):
        said = entry.read_text()
    entry.write_bytes(before)
    assert "secret" not in said and '"database": null' in said
    monkeypatch.delenv(mongo.URI, raising=False)
    with pytest.raises(WorkbenchError, match=r"never written down\. Set the variable here too"):
        fiftyone_app.show(Server(served.process, served.port, {"database": None}), ["x"])


def test_an_app_whose_command_is_killed_ends_with_it(tmp_path):
    # FiftyOne's own application takes a minute to start; the process that holds it is what ends
    code = """
import sys, types
sys.modules["fiftyone.server.app"] = types.SimpleNamespace(app=None)
sys.modules["fiftyone.server.events"] = types.SimpleNamespace(set_port=print)
import os; os.environ["WORKBENCH_FIFTYONE_TOKEN"] = "t"
from workbench.views.fiftyone.guarded_server import run
run(0)
"""
    starter = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {code!r}], stdin=subprocess.PIPE, stdout=sys.stderr).pid, "
        "flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = psutil.Process(int(process.stdout.readline()))
        wait_until(lambda: server.net_connections("inet") != [])
        process.kill()
        wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


@pytest.fixture(scope="module")
def page(app: str, chromium: Any) -> Iterator[Any]:
    """The App in the browser, its grid drawn."""
    context = patient(chromium.new_context(viewport={"width": 1700, "height": 1000}), APP_SECONDS)
    opened = context.new_page()
    dialogs: list[str] = []
    opened.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    # an offer that lies over the grid, whenever it comes
    opened.add_locator_handler(opened.get_by_role("button", name="Dismiss"), lambda button: button.click())
    opened.goto(app)
    opened.wait_for_selector("[data-cy=looker] canvas")
    yield opened
    context.close()
    assert dialogs == []


def wait_for_count(page: Any, number: int) -> None:
    text = f"{number} sample{'s' if number > 1 else ''}"
    page.wait_for_function("text => document.querySelector('[data-cy=entry-counts]')?.innerText.trim() === text", arg=text)


@pytest.mark.browser
def test_the_grid_shows_the_images_with_boxes_in_the_colours_of_their_models(page):
    wait_for_count(page, examples.IMAGES)
    drawn = """colour => [...document.querySelectorAll('[data-cy=looker] canvas')].some(canvas => {
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let found = 0;
        for (let i = 0; i < pixels.length; i += 4)
            found += colour.every((value, k) => Math.abs(pixels[i + k] - value) < 12);
        return found > 30;
    })"""
    for colour in (boxes.TARGET, boxes.TEACHER, boxes.STUDENT):
        page.wait_for_function(drawn, arg=[int(colour[k : k + 2], 16) for k in (1, 3, 5)])


@pytest.mark.browser
def test_a_saved_view_opens_with_the_images_that_answer_its_question(page, comparison):
    counts = {name: len(comparison.load_saved_view(name)) for name in comparison.list_saved_views() if "queries of" not in name}
    name = next(name for name, count in counts.items() if 0 < count < examples.IMAGES)
    page.click("[data-cy=saved-views-selection]")
    page.get_by_text(name, exact=True).first.click()
    wait_for_count(page, counts[name])


@pytest.mark.browser
def test_the_panel_draws_the_matching_of_an_image_and_leads_to_its_page_on_the_dashboard(page, runs):
    page.locator("[data-cy=new-panel-btn]").first.click()
    page.get_by_text("Matching", exact=True).first.click()
    panel = page.locator("[data-cy=panel-content-workbench_matching]")
    for title in (
        "query matched to each target, by evaluation",
        "query matched to each target, by decoder layer",
        "cost of each pair of student and teacher query",
    ):
        panel.get_by_text(title).first.wait_for()
    page.wait_for_function("() => document.querySelectorAll('[data-cy=panel-content-workbench_matching] .heatmaplayer image').length >= 2")
    link = panel.get_by_role("link", name="Open in the dashboard").get_attribute("href")
    assert link is not None and link.startswith("http://127.0.0.1:8501/image?run=distilled&step=30&image=")


@pytest.mark.browser
def test_another_program_finds_the_app_and_says_what_it_shows(page, app, comparison, data):
    from workbench.views.fiftyone.app import address, running, show

    server = running()
    assert server is not None and address(server) == app
    some = [data.records[2].image_id, data.records[5].image_id]
    assert show(server, [comparison.name], some) == app
    wait_for_count(page, 2)
    name = "disagreement between layers"
    show(server, ["nothing", comparison.name], saved_view=name)
    wait_for_count(page, len(comparison.load_saved_view(name)))
    page.wait_for_url("**?view=disagreement-between-layers")
    with pytest.raises(WorkbenchError, match="no saved view 'nothing'"):
        show(server, [comparison.name], saved_view="nothing")
    with pytest.raises(WorkbenchError, match="no comparison 'nothing' yet"):
        show(server, ["nothing"])


@pytest.mark.browser
def test_an_app_that_is_still_loading_shows_what_it_was_told_meanwhile(app, comparison, data, chromium):
    from workbench.views.fiftyone.app import running, show

    server = running()
    assert server is not None
    show(server, [comparison.name])
    context = patient(chromium.new_context(), APP_SECONDS)
    loading = context.new_page()
    loading.goto(app, wait_until="commit")
    show(server, [comparison.name], [record.image_id for record in data.records[:3]])
    wait_for_count(loading, 3)
    context.close()


@pytest.fixture(scope="module")
def dashboard(app: str, runs: tuple[Run, Run]) -> Iterator[str]:
    """The dashboard of the same runs, started as a user does: without FiftyOne's settings; yields its address."""
    from tests.app.conftest import serving

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FIFTYONE_")]:
            patch.delenv(name)
        with serving(runs[0].path.parent) as address:
            patch.undo()
            yield address


@pytest.mark.browser
def test_the_dashboard_shows_its_selection_in_the_app_and_keeps_it_on_the_page(page, app, dashboard, comparison, data):
    from tests.app.conftest import settle

    opened = page.context.new_page()
    opened.goto(f"{dashboard}/image?run=distilled&step=30&image=3")
    settle(opened)
    opened.get_by_role("button", name="Open this image in FiftyOne").click()
    embedded = opened.frame_locator(f"iframe[src^='{app}']")
    embedded.locator("[data-cy=looker] canvas").wait_for()
    wait_for_count(page, 1)
    assert embedded.locator("[data-cy=entry-counts]").inner_text().strip() == "1 sample"
    opened.get_by_role("spinbutton", name="Image of 8").fill("4")
    opened.keyboard.press("Enter")
    opened.get_by_text(f"image_id {data.records[3].image_id} ").wait_for()
    settle(opened)  # a button that moves while the page is drawn anew can be missed by a click
    embedded.locator("[data-cy=looker] canvas").wait_for()  # what was opened stays where the page changes
    opened.get_by_role("button", name="Close").click()
    opened.locator(f"iframe[src^='{app}']").wait_for(state="detached")
    opened.close()


@pytest.mark.browser
def test_the_operator_opens_the_same_image_on_the_dashboard(page, dashboard, comparison, data):
    from workbench.views.fiftyone.app import running, show

    server = running()
    assert server is not None
    show(server, [comparison.name], [data.records[4].image_id])
    wait_for_count(page, 1)
    page.keyboard.press("Backquote")
    page.get_by_role("textbox").last.wait_for()
    page.keyboard.type("Workbench")
    page.get_by_text("Workbench: open this image in the dashboard").first.click()
    with page.context.expect_page() as opening:
        page.get_by_role("dialog").get_by_role("link", name="Open in the dashboard").click()
    opened = opening.value
    opened.get_by_text(f"image_id {data.records[4].image_id} ").wait_for()
    assert opened.url.startswith(f"{dashboard}/image?run=distilled&step=30&image=5")
    opened.close()
    page.keyboard.press("Escape")


def test_an_app_that_does_not_answer_or_refuses_is_reported():
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from workbench.services.servers import reserved_port
    from workbench.views.fiftyone.app import _tell

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "no such view"}]}')

        def log_message(self, *_: object) -> None: ...

    with reserved_port() as port, pytest.raises(WorkbenchError, match=r"does not accept what it should show.*workbench inspect"):
        _tell(port, "graphql", {}, None)
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(WorkbenchError, match=r"refuses what it should show: no such view\."):
            _tell(server.server_port, "graphql", {}, None)
        server.shutdown()


def test_a_program_follows_an_app_whose_database_came_back_at_another_port(fiftyone, comparison, tmp_path, monkeypatch):
    import fiftyone as fo

    from workbench.views.fiftyone.connection import using

    monkeypatch.delenv(mongo.URI)
    with mongo.database(tmp_path) as other, using(other):
        assert fo.list_datasets() == []
    assert mongo.URI not in os.environ, "a later FiftyOne must not take it for one that the user named"
    with using(fiftyone):
        assert comparison.name in fo.list_datasets()


@pytest.mark.parametrize(
    ("victim", "said"), [("App", r"FiftyOne's App \(its output is above\)"), ("mongod", r"MongoDB \(its log is .*mongod\.log\)")]
)
def test_the_verb_that_waits_says_in_one_line_what_has_ended(fiftyone, runs, tmp_path, monkeypatch, victim, said):
    from workbench.views.fiftyone import app
    from workbench.views.fiftyone.connection import using

    ended: list[psutil.Process] = []

    @contextmanager
    def standing_in(dataset: Any, database: str, port: int) -> Iterator[Server]:
        with subprocess.Popen(["sleep", str(patience(60))]) as process:
            server = Server(psutil.Process(process.pid), port, {})
            (mongod,) = mongo.processes(database).values()
            ended.append(server.process if victim == "App" else mongod)
            threading.Timer(0.3, ended[0].kill).start()
            try:
                yield server
            finally:
                process.kill()

    monkeypatch.setattr(app, "serving", standing_in)
    # a database of this test's own
    (tmp_path / "workbench").mkdir()
    (tmp_path / "workbench" / "tools").symlink_to(cache_folder() / "tools")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(mongo.URI)
    code, out, err = command("inspect", "distilled", "--runs", str(runs[0].path.parent))
    assert "Ctrl-C stops it" in out and len(ended) == 1
    assert code == 1 and re.fullmatch(rf"workbench: {said} has ended\. Run 'workbench inspect' again\.\n", err)
    with using(fiftyone):  # the other tests' database again
        pass


def test_the_operator_names_the_address_of_the_image_on_the_dashboard(comparison, data):
    from types import SimpleNamespace

    from workbench.services.dashboard import dashboard_address
    from workbench.views.fiftyone.panel import OpenInDashboard

    sample = comparison.match({"image_id": data.records[3].image_id}).first()
    context = SimpleNamespace(dataset=comparison, view=comparison.view(), current_sample=None, selected=[sample.id])
    assert OpenInDashboard().execute(context)["address"] == dashboard_address("/image?run=distilled&step=30&image=4")
    patches = comparison.load_saved_view("best queries of the teacher")
    patch = patches.first()
    context = SimpleNamespace(dataset=comparison, view=patches, current_sample=patch.id, selected=[])
    position = [record.image_id for record in data.records].index(comparison[patch.sample_id].image_id) + 1
    assert OpenInDashboard().execute(context)["address"].endswith(f"image={position}")


def test_no_app_is_found_where_none_is_served(tmp_path, monkeypatch):
    from workbench.views.fiftyone.app import running

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert running() is None


def test_a_many_to_one_comparison_has_no_attribute_of_a_matching_and_says_why(fiftyone: str, tmp_path: Path):
    from workbench.views.fiftyone.dataset import INFO, open_comparison

    for name in ("dense", "detr-of-dense"):
        run, baseline = (many_to_one_examples.make_run(tmp_path / name, own) for own in (name, "dense-undistilled"))
        dataset = open_comparison(run, baseline)
        there = set(dataset.get_field_schema(flat=True))
        gone = {"teacher.detections.stability", "targets.detections.teacher_query", "student.detections.followed", "agreement",
                "student.detections.gain", "student.detections.teacher_query", "teacher_instability"}  # fmt: skip
        own = {"student.detections.stability", "student.detections.value", "targets.detections.student_query", "student_instability"}
        assert not there & gone
        assert there & own == (set() if name == "dense" else own)
        assert {"student.detections.error", "student.detections.quality", "teacher.detections.grade", "student_contribution"} <= there
        assert {"student lost what the teacher found", "best queries of the teacher", "new false positives after distillation"} <= set(
            dataset.list_saved_views()
        )
        assert not {"teacher was wrong and the student followed", "high-quality queries without gain"} & set(dataset.list_saved_views())
        assert "agreement with the teacher of" in dataset.description and dataset.description.count(NOT_DEFINED) >= 3
        assert dataset.info[INFO]["not_defined"] == list(inspect(many_to_one_examples.make_data(), run, baseline).not_defined)
        # a candidate is known by its number, not by its cell, which other anchors share
        assert "teacher.detections.encoder_cell" not in there and dataset.count("teacher.detections") > 0
