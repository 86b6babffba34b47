"""A whole job in seconds, with the processes of its runs in this one: what it leaves, what it answers, how it goes on."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.flows import InProcess, command
from workbench.analysis.detection.ap_tests import AP, Verdict
from workbench.analysis.report.answer import Answer, answer
from workbench.analysis.results.of_runs import Results
from workbench.errors import ConfigError, Interrupted, RunError
from workbench.recipe.loading import load_recipe
from workbench.store.jobs import DONE, jobs_root, read_jobs, working
from workbench.store.run import Run, runs_root
from workbench.tasks import compare as comparison
from workbench.tasks.distill import budget, job
from workbench.tasks.distill.job import Done, distill
from workbench.tasks.distill.planning import Request, default_name

CHANGES = ("data.options.train=16", "data.options.val=8", "data.options.test=8", "cache.variants=1")
REQUEST = Request("shapes", "tiny", None, 600.0, 1, 0.2, 0.2, 0, CHANGES, "cpu")


class Told:
    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str, left: float) -> None:
        self.stages.append(text)

    def runs(self, runs: list[Run], /) -> None: ...

    def cached(self, done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory):
    """A folder of runs of this module, runs in this process, and schedules of two steps."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("distill")
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        patch.setattr(comparison, "subprocess", SimpleNamespace(Popen=InProcess, DEVNULL=None, STDOUT=None))
        patch.setattr(budget, "LEAST_STEPS", 16)
        patch.setattr(budget, "MOST_STEPS", 16)
        patch.setattr("workbench.tasks.distill.pace.ENOUGH_SECONDS", 0.0)
        # sixteen steps make no teacher
        patch.setattr(job, "LEAST_AP", 0.0)
        patch.setattr("workbench.training.sanity.LEAST_AP", 0.0)
        yield folder


@pytest.fixture(scope="module")
def done(patched: Path) -> Done:
    InProcess.started.clear()
    return distill("job", REQUEST, 1, Told())


@pytest.fixture(autouse=True)
def same_runs(monkeypatch: pytest.MonkeyPatch, patched: Path, runs_folder: Path) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(patched / "runs"))


def test_a_teacher_no_better_than_the_student_is_the_reason():
    verdict = Verdict(AP, "not distinguishable", "these checkpoints", 0.5, 0.5, 0.0, -0.01, 0.01, 72, (1, 1))
    found = Answer("r", "distilled", "test", 0.5, 0.5, 0.5, verdict, None, "A term drowns.")
    assert "no more than the student has without it" in found.sentence() and "drowns" not in found.sentence()
    assert replace(found, teacher=0.6).sentence().endswith("What held it back: A term drowns.")
    assert replace(found, teacher=0.6, cause="").sentence().endswith("The teacher has 60.0 AP.")


def test_a_job_trains_a_teacher_and_three_students(done: Done):
    names = {path.name for path in runs_root().iterdir() if (path / "run.json").exists()}
    assert names == {
        "job-teacher-undistilled-seed0", "job-undistilled-seed0", "job-distilled-seed0", "job-distilled-equal-compute-seed0",
    }  # fmt: skip
    assert all(Run(runs_root() / name).info()["state"] == "done" for name in names)
    assert load_recipe(done.recipe).cache is not None
    assert Run.open("job-distilled-seed0").info()["cache"] is not None, "the students read the cache"


def test_the_answer_is_the_difference_of_the_runs_and_the_distance_that_of_their_evaluations(done: Done):
    aps = {name: [line for line in Run.open(f"job-{name}-seed0").evaluations() if line["split"] == "test"][-1]
           for name in ("undistilled", "distilled", "distilled-equal-compute")}  # fmt: skip
    values = {name: line["coco"]["ap"] or 0.0 for name, line in aps.items()}
    found = done.answer
    assert found.equal_steps is not None and found.equal_compute is not None and found.distance is not None
    assert found.equal_steps.difference == pytest.approx(values["distilled"] - values["undistilled"], abs=1e-9)
    assert found.equal_compute.difference == pytest.approx(values["distilled-equal-compute"] - values["undistilled"], abs=1e-9)
    assert found.teacher == aps["distilled"]["teacher"]["coco"]["ap"]
    text = found.sentence()
    assert f"{100 * values['distilled']:.1f} AP (test)" in text and f"{100 * found.equal_steps.difference:+.1f}" in text
    assert "1 seed that is about these checkpoints" in text


def test_the_student_to_export_is_the_best_on_validation_at_equal_steps(done: Done):
    best = {name: max(line["coco"]["ap"] or 0.0 for line in Run.open(name).evaluations() if line["split"] == "val")
            for name in ("job-undistilled-seed0", "job-distilled-seed0")}  # fmt: skip
    assert best[done.best.name] == max(best.values())


def test_a_job_writes_down_its_stages_and_its_runs(done: Done):
    (found,) = [found for found in read_jobs() if found.name == "job"]
    assert (found.state, found.stage) == (DONE, DONE)
    assert found.teacher == "job-teacher-undistilled-seed0"
    assert set(found.students) == {row.name for row in done.rows}
    assert found.planned > 0


def test_a_job_that_another_process_works_on_is_left_alone(done: Done):
    with working(done.folder), pytest.raises(RunError, match=r"'job' is being worked on by another process"):
        distill("job", REQUEST, 1, Told())


def test_a_job_is_done_when_its_answer_is_written(done: Done):
    seen: list[str] = []
    distill("job", REQUEST, 1, Told(), lambda _: seen.extend(job.stage for job in read_jobs() if job.name == "job"))
    assert seen == ["answer"]
    (stage,) = [job.stage for job in read_jobs() if job.name == "job"]
    assert stage == DONE


def test_a_finished_job_is_answered_again_without_training(done: Done):
    before = len(InProcess.started)
    told = Told()
    again = distill("job", REQUEST, 1, told)
    assert len(InProcess.started) == before and told.stages == []
    assert again.answer == done.answer


def test_another_request_of_the_same_name_is_refused_with_the_difference(done: Done):
    with pytest.raises(ConfigError, match=r"student tiny, now small.*--name"):
        distill("job", replace(REQUEST, student="small"), 1, Told())


def test_a_job_that_was_stopped_after_its_teacher_goes_on_with_the_same_teacher(patched: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_: Any, **__: Any) -> None:
        raise RunError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(job, "_build_cache", stopped)
        with pytest.raises(RunError, match="stopped"):
            distill("second", REQUEST, 1, Told())
    kept = json.loads((jobs_root() / "second" / "plan.json").read_text())
    assert not kept["students_scheduled"] and kept["stage"] == "teacher"
    assert [job.state for job in read_jobs() if job.name == "second"] == ["stopped"]
    created = Run.open("second-teacher-undistilled-seed0").info()["created"]
    with monkeypatch.context() as patch:
        patch.setattr(job, "execute", stopped)
        with pytest.raises(RunError, match="stopped"):
            distill("second", REQUEST, 1, Told())
    assert Run.open("second-teacher-undistilled-seed0").info()["created"] == created


@pytest.mark.parametrize(("where", "said"), [
    ("make_plan", r"the job 'third' was stopped\. Nothing was begun"),
    ("_train_teacher", r"the job 'third' was stopped\. What is done is kept; the same command goes on"),
])  # fmt: skip
def test_ctrl_c_says_what_is_kept_of_a_job(patched: Path, monkeypatch: pytest.MonkeyPatch, where: str, said: str):
    def pressed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, where, pressed)
    with pytest.raises(Interrupted, match=said):
        distill("third", REQUEST, 1, Told())
    assert (jobs_root() / "third").exists() == (where != "make_plan")


def test_a_teacher_that_learned_nothing_ends_the_job_before_the_students(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job, "LEAST_AP", 2.0)
    with pytest.raises(RunError, match=r"after 16 steps the teacher has .* AP on validation.*--budget.*'job-teacher-undistilled-seed0'"):
        distill("job", REQUEST, 1, Told())


def test_an_arm_without_a_baseline_has_no_answer_yet(done: Done):
    (found,) = answer([Run.open("job-distilled-seed0")], Results(), {})
    assert found.equal_steps is None and "cannot be said yet" in found.sentence()


def test_a_job_is_named_after_its_data_and_student():
    assert default_name(REQUEST) == "shapes-tiny"
    assert default_name(replace(REQUEST, data="/data/My cells (1)", student="own/x.yaml")) == "My-cells-1-x"


def test_the_plan_of_a_dry_run_names_every_rule_and_writes_nothing(patched: Path):
    code, out, err = command("distill", "--data", "shapes", "--student", "tiny", "--dry-run", "--name", "dry",
                             *(part for change in CHANGES for part in ("--set", change)))  # fmt: skip
    assert code == 0, err
    assert "data.transform.resize" in out and "nine of ten boxes" in out and "teacher 16 steps" in out
    assert not (jobs_root() / "dry").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: there is no such file or folder"),
        (["--data", "shapes", "--budget", "soon"], "is no time"),
        (["--data", "shapes", "--student", "huge"], "there is no recipe 'huge'"),
        (["--data", "shapes", "--teacher", "nobody"], "nobody"),
        (["--data", "shapes", "--set", "train.stepps=3"], "did you mean 'steps'"),
    ],
)
def test_a_wrong_wish_is_one_message_before_time_is_spent(arguments: list[str], message: str):
    started = len(InProcess.started)
    code, _, err = command("distill", *arguments, "--name", "wrong")
    assert code != 0 and message in err and "Traceback" not in err
    assert len(InProcess.started) == started and not (jobs_root() / "wrong").exists()
