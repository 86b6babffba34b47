"""Every file of a run is damaged in turn: what reads it gives one message or what it gave before, never a traceback or other numbers."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.faults.counting import tried
from tests.faults.damages import CHECKPOINT, DAMAGES, LOGS, TABLES, make_run
from tests.flows import Silent, command
from workbench.analysis.defined import NotDefined
from workbench.analysis.derived import match_frame
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.of_run import all_evaluations, images_with_masks, one_evaluation
from workbench.analysis.report.summary import summarise
from workbench.analysis.results.of_runs import Results
from workbench.detectors.registry import load_detector
from workbench.errors import RunError, WorkbenchError
from workbench.recipe.setup import find_detector
from workbench.store.intact import HASHES
from workbench.store.queries import TEACHER_STEP, read_facts, read_queries
from workbench.store.run import Run, append_line, list_runs
from workbench.store.states import read_masks, read_states
from workbench.training.launch import Launch, resume
from workbench.views.catalog import catalog

# what pages, notebooks and reports read of a run; whatever reads checkpoints is below
READERS: Mapping[str, Callable[[Run], Any]] = {
    "metrics": lambda run: run.metrics(),
    "timings": lambda run: run.timings(),
    "evaluations": lambda run: run.evaluations(),
    "facts": lambda run: read_facts(run, "val", 6),
    "queries": lambda run: read_queries(run, "val", [6]),
    "matched queries": lambda run: read_queries(run, "val", [TEACHER_STEP, 6], ["image_id", "match", "score"], matched=True),
    "masks": lambda run: sorted(read_masks(run, "val", TEACHER_STEP, 1).items()),
    "images with masks": lambda run: images_with_masks(run, "val"),
    "states": lambda run: read_states(run, "val", 6, 1),
    "summary": summarise,
    "diagnosis": lambda run: diagnose(run).to_json(),
    "agreement": lambda run: match_frame(run, "agreement"),
    "errors": lambda run: Results().error_costs(one_evaluation(run, "val", 6)),
    "slots": lambda run: Results().slots(one_evaluation(run, "val", 6)),
    "churn": lambda run: Results().churn_by(all_evaluations(run), "label"),
    "found by": lambda run: Results().found_by_churn(all_evaluations(run)),
}


def told(reader: Callable[[Run], Any], run: Run) -> Any:
    """What a reader gives, or the message with which it refuses."""
    try:
        return reader(run)
    except (WorkbenchError, NotDefined) as error:
        return str(error)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, pd.DataFrame):
        return isinstance(other, pd.DataFrame) and one.equals(other)
    return repr(one) == repr(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "distilled"
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def numbers(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each reader gives of the whole run."""
    run = Run(Path(shutil.copytree(whole, tmp_path_factory.mktemp("read") / "distilled")))
    found = {name: told(reader, run) for name, reader in READERS.items()}
    assert not any(isinstance(value, str) for value in found.values()), found
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_reads_a_damaged_log_or_table_refuses_or_gives_the_same_numbers(
    damage: str, whole: Path, numbers: dict[str, Any], tmp_path: Path
):
    noticed: dict[str, list[str]] = {}
    for file in (*LOGS, *TABLES):
        folder = tmp_path / file.replace("/", "_") / "distilled"
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("checkpoints"))
        DAMAGES[damage](folder / file)
        for name, reader in READERS.items():
            found = told(reader, Run(folder))
            tried()
            if isinstance(found, str):
                noticed.setdefault(file, []).append(name)
                assert "\n" not in found.strip() and "Traceback" not in found, f"{file}, {name}: {found}"
            elif damage != "missing" and not (file in LOGS and damage == "cut"):
                assert equal(found, numbers[name]), f"{file}, {name}"
        shutil.rmtree(folder)
    if damage != "missing":  # a table that is not there was not recorded
        assert sorted(noticed) == sorted((*LOGS, *TABLES))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_never_loaded(damage: str, tmp_path: Path):
    whole = make_run(tmp_path / "interrupted", "interrupted")
    (step,) = whole.checkpoint_steps()
    weights = load_detector(find_detector(whole).folder).state_dict()
    for file in CHECKPOINT:
        run = Run(Path(shutil.copytree(whole.path, tmp_path / file)))
        DAMAGES[damage](run.checkpoint_path(step) / file)
        tried()
        found = told(lambda own: load_detector(find_detector(own).folder).state_dict(), run)
        assert "Traceback" not in found if isinstance(found, str) else all(torch.equal(found[name], weights[name]) for name in weights), (
            file
        )
        found = told(lambda own: resume(own, Launch(device="cpu"), Silent()).info()["state"], run)
        assert "Traceback" not in found and "\n" not in found.strip(), f"{file}: {found}"
        if found == "done":  # without the file of hashes it is a checkpoint of an earlier version; without DONE it is none
            assert file == "DONE" or (file, damage) == (HASHES, "missing"), f"{file} was resumed from"
        shutil.rmtree(run.path)


INFOS = {
    "empty": "", "a list": "[]", "null": "null", "a number": "1", "cut": '{"format_version": 1, "gro', "deep": '{"a":' * 100_000 + "1",
    "a number too large": '{"format_version": 1e999}', "five thousand digits": '{"format_version": %s}' % ("9" * 5000),
    "no version": "{}", "a version as text": '{"format_version": "1"}', "no more than a version": '{"format_version": 1}',
    "other shapes": '{"format_version": 1, "recipe": [], "group": 3, "classes": null, "created": {}}',
    "an unknown policy": '{"format_version": 1, "group": {"recipe": "r", "arm": "a", "seed": 0, "schedule": "s"}, "state": "done", '
    '"classes": ["a"], "recipe": {"data": {"path": "/nowhere", "format": "coco", "val": "val", "policy": {"no_such": "x"}}, '
    '"train": {"steps": 3}}}',
    "no text": "\udcff",
}  # fmt: skip


@pytest.fixture
def beside_damaged(runs_folder: Path, whole: Path) -> Path:
    """A whole run beside one for each odd run.json."""
    shutil.copytree(whole, runs_folder / "good")
    for name, content in INFOS.items():
        folder = runs_folder / name.replace(" ", "-")
        folder.mkdir()
        (folder / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    return runs_folder


def test_a_damaged_run_is_one_row_with_its_reason_and_the_others_are_listed(beside_damaged: Path):
    assert {run.name for run in list_runs()} == {"good", *(name.replace(" ", "-") for name in INFOS)}
    assert [run.name for run in list_runs()][:3] == ["an-unknown-policy", "no-more-than-a-version", "good"], (
        "those that can be read come first"
    )
    code, out, err = command("runs", "list")
    assert code == 0 and not err
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "done" in rows["good"]
    for name in INFOS:
        row = rows[name.replace(" ", "-")]
        assert "unreadable" in row or name in ("no more than a version", "an unknown policy"), row
    problems = {entry.run.name: entry.problem for entry in catalog(beside_damaged)}
    assert not problems["good"] and not problems["an-unknown-policy"]
    assert all(problem for name, problem in problems.items() if name not in ("good", "an-unknown-policy"))


@pytest.mark.parametrize("verb", [("runs", "show"), ("diagnose",), ("report",), ("record",), ("evaluate",), ("run", "--resume")])
def test_a_verb_about_a_damaged_run_says_one_thing(
    beside_damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
):
    monkeypatch.chdir(tmp_path)
    for name in INFOS:
        code, out, err = command(*verb, name.replace(" ", "-"))
        finished = verb[0] == "run" and "is finished, so there is nothing to resume" in out
        assert (code == 0 and (finished or verb[0] in ("runs", "diagnose", "report"))) or (
            code in range(1, 13) and err.startswith("workbench: ")
        ), f"{name}: {code} {out} {err}"
        assert len(err.strip().splitlines()) <= 1, err


def test_a_run_of_another_version_is_refused_by_everything(whole: Path, runs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = Run(Path(shutil.copytree(whole, runs_folder / "later")))
    run.update_info(format_version=99, state="interrupted")
    for verb in (("run", "--resume"), ("runs", "show"), ("report",), ("diagnose",), ("record",), ("evaluate",), ("export",)):
        code, _, err = command(*verb, "later")
        assert code == 5 and "its format is version 99, but this workbench reads version 1" in err, verb
    assert command("runs", "list")[0] == 0


def test_a_digit_that_changes_in_run_json_is_noticed(whole: Path, tmp_path: Path):
    run = Run(Path(shutil.copytree(whole, tmp_path / "distilled")))
    text = run.info_path.read_text()
    assert '"content_hash"' in text and "content_hash" not in run.info()
    values = [match.start(1) for match in re.finditer(r'": "?([0-9])', text)]
    assert len(values) > 20
    for place in values:
        tried()
        run.info_path.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")
        with pytest.raises(WorkbenchError):
            run.info()
    run.info_path.write_text(text)
    before = run.info()
    run.update_info(best_step=6, odd={2: "two", 10: "ten"})
    assert run.info() == {**before, "best_step": 6, "odd": {"2": "two", "10": "ten"}}
    values = json.loads(run.info_path.read_text())
    del values["content_hash"]  # as earlier versions wrote it, and as a user changes it
    run.info_path.write_text(json.dumps({**values, "best_step": 7}))
    assert run.info()["best_step"] == 7


def test_a_digit_that_changes_in_the_log_of_an_unfinished_run_is_noticed(tmp_path: Path):
    run = Run.create("unfinished", {"state": "running"}, tmp_path)
    for step in (1, 2, 3):
        for path in run.logs():
            more = {"split": "val", "coco": {"ap": 0.125}} if path == run.evaluations_path else {"wall": 0.5}
            append_line(path, {"step": step, "cpu": 0.125, **more})
        if step == 2:
            run.save_logs()
    for path, read in run.logs().items():
        assert [line["step"] for line in read()] == [1, 2, 3]
        text = path.read_text()
        path.write_text(text.replace("0.125", "0.135", 1))
        with pytest.raises(RunError, match=f"{path.name} is damaged"):
            read()
        path.write_text(text.replace('"step": 3', '"step": 4'))
        assert [line["step"] for line in read()] == [1, 2, 4], "it is written again when the run is resumed"
