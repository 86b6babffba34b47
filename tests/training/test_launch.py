"""Starting and resuming runs: what is refused, where a message leads, what a head reset touches."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.examples import images_of
from tests.flows import DISTILLED, TINY, Silent, teacher_copy, tiny_recipe, write_recipe
from workbench.analysis.of_run import open_data
from workbench.datasets.coco import write_coco
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.detectors.registry import load_detector
from workbench.errors import CheckpointError, ConfigError, DataError, IncompatibleError, MissingExtraError, RunError, WorkbenchError
from workbench.files import read_json, write_json
from workbench.recipe.loading import load_recipe, merge, parse_recipe, recipe_path
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import build, build_student, find_detector, open_split
from workbench.resources import share_path
from workbench.store.run import Run, result_folder
from workbench.training.launch import Launch, changes_since, resume, start

CPU = Launch("run", device="cpu")
EMBEDDED = share_path("data") / "shapes_teacher"
OTHER_CLASSES: dict[str, Any] = {"data": {"options": {"classes": ["ring", "bar", "circle"]}}}


def recipe_from_checkpoint(head: str, changes: dict[str, Any] | None = None) -> Recipe:
    """The tiny recipe with the embedded teacher as its student."""
    return parse_recipe({**merge(TINY, changes or {}), "student": {"checkpoint": "shapes_teacher", "head": head}}, "test")


def recipe_on(folder: Path) -> Recipe:
    """The tiny recipe on a folder."""
    return parse_recipe({**TINY, "data": {"path": str(folder)}}, "test")


def test_a_run_ends_with_everything_that_belongs_to_it(runs_folder: Path):
    listener = Silent()
    run = start(tiny_recipe(DISTILLED), CPU, listener)
    info = run.info()
    assert listener.steps == [1, 2] and info["state"] == "done" and info["seed"] == 0
    assert info["group"] == {"recipe": "tiny", "arm": "distilled", "seed": 0, "schedule": "equal steps"}
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert [(line["split"], line["step"]) for line in run.evaluations()] == [("val", 2), ("test", 2)]
    assert run.checkpoint_steps() == [2] and run.query_steps("val") == [2]
    assert any("AP" in text and "teacher" in text for text in listener.messages)


def test_a_kept_head_refuses_other_classes_and_names_both():
    with pytest.raises(ConfigError, match=r"circle.*ring.*head: reset"):
        build(recipe_from_checkpoint("keep", OTHER_CLASSES), None)


def test_a_kept_head_answers_as_the_checkpoint_does():
    recipe = recipe_from_checkpoint("keep")
    images, padding = images_of((96, 96), (96, 96))
    student = build_student(recipe, open_split(recipe, "train"), []).eval()
    with torch.no_grad():
        assert_close(student(images, padding).logits, load_detector(EMBEDDED).eval()(images, padding).logits, rtol=0, atol=0)


def test_a_reset_head_makes_anew_the_class_head_alone_and_says_which_weights(tmp_path: Path):
    recipe = recipe_from_checkpoint("reset", OTHER_CLASSES)
    notes: list[str] = []
    student = build_student(recipe, open_split(recipe, "train"), notes)
    assert student.spec.classes == ("ring", "bar", "circle")
    student.save(tmp_path / "reset")
    before, after = load_file(EMBEDDED / "model.safetensors"), load_file(tmp_path / "reset" / "model.safetensors")
    assert set(before) == set(after)
    changed = {name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "class_embed" in name} != set()
    (note,) = [note for note in notes if "head reset" in note]
    assert "3 classes" in note and all(name in note for name in changed)


def test_a_reset_head_trains_and_its_result_loads_with_the_new_classes():
    listener = Silent()
    run = start(recipe_from_checkpoint("reset", OTHER_CLASSES), CPU, listener)
    assert any("re-initialised" in message for message in listener.messages)
    assert load_detector(result_folder(run)).spec.classes == ("ring", "bar", "circle")


def test_a_teacher_that_lacks_a_class_is_refused_with_what_it_knows():
    with pytest.raises(IncompatibleError, match=r"does not know 'ring', 'bar'; it knows 'circle', 'square', 'triangle', 'cross'"):
        start(tiny_recipe(DISTILLED, OTHER_CLASSES), CPU, Silent())


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        (
            "interrupted",
            {},
            r"already exists in .*\. Resume it with 'workbench run --resume run', or choose another --name, or .*runs rm run",
        ),
        ("done", {}, r"already exists in .* and is finished: 'workbench runs show run' .*another --name, or .*runs rm run"),
        ("interrupted", {"data": {"path": "/nowhere"}}, r"other data or settings: data shapes, now /nowhere\. Choose another --name"),
        ("done", {"train": {"learning_rate": 0.5}}, r"other data or settings: train\.learning_rate .*, now 0\.5\. Choose another --name"),
    ],
)
def test_a_run_name_that_exists_is_refused_and_only_the_same_unfinished_run_is_offered_for_resuming(
    runs_folder: Path, state: str, changes: dict[str, Any], message: str
):
    run = Run.create("run", {"state": state, "recipe": tiny_recipe().model_dump(mode="json"), "dataset_hash": "x"})
    before = run.info_path.read_bytes()
    with pytest.raises(RunError, match=message) as caught:
        start(tiny_recipe(changes), CPU, Silent())
    assert ("--resume" in str(caught.value)) == (state == "interrupted" and not changes)
    assert run.info_path.read_bytes() == before and [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_pair_that_does_not_fit_and_a_missing_split_are_refused_before_the_teacher_is_trained(tmp_path: Path, runs_folder: Path):
    write_recipe(tmp_path, {"name": "large", "student": {"decoder_layers": 3}})
    methods: dict[str, Any] = {
        "teacher": {"recipe": "large.yaml"},
        "methods": [{"method": "detrdistill"}],
        "student": {"decoder_layers": 2},
        "layer_map": [[0], [3]],
    }
    listener = Silent()
    with pytest.raises(WorkbenchError, match=r"layer_map .* does not fit"):
        start(parse_recipe(merge(TINY, methods), "test"), CPU, listener, tmp_path)
    write_coco(generate_shapes(ShapesConfig(val=2), "val"), tmp_path / "data")
    with pytest.raises(ConfigError, match=r"has the splits val, .*data\.splits\.val=0\.2"):
        start(parse_recipe(merge(TINY, {**methods, "data": {"path": str(tmp_path / "data")}}), "test"), CPU, listener, tmp_path)
    assert not any("training the teacher" in text for text in listener.messages) and not list(runs_folder.glob("*"))


def test_a_full_disk_is_said_before_training_with_what_is_needed(runs_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(RunError, match=r"take [1-9]\d* MB and .* has 0 MB free"):
        start(tiny_recipe(), CPU, Silent())
    assert not list(runs_folder.glob("*"))


def test_a_run_on_splits_that_were_made_lists_their_images_and_is_read_again(tmp_path: Path):
    data = generate_shapes(ShapesConfig(train=10), "train")
    write_coco(data, tmp_path / "data")
    made = {"data": {"path": str(tmp_path / "data"), "splits": {"val": 0.2, "test": 0.2, "seed": 1}, "options": {}}}
    run = start(parse_recipe({**TINY, **made}, "test"), CPU, Silent())
    lists = {path.stem: path.read_text().splitlines() for path in run.splits_path.iterdir()}
    assert {split: len(names) for split, names in lists.items()} == {"train": 6, "val": 2, "test": 2}
    for split, names in lists.items():
        assert [record.file_name for record in open_data(run.info(), split).records] == names
    (tmp_path / "data" / "images" / "train" / lists["val"][0]).unlink()
    with pytest.raises(DataError):
        open_data(run.info(), "train")
    file = tmp_path / "data" / "annotations" / "instances_train.json"
    content = read_json(file)
    gone = next(image["id"] for image in content["images"] if image["file_name"] == lists["val"][0])
    content["images"] = [image for image in content["images"] if image["id"] != gone]
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] != gone]
    write_json(file, content)
    with pytest.raises(RunError, match="has changed since the run, so split 'val' would hold other images"):
        open_data(run.info(), "val")


@pytest.mark.parametrize("name", ["../outside", "a/b", "/tmp/absolute", ".hidden", "a\nb", "x" * 101, "-option"])
def test_a_run_name_that_is_no_plain_file_name_is_refused_and_nothing_is_made(tmp_path: Path, runs_folder: Path, name: str):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match="cannot be a run name"):
        start(tiny_recipe(), Launch(name, device="cpu"), Silent())
    assert sorted(path for path in tmp_path.rglob("*") if path != runs_folder) == before


def test_a_folder_of_runs_that_cannot_be_made_is_named_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "file" / "runs"))
    listener = Silent()
    with pytest.raises(RunError, match=r"cannot create .*file/runs.*--runs"):
        start(tiny_recipe(), CPU, listener)
    assert not listener.steps


def test_a_recipe_without_a_place_of_its_data_asks_for_it():
    with pytest.raises(ConfigError, match="--data PATH"):
        start(load_recipe(recipe_path("bccd_teacher")), CPU, Silent())


def test_an_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(RunError, match=r"no recipe 'nothing'.*bccd.*shapes_teacher"):
        recipe_path("nothing")


def test_a_detector_that_is_nowhere_gets_a_message_of_all_places_looked_at(runs_folder: Path):
    with pytest.raises(CheckpointError) as caught:
        find_detector("no_such_detector")
    message = str(caught.value)
    assert str(runs_folder) in message and "(shapes_teacher)" in message and "config.json" in message and "hub" in message


def test_a_detector_is_looked_up_in_the_runs_then_among_the_embedded_ones_and_a_path_has_a_separator(
    tmp_path: Path, runs_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Folders of the same names in the current directory are not looked at."""
    here = teacher_copy(tmp_path, note="of this folder").rename(tmp_path / "shapes_teacher")
    monkeypatch.chdir(tmp_path)
    assert find_detector("shapes_teacher").folder == EMBEDDED
    assert find_detector("./shapes_teacher").folder.resolve() == here and find_detector(str(here)).folder == here
    here.rename(tmp_path / "only_here")
    with pytest.raises(CheckpointError, match=r"current directory, write \./only_here"):
        find_detector("only_here")
    run = Run.create("shapes_teacher", {"state": "done"})
    for step in (3, 5):
        run.checkpoint_path(step).mkdir(parents=True)
        (run.checkpoint_path(step) / "DONE").touch()
    found = find_detector("shapes_teacher")
    assert found.folder == run.checkpoint_path(5) and found.run is not None and found.run.path == run.path
    assert find_detector(run, step=3).folder == run.checkpoint_path(3)
    with pytest.raises(RunError, match=r"no checkpoint of step 4\. Steps with a checkpoint: 3, 5"):
        find_detector("shapes_teacher", step=4)
    with pytest.raises(RunError, match="'only_here' is not a run, so it has no checkpoint of step 3"):
        find_detector("only_here", step=3)


def test_a_run_trains_in_the_folder_of_runs_whatever_lies_in_the_current_directory(
    tmp_path: Path, runs_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    other = Run.create("run", {"state": "interrupted", "seed": 9}, Path())
    files = {path: path.read_bytes() for path in other.path.rglob("*") if path.is_file()}
    run = start(tiny_recipe(), CPU, Silent())
    assert run.path == runs_folder / "run" and run.info()["state"] == "done" and run.checkpoint_steps() == [2]
    assert {path: path.read_bytes() for path in other.path.rglob("*") if path.is_file()} == files


def test_a_finished_run_is_not_resumed():
    run = start(tiny_recipe(), CPU, Silent())
    with pytest.raises(RunError, match="is finished"):
        resume(run, CPU, Silent())


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path):
    config = ShapesConfig(train=8, val=4, test=4)
    for split in ("train", "val", "test"):
        write_coco(generate_shapes(config, split), tmp_path / "data")
    run = start(recipe_on(tmp_path / "data"), CPU, Silent())
    run.update_info(state="interrupted")
    file = tmp_path / "data" / "annotations" / "instances_train.json"
    truth = json.loads(file.read_text())
    truth["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(truth))
    with pytest.raises(RunError, match="started with another dataset"):
        resume(run, CPU, Silent())


def test_a_run_is_not_resumed_with_another_teacher(tmp_path: Path):
    teacher = teacher_copy(tmp_path)
    run = start(tiny_recipe(DISTILLED, {"teacher": {"checkpoint": str(teacher)}}), CPU, Silent())
    run.update_info(state="interrupted")
    detector = load_detector(teacher)
    with torch.no_grad():
        next(detector.parameters()).add_(1.0)
    detector.save(teacher)
    with pytest.raises(RunError, match="started with another teacher"):
        resume(run, CPU, Silent())


def test_splits_that_are_not_there_are_named_together_with_what_to_set(tmp_path: Path):
    write_coco(generate_shapes(ShapesConfig(train=8, val=4, test=4), "train"), tmp_path)
    with pytest.raises(ConfigError, match=r"splits train, but .*val: val, test: test.*--set data.val=train --set data.test=null"):
        start(recipe_on(tmp_path), CPU, Silent())


def test_data_of_no_known_format_says_what_was_seen_and_expected(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"Seen: notes.txt.*Expected one of: coco"):
        start(recipe_on(tmp_path / "data"), CPU, Silent())


def test_a_teacher_that_a_recipe_makes_is_trained_once_on_the_students_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.training.launch.check_teacher", lambda setup: 0.5)
    write_recipe(tmp_path, {"name": "big", "data": {"path": "elsewhere", "options": {"train": 99}}})
    made = {**DISTILLED, "teacher": {"recipe": "big.yaml", "seed": 3}}
    first, second = Silent(), Silent()
    run = start(tiny_recipe(made), CPU, first, tmp_path)
    teacher = Run.open("big-undistilled-seed3")
    assert run.info()["teacher"] == teacher.name and teacher.info()["dataset_hash"] == run.info()["dataset_hash"]
    assert first.messages[0] == "training the teacher first: run 'big-undistilled-seed3'"
    start(tiny_recipe(made), Launch("again", device="cpu"), second, tmp_path)
    assert not any("training the teacher" in message for message in second.messages)


def test_a_part_that_came_after_a_run_was_made_is_a_change_only_where_the_recipe_has_it_now():
    def recipe(**switches: Any) -> Recipe:
        (method,) = DISTILLED["methods"]
        return tiny_recipe({**DISTILLED, "methods": [{**method, **switches}]})

    without = recipe(assignment=None)
    stored = without.model_dump(mode="json")
    del stored["methods"][0]["assignment"]
    run = Run.create("old", {"recipe": stored})
    assert changes_since(run, without) == []
    (change,) = changes_since(run, recipe())
    assert change.startswith("methods ")
    (change,) = changes_since(run, tiny_recipe({**DISTILLED, "methods": without.model_dump(mode="json")["methods"], "train": {"ema": 0.9}}))
    assert change == "train.ema 0.0, now 0.9"


def test_a_teachers_run_of_another_recipe_or_other_data_is_not_taken_for_the_one_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.training.launch.check_teacher", lambda setup: 0.5)
    made = {**DISTILLED, "teacher": {"recipe": "big.yaml"}}
    write_recipe(tmp_path, {"name": "big"})
    start(tiny_recipe(made), CPU, Silent(), tmp_path)
    with pytest.raises(RunError, match=r"another recipe: data.options.train 16, now 12.*runs rm big-undistilled-seed0"):
        start(tiny_recipe(made, {"data": {"options": {"train": 12}}}), Launch("other", device="cpu"), Silent(), tmp_path)
    write_recipe(tmp_path, {"name": "big", "train": {"learning_rate": 1e-2}})
    with pytest.raises(RunError, match=r"another recipe: train.learning_rate 0.001, now 0.01"):
        start(tiny_recipe(made), Launch("other", device="cpu"), Silent(), tmp_path)
    write_recipe(tmp_path, {"name": "big"})
    run = Run.open("big-undistilled-seed0")
    run.update_info(dataset_hash="of other images")
    with pytest.raises(RunError, match="trained on other data"):
        start(tiny_recipe(made), Launch("other", device="cpu"), Silent(), tmp_path)


def test_tensorboard_gets_the_metrics_below_the_run():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = start(tiny_recipe(), Launch("run", device="cpu", trackers=("tensorboard",)), Silent())
    (events,) = run.path.rglob("events.out.tfevents*")
    reader = EventAccumulator(str(events.parent)).Reload()
    assert [(event.step, event.value) for event in reader.Scalars("loss")] == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in run.metrics()
    ]


@pytest.mark.parametrize(("tracker", "error", "message"), [
    ("tensorbord", ConfigError, "--log tensorbord: this tracker is unknown. Choose from tensorboard, mlflow, wandb"),
    ("mlflow", MissingExtraError, "--log mlflow needs a package that is not installed. Run: pip install mlflow"),
])  # fmt: skip
def test_an_unknown_or_missing_tracker_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, runs_folder: Path, tracker: str, error: type[Exception], message: str
):
    monkeypatch.setattr("workbench.training.launch.find_spec", lambda name: None)
    with pytest.raises(error, match=message):
        start(tiny_recipe(), Launch("run", device="cpu", trackers=(tracker,)), Silent())
    assert not (runs_folder / "run").exists()


@pytest.mark.cuda
def test_a_tiny_recipe_trains_in_bf16_on_cuda_and_ends_with_finite_metrics():
    recipe = tiny_recipe(DISTILLED, {"train": {"precision": "bf16", "steps": 20, "evaluate_every": 10}})
    run = start(recipe, Launch("run", device="cuda"), Silent())
    assert run.info()["state"] == "done" and run.info()["device"].startswith("cuda")
    assert all(torch.isfinite(torch.tensor(list(line.values()))).all() for line in run.metrics())
    assert run.evaluations()[-1]["coco"]["ap"] is not None


@pytest.mark.cuda
def test_cuda_and_cpu_answer_alike():
    detector = load_detector(EMBEDDED).eval()
    images, padding = images_of((96, 96), (64, 96))
    with torch.no_grad():
        here = detector(images, padding)
        there = detector.to("cuda")(images.to("cuda"), padding.to("cuda"))
    assert_close(there.logits.cpu(), here.logits, rtol=0, atol=1e-3)
    assert_close(there.boxes.cpu(), here.boxes, rtol=0, atol=1e-3)
