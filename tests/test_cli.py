"""The command line: every verb, its table as JSON, its exit codes; one message instead of a traceback."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image

from tests.conftest import ROOT
from tests.flows import DISTILLED, InProcess, command, write_recipe
from workbench import cli, errors
from workbench.datasets.coco import write_coco
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.detectors.registry import FAMILIES
from workbench.errors import WorkbenchError
from workbench.files import write_json
from workbench.methods.registry import METHODS
from workbench.store.run import Run
from workbench.store.sets import read_sets
from workbench.tasks import compare as comparison
from workbench.tasks import demo

FEW = ["--set", "train.steps=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one finished run, ``one``; only read."""
    folder = tmp_path_factory.mktemp("trained")
    code, out, err = command("run", str(write_recipe(folder)), "--name", "one", "--runs", str(folder / "runs"), "--device", "cpu")
    assert code == 0, out + err
    return folder / "runs"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    InProcess.started.clear()
    monkeypatch.setattr(comparison, "subprocess", SimpleNamespace(Popen=InProcess, DEVNULL=None, STDOUT=None))
    monkeypatch.setattr(comparison, "time", SimpleNamespace(sleep=lambda seconds: None))
    return InProcess.started


def table(path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Runs a verb with ``--json`` and returns what it wrote."""
    code, out, err = command(*arguments, "--json", str(path))
    assert code == 0, out + err
    assert out.strip()
    return json.loads(path.read_text())


def test_methods_and_detectors_list_the_registries(tmp_path: Path):
    assert [row["method"] for row in table(tmp_path / "t.json", "methods")] == list(METHODS)
    assert [row["family"] for row in table(tmp_path / "t.json", "detectors")] == list(FAMILIES)


def test_doctor_names_versions(tmp_path: Path):
    rows = table(tmp_path / "t.json", "doctor")
    assert any(version("transformers") in str(row.values()) for row in rows)


def test_run_trains_and_prints_and_writes_the_numbers_of_its_run(tmp_path: Path, runs_folder: Path):
    path = write_recipe(tmp_path)
    arguments = ["run", str(path), "--seed", "3", "--name", "mine", "--device", "cpu", "--set", "train.steps=3", "--plain"]
    (row,) = table(tmp_path / "t.json", *arguments)
    run = Run.open("mine")
    assert run.info()["seed"] == 3 and len(run.metrics()) == 3
    assert (row["run"], row["seed"], row["steps"], row["split"]) == ("mine", 3, 3, "test")
    assert row["ap"] == run.evaluations()[-1]["coco"]["ap"]
    assert row["ap circle"] == run.evaluations()[-1]["per_class"]["circle"]["ap"]


def test_run_finds_the_data_that_is_given(tmp_path: Path):
    for split in ("train", "val", "test"):
        write_coco(generate_shapes(ShapesConfig(train=8, val=4, test=4), split), tmp_path / "data")
    recipe = write_recipe(tmp_path, {"data": {"path": "nowhere"}})
    text = recipe.read_text()
    recipe.write_text(re.sub(r"  options:\n(    .*\n)+", "", text))
    code, _, err = command("run", str(recipe), "--data", str(tmp_path / "data"), "--name", "mine", "--device", "cpu", *FEW)
    assert code == 0, err
    assert Run.open("mine").info()["dataset"] == "data"


def test_runs_are_listed_shown_and_removed(tmp_path: Path, runs_folder: Path, trained: Path):
    Run.create("two", {"state": "created"}, trained)
    rows = table(tmp_path / "t.json", "runs", "list", "--runs", str(trained))
    assert [(row["run"], row["state"]) for row in rows] == [("one", "done"), ("two", "created")]
    assert rows[0]["AP"] == Run.open("one", trained).evaluations()[-1]["coco"]["ap"]
    (shown,) = table(tmp_path / "t.json", "runs", "show", "one", "--runs", str(trained))
    assert shown["ap50"] == Run.open("one", trained).evaluations()[-1]["coco"]["ap50"]
    assert command("runs", "rm", "two", "nothing", "--runs", str(trained))[0] == 5
    assert (trained / "two").is_dir(), "all or none"
    assert command("runs", "rm", "two", "--runs", str(trained))[0] == 0
    assert not (trained / "two").exists() and (trained / "one").is_dir()


def test_a_folder_of_a_runs_name_in_the_current_directory_is_not_the_run(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch):
    """Every verb that takes a run: the one in the folder of runs is shown, evaluated, exported and removed."""
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(trained / "one", there / "one")
    decoy = Run.create("one", {"state": "decoy"}, here)
    other = Run.create("two", {"state": "decoy"}, here)
    monkeypatch.chdir(here)
    runs = ("--runs", str(there))
    (shown,) = table(tmp_path / "t.json", "runs", "show", "one", *runs)
    assert shown["ap"] == Run.open("one", trained).evaluations()[-1]["coco"]["ap"]
    rows = {row["what"]: row["value"] for row in table(tmp_path / "t.json", "evaluate", "one", "--device", "cpu", *runs)}
    val = next(line for line in Run.open("one", trained).evaluations() if line["split"] == "val")
    assert rows["ap"] == pytest.approx(val["coco"]["ap"], abs=1e-6)
    code, _, err = command("record", "one", "--images", "2", "--split", "test", "--device", "cpu", *runs)
    assert code == 0 and (there / "one" / "queries" / "split=test").is_dir(), err
    code, _, err = command("report", "one", "--out", str(tmp_path / "report.html"), *runs)
    assert code == 0, err
    code, _, err = command("runs", "rm", "two", *runs)
    assert code == 5 and "no run 'two'" in err and "./two" in err
    assert command("runs", "rm", "one", *runs)[0] == 0
    assert not (there / "one").exists()
    assert [sorted(path.name for path in run.path.iterdir()) for run in (decoy, other)] == [["run.json"]] * 2
    assert command("runs", "rm", "./one", *runs)[0] == 0 and not decoy.path.exists() and other.path.exists()


def test_an_empty_folder_of_runs_is_no_error(tmp_path: Path):
    assert table(tmp_path / "t.json", "runs", "list") == []


def test_evaluate_writes_the_ap_that_the_run_recorded(tmp_path: Path, trained: Path):
    for split in ("val", "test"):
        write_coco(generate_shapes(ShapesConfig(train=16, val=8, test=8), split), tmp_path / "data")
    arguments = ["evaluate", str(trained / "one"), "--data", str(tmp_path / "data"), "--split", "test", "--device", "cpu"]
    values = {row["what"]: row["value"] for row in table(tmp_path / "t.json", *arguments)}
    recorded = Run.open("one", trained).evaluations()[-1]
    assert values["ap"] == pytest.approx(recorded["coco"]["ap"], abs=1e-6)
    assert values["AP of circle"] == pytest.approx(recorded["per_class"]["circle"]["ap"], abs=1e-6)
    assert values["AP50 lost to missed targets"] == pytest.approx(recorded["errors"]["missed"]["cost"], abs=1e-6)
    assert "KITTI" not in " ".join(values)


def test_evaluate_takes_a_checkpoint_of_a_run_on_its_own_data(tmp_path: Path, trained: Path):
    run = Run.open("one", trained)
    line = next(line for line in run.evaluations() if line["split"] == "val")
    rows = table(tmp_path / "t.json", "evaluate", str(trained / "one"), "--step", str(line["step"]), "--device", "cpu")
    ap = next(row for row in rows if row["what"] == "ap")
    assert ap["value"] == pytest.approx(line["coco"]["ap"], abs=1e-6) and (ap["n"], ap["of"]) == (8, "images")
    code, _, err = command("evaluate", str(trained / "one"), "--step", "77", "--device", "cpu")
    assert code == 5 and "no checkpoint of step 77" in err and str(line["step"]) in err


def test_evaluate_refuses_data_of_other_classes(tmp_path: Path, trained: Path):
    write_coco(generate_shapes(ShapesConfig(val=4, classes=("ring", "bar")), "val"), tmp_path / "data")
    code, _, err = command("evaluate", str(trained / "one"), "--data", str(tmp_path / "data"), "--device", "cpu")
    assert code == 8 and "circle" in err and "ring" in err


def test_data_check_passes_good_data_and_fails_on_bad(tmp_path: Path):
    write_coco(generate_shapes(ShapesConfig(val=4), "val"), tmp_path / "data")
    code, out, _ = command("data", "check", str(tmp_path / "data"), "--json", str(tmp_path / "t.json"))
    assert code == 0 and "nothing is lost" in out and json.loads((tmp_path / "t.json").read_text())["ok"] is True
    image = next((tmp_path / "data").rglob("*.png"))
    image.write_bytes(image.read_bytes()[:200])
    code, out, _ = command("data", "check", str(tmp_path / "data"), "--json", str(tmp_path / "t.json"))
    assert code == 1 and image.name in out and json.loads((tmp_path / "t.json").read_text())["ok"] is False


def test_resuming_a_finished_run_shows_it(tmp_path: Path, trained: Path):
    arguments = ["run", "--resume", str(trained / "one"), "--json", str(tmp_path / "t.json")]
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "run 'one' is finished" in out
    (row,) = json.loads((tmp_path / "t.json").read_text())
    assert row["ap"] == Run.open(str(trained / "one")).evaluations()[-1]["coco"]["ap"]


def test_predict_writes_results(tmp_path: Path, trained: Path):
    Image.new("RGB", (64, 48)).save(tmp_path / "image.png")
    code, _, err = command("predict", str(trained / "one"), str(tmp_path / "image.png"), "--out", str(tmp_path / "out"), "--device", "cpu")
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "results.json").read_text())


def test_compare_trains_the_arms_of_several_recipes_and_prints_one_table_each(tmp_path: Path, in_process: list[list[str]]):
    paths = [str(write_recipe(tmp_path, DISTILLED)), str(write_recipe(tmp_path, DISTILLED, {"name": "other"}))]
    arguments = ["compare", *paths, "--seeds", "1", "--first-seed", "5", "--jobs", "1", "--equal-compute", ""]
    rows = table(tmp_path / "t.json", *arguments)
    assert [(row["arm"], row["seed"]) for row in rows] == 2 * [("teacher", None), ("undistilled", 5), ("distilled", 5)]
    assert [row["recipe"] for row in rows] == 3 * ["tiny"] + 3 * ["other"]
    for row in rows:
        if row["seed"] == 5:
            assert row["ap"] == Run.open(f"{row['recipe']}-{row['arm']}-seed5").evaluations()[-1]["coco"]["ap"]
    code, out, err = command(*arguments)
    assert code == 0, err
    assert len(in_process) == 4  # finished runs were kept
    assert out.count("difference to undistilled") == 2


def test_compare_shows_every_distilled_arm_at_equal_compute_too(tmp_path: Path, in_process: list[list[str]]):
    rows = table(tmp_path / "t.json", "compare", str(write_recipe(tmp_path, DISTILLED)), "--seeds", "1", "--jobs", "1")
    assert [(row["arm"], row["schedule"]) for row in rows[1:]] == [
        ("undistilled", "equal steps"), ("distilled", "equal steps"), ("distilled", "equal compute"),
    ]  # fmt: skip


def test_the_demo_trains_three_students_and_says_that_quick_numbers_are_not_to_be_quoted(
    tmp_path: Path, in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    recipe = write_recipe(tmp_path, DISTILLED, {"name": "shapes"})
    monkeypatch.setattr(demo, "recipe_path", lambda name: recipe)
    monkeypatch.setattr(demo, "QUICK", ("train.steps=4", "train.evaluate_every=2"))
    code, out, err = command("demo", "--quick", "--no-app", "--jobs", "1", "--json", str(tmp_path / "t.json"))
    assert code == 0, err
    assert "not to be quoted" in out and len(in_process) == 3
    rows = json.loads((tmp_path / "t.json").read_text())
    assert {(row["arm"], row["schedule"]) for row in rows} == {
        ("teacher", None), ("undistilled", "equal steps"), ("distilled", "equal steps"), ("distilled", "equal compute"),
    }  # fmt: skip
    assert all(row["ap"] is not None and row["parameters"] and row["flops"] and row["ms_per_image"] for row in rows)


def test_an_unknown_key_is_refused_with_the_nearest_valid_one(tmp_path: Path):
    code, _, err = command("run", str(write_recipe(tmp_path)), "--set", "train.learning_rte=1")
    assert code == 2 and "train.learning_rte" in err and "did you mean 'learning_rate'" in err


@pytest.mark.parametrize(("code", "arguments", "words"), [
    (2, ["run"], "name a recipe, or give --resume RUN"),
    (2, ["run", "RECIPE", "--resume", "one"], "Leave out a recipe"),
    (2, ["run", "--resume", "one", "--set", "train.steps=5", "--seed", "1"], "Leave out --seed, --set"),
    (2, ["run", "RECIPE", "--arm", "uniform"], "has no arm 'uniform'"),
    (2, ["run", "RECIPE", "--set", "train.steps=many"], "train.steps"),
    (2, ["run", "RECIPE", "--set", "train.steps"], "must look like"),
    (2, ["run", "RECIPE", "--seed", "-1"], "seed"),
    (2, ["run", "RECIPE", "--nonsense"], "--nonsense"),
    (2, ["nonsense"], "nonsense"),
    (3, ["data", "check", "/no/such/folder"], "/no/such/folder"),
    (3, ["run", "RECIPE", "--data", "/no/such/folder"], "/no/such/folder"),
    (4, ["evaluate", "no_such_detector"], "no_such_detector"),
    (5, ["run", "no_such_recipe"], "no_such_recipe"),
    (5, ["run", "--resume", "no_such_run"], "no_such_run"),
    (5, ["run", "RECIPE", "--name", "../outside"], "../outside"),
    (5, ["runs", "show", "no_such_run"], "no_such_run"),
])  # fmt: skip
def test_what_a_user_can_mend_is_one_message_and_a_documented_exit_code(tmp_path: Path, code: int, arguments: list[str], words: str):
    recipe = str(write_recipe(tmp_path))
    found, out, err = command(*[recipe if word == "RECIPE" else word for word in arguments])
    assert (found, words in err) == (code, True), err
    assert err.startswith("workbench: ") and "Traceback" not in out + err


ALL_ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WorkbenchError)]


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_every_kind_of_error_ends_with_its_own_code_and_its_message_as_text(monkeypatch: pytest.MonkeyPatch, kind: type[WorkbenchError]):
    def fail() -> None:
        raise kind("in [bold]x[/bold] of [/tmp]\nsecond line")

    monkeypatch.setattr("workbench.services.doctor.report", fail)
    assert command("doctor") == (kind.exit_code, "", "workbench: in [bold]x[/bold] of [/tmp]\nsecond line\n")


def test_the_exit_codes_differ_so_that_a_script_can_tell():
    assert len({kind.exit_code for kind in ALL_ERRORS}) == len(ALL_ERRORS)


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.services.doctor.report", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("doctor")


def test_names_from_data_are_shown_as_text(tmp_path: Path, trained: Path):
    write_json(trained / "one" / "run.json", Run.open("one", trained).info())
    write_coco(generate_shapes(ShapesConfig(val=4), "val"), tmp_path / "data[red]")
    code, out, _ = command("data", "check", str(tmp_path / "data[red]"))
    assert code == 0 and "data[red]" in out.replace("\n", "")


def test_help_lists_every_verb_in_one_whole_line_below_a_heading():
    code, out, err = command("--help")
    assert (code, err) == (0, "") and command() == (0, out, "")
    shown = dict(re.findall(r"^  (\S+) {2,}(.+)$", out, re.MULTILINE))
    verbs = {name for verbs in cli.VERBS.values() for name in verbs}
    assert verbs <= set(shown) and "trace" not in shown
    assert [heading for heading in cli.VERBS if f"\n{heading}:\n" in out] == list(cli.VERBS)
    for name in verbs:
        assert shown[name].endswith(".") and not shown[name].endswith("..."), shown[name]
        assert command(name, "--help")[0] == 0
    assert max(map(len, out.splitlines())) <= 80
    for name in ("cache", "data", "recipe", "runs"):
        lines = command(name, "--help")[1].split("Commands:\n")[1].splitlines()
        assert lines and all(line.endswith(".") and not line.endswith("...") for line in lines), lines


def test_help_of_a_verb_says_what_it_does_what_it_takes_and_an_example():
    code, out, _ = command("record", "--help")
    assert code == 0 and "Usage: workbench record [OPTIONS] RUN\n" in out
    assert "Example: workbench record" in out and re.search(r"RUN +Name of a run", out) and re.search(r"--split .*train, val or test", out)
    assert "Usage: workbench runs rm [OPTIONS] RUN...\n" in command("runs", "rm", "--help")[1]
    assert "Usage: workbench run [OPTIONS] [RECIPE]\n" in command("run", "--help")[1]
    assert command("runs")[:2] == (0, command("runs", "--help")[1])


def every_verb() -> Iterator[list[str]]:
    """The words of each verb, and of each verb of a verb."""
    for name, verb in (item for verbs in cli.VERBS.values() for item in verbs.items()):
        inner = [command.name for command in verb.registered_commands] if isinstance(verb, typer.Typer) else []
        yield from [[name, own] for own in inner] or [[name]]


@pytest.mark.parametrize("words", list(every_verb()), ids=" ".join)
def test_every_verb_has_an_example_of_itself_whose_options_it_knows(words: list[str]):
    _, out, _ = command(*words, "--help")
    (example,) = re.findall(r"Example: workbench ((?:.+\n?)+)", out)
    given = shlex.split(example)
    # 'search PLAN' stands for 'search run PLAN'
    assert given[: len(words)] == words or (words == ["search", "run"] and given[0] == "search")
    assert all(re.search(rf"^ +(-., )?{option}\b", out, re.MULTILINE) for option in given if option.startswith("--")), given


def test_every_heading_of_the_help_has_an_example_of_one_of_its_verbs():
    _, out, _ = command("--help")
    for heading, verbs in cli.VERBS.items():
        (example,) = re.findall(rf"\n{heading}:\n(?:  .*\n)*?  Example: workbench (.*)\n", out)
        verb, *rest = shlex.split(example)
        words = [verb, rest[0]] if isinstance(verbs[verb], typer.Typer) else [verb]
        known = command(*words, "--help")[1]
        assert all(re.search(rf"^ +{option}\b", known, re.MULTILINE) for option in rest if option.startswith("--"))


def test_runs_are_found_labelled_renamed_put_away_and_brought_back(tmp_path: Path, trained: Path):
    root = tmp_path / "runs"
    for name in ("one", "two", "three"):
        shutil.copytree(trained / "one", root / name)

    def listed(*options: str) -> list[str]:
        return [row["run"] for row in table(tmp_path / "t.json", "runs", "list", *options, "--runs", str(root))]

    def runs(*words: str) -> str:
        code, out, err = command("runs", *words, "--runs", str(root))
        assert code == 0, err
        return out

    assert listed() == listed("--state", "done") == ["one", "three", "two"]
    assert "tagged one, two with 'paper', 'to do'" in runs("tag", "one", "two", "--add", "paper", "--add", "to do")
    assert listed("--tag", "paper") == ["one", "two"] and listed("--tag", "paper", "--search", "TWO") == ["two"]
    assert "paper, to do" in command("runs", "list", "--runs", str(root))[1]
    runs("tag", "one", "--remove", "paper")
    runs("note", "three", "looks odd")
    assert listed("--tag", "paper") == ["two"] and listed("--search", "odd") == ["three"]
    assert "note: looks odd" in runs("show", "three")
    runs("archive", "two")
    assert listed() == ["one", "three"] and listed("--archived") == ["two"]
    runs("archive", "two", "--back")
    assert "renamed one to first" in runs("rename", "one", "first")
    assert listed("--sort", "name") == ["first", "three", "two"]
    runs("save", "pair", "first", "two")
    assert listed("--set", "pair") == ["first", "two"]
    assert command("runs", "list", "--set", "none", "--runs", str(root))[0] == 5
    assert command("runs", "list", "--sort", "?", "--runs", str(root))[0] == 5
    runs("pin", "two")
    assert read_sets(root).baseline == "two"
    runs("pin")
    assert read_sets(root).baseline is None
    runs("rm", "first", "three")
    assert listed() == ["two"]
    runs("restore", "three")
    assert listed() == ["three", "two"]
    assert "first" in runs("empty") and "empty" in runs("empty")
    assert command("runs", "restore", "first", "--runs", str(root))[0] == 5


def test_trace_still_records_queries(tmp_path: Path, trained: Path):
    shutil.copytree(trained / "one", tmp_path / "runs" / "one")
    arguments = ["one", "--split", "test", "--images", "2", "--device", "cpu", "--runs", str(tmp_path / "runs")]
    (first, _), (second, _) = command("trace", *arguments)[:2], command("record", *arguments)[:2]
    assert first == second == 0


def test_a_comparison_runs_the_workbench_and_no_module_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here" / "workbench").mkdir(parents=True)
    (tmp_path / "here" / "workbench" / "__init__.py").touch()
    (tmp_path / "here" / "workbench" / "__main__.py").write_text("open('hijacked', 'w').close()")
    recipe = write_recipe(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path / "here")
    code, _, err = command("compare", str(recipe), "--seeds", "1", "--jobs", "1")
    assert code == 0 and not (tmp_path / "here" / "hijacked").exists(), err
    assert Run.open("tiny-undistilled-seed0").info()["state"] == "done"


def test_python_m_workbench_is_the_same_command(tmp_path: Path):
    ended = subprocess.run([sys.executable, "-m", "workbench", "runs", "show", "nothing"], capture_output=True, text=True)
    assert ended.returncode == 5 and ended.stderr.startswith("workbench: there is no run 'nothing'")


def test_ap_is_printed_from_0_to_100_with_its_split_and_every_class_with_its_n(trained: Path):
    """All that prints AP for people agrees with what the run recorded; --json keeps shares."""
    run = Run.open("one", trained)
    recorded = next(line for line in run.evaluations() if line["split"] == "val")
    last = run.evaluations()[-1]
    (listed,) = [line.split() for line in command("runs", "list", "--runs", str(trained))[1].splitlines() if line.startswith("one ")]
    assert listed[-3:] == [last["split"], str(last["step"]), f"{100 * last['coco']['ap']:.1f}"]
    shown = [line.split() for line in command("runs", "show", "one", "--runs", str(trained))[1].splitlines()]
    circle = last["per_class"]["circle"]
    assert ["AP", "on", "test"] in shown and ["AP", f"{100 * last['coco']['ap']:.1f}"] in shown
    assert ["AP", "circle", "(n)", f"{100 * circle['ap']:.1f}", f"({circle['targets']})"] in shown
    code, out, err = command("evaluate", "one", "--device", "cpu", "--runs", str(trained))
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and rows[0][:4] == ["split", "val,", "in", "%"], err
    assert ["AP50", f"{100 * recorded['coco']['ap50']:.1f}"] in [row[:2] for row in rows]
    circle = recorded["per_class"]["circle"]
    assert ["AP", "of", "circle", f"{100 * circle['ap']:.1f}", "-", "-", str(circle["targets"]), "targets"] in rows
