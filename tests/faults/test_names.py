"""Nothing in the current folder takes the place of what a name means, and nothing that was opened is looked up again."""

import json
import os
import shutil
from pathlib import Path

import fsspec
import pytest

import workbench.notebook as wb
from tests.faults.conftest import SAVED
from tests.flows import TINY, Silent, command, tiny_recipe, write_recipe
from workbench.datasets.coco import write_coco
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.errors import RunError
from workbench.recipe.loading import parse_recipe, recipe_path
from workbench.recipe.setup import stored_teacher
from workbench.remote import as_path
from workbench.resources import share_path
from workbench.search.plan import plan_path
from workbench.store.run import Run, list_runs
from workbench.training.launch import Launch, resume, start, teacher_of
from workbench.views.catalog import catalog


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_run_is_trained_although_a_finished_one_of_its_name_lies_in_the_current_folder(here: Path, tmp_path: Path):
    shutil.copytree(SAVED / "distilled", here / "exp")
    before = content(here)
    recipe = write_recipe(tmp_path, {})
    code, out, err = command("run", str(recipe), "--name", "exp", "--runs", "../B", "--device", "cpu", "--plain")
    assert code == 0, err
    assert "resumed" not in out + err
    assert content(here) == before
    made = Run.open("exp", tmp_path / "B").info()
    assert made["state"] == "done" and made["recipe"]["train"]["steps"] == 2


def test_a_name_with_a_separator_is_no_name_for_a_new_run(here: Path):
    shutil.copytree(SAVED / "undistilled", here / "exp")
    before = content(here)
    with pytest.raises(RunError, match="cannot be a run name"):
        start(tiny_recipe({}), Launch("./exp", device="cpu"), Silent())
    with pytest.raises(RunError, match="cannot be a run name"):
        wb.train("shapes", name="./exp", device="cpu")
    assert content(here) == before


def test_a_run_that_is_open_stays_the_same_when_the_current_folder_changes(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", "runs")
    for root, seed in ((here, 1), (tmp_path / "there", 2)):
        Run.create("exp", {"seed": seed}, root / "runs")
    opened, listed, found, shown = Run.open("exp"), list_runs()[0], Run.find("./runs/exp"), catalog(Path("runs"))[0].run
    monkeypatch.chdir(tmp_path / "there")
    for run in (opened, listed, found, shown):
        assert run is not None and run.info()["seed"] == 1
    assert Run.open("exp").info()["seed"] == 2, "a name is looked up in the folder of runs as it is now"


def test_the_folder_of_runs_of_a_command_stays_the_same_when_the_current_folder_changes(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", "somewhere")
    assert command("runs", "list", "--runs", "mine")[0] == 0
    assert os.environ["WORKBENCH_RUNS"] == str(here / "mine")


def test_a_word_is_a_shipped_recipe_whatever_the_current_folder_holds(here: Path, tmp_path: Path):
    for name in ("shapes", "shapes_teacher", "shapes_teacher.yaml", "shapes_fcos"):
        (here / name).write_text("name: decoy\n")
    assert recipe_path("shapes") == share_path("recipes") / "shapes.yaml"
    assert plan_path("shapes_fcos") == share_path("recipes") / "search" / "shapes_fcos.yaml"
    for path in ("./shapes", str(here / "shapes"), "shapes_teacher.yaml"):
        assert recipe_path(path).read_text() == "name: decoy\n"
    recipe = tiny_recipe({"teacher": {"recipe": "shapes_teacher.yaml"}})
    made = teacher_of(recipe, tmp_path)
    assert made is not None and made[0].name == "shapes_teacher", "the recipe of a teacher lies beside that of its student or is shipped"
    shutil.copy(share_path("recipes") / "shapes_teacher.yaml", tmp_path)
    made = teacher_of(recipe, tmp_path)
    assert made is not None and made[1] == tmp_path


def test_a_run_that_was_opened_by_its_path_is_taught_by_the_teacher_beside_it(here: Path, tmp_path: Path):
    """Not by another run of the teacher's name in the folder of runs, or in the current one."""
    beside = tmp_path / "elsewhere"
    for root in (beside, tmp_path / "runs", here):
        shutil.copytree(SAVED / "undistilled", root / "taught")
    shutil.copytree(SAVED / "distilled", beside / "student")
    run = Run.open(beside / "student")
    run.update_info(teacher="taught")
    teacher = stored_teacher(run)
    assert teacher is not None and teacher.folder.is_relative_to(beside)
    run.update_info(teacher="shapes_teacher")
    teacher = stored_teacher(run)
    assert teacher is not None and teacher.folder == share_path("data") / "shapes_teacher"


def test_a_run_reads_the_data_it_was_made_with_from_every_folder(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for split in ("train", "val"):
        write_coco(generate_shapes(ShapesConfig(train=8, val=4), split), here / "data")
    data = {"path": "data", "format": "coco", "test": None}
    schedule = {"steps": 1, "evaluate_every": 1, "checkpoint_every": 1, "batch_size": 4}
    run = start(parse_recipe({**TINY, "data": data, "train": schedule}, "tiny"), Launch("exp", device="cpu"), Silent())
    assert run.info()["recipe"]["data"]["path"] == str(here / "data")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(here / "data", tmp_path / "data")
    for file in (tmp_path / "data").rglob("*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    assert sum(len(record.boxes) for record in wb.open_data(run.info(), "val").records) > 0, "these are the boxes of the first folder"
    code, _, err = command("evaluate", str(run.path), "--device", "cpu", "--json", str(tmp_path / "t.json"))
    assert code == 0, err
    rows = {row["what"]: row for row in json.loads((tmp_path / "t.json").read_text())}
    assert "AP of circle" in rows and rows["ap"]["n"] == 4
    run.update_info(state="interrupted")
    assert resume(run, Launch(device="cpu"), Silent()).path == run.path


def test_a_remote_folder_of_runs_is_asked_before_the_current_folder(here: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(SAVED / "undistilled", here / "exp")
    fsspec.filesystem("memory").put(f"{SAVED / 'distilled'}/", "/names/runs/exp", recursive=True)
    monkeypatch.setenv("WORKBENCH_RUNS", "memory://names/runs")
    assert Run.open("exp").info()["group"]["arm"] == "distilled"
    (entry,) = catalog(as_path("memory://names/runs"))
    assert (entry.run.name, entry.arm) == ("exp", "distilled")
