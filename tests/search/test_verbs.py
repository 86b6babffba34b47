"""The verbs of the search, and the recipes that they write."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from tests.flows import InProcess, command
from tests.search.examples import PLAN, TableTrainer, plan
from workbench.errors import RunError
from workbench.methods.detkds.config import DetKDSConfig
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.search.found import candidate_of, export, ranking
from workbench.search.plan import SearchPlan
from workbench.search.study import SearchStudy
from workbench.training.dry_run import dry_run


class Opened(TableTrainer):
    """Stands where the command opens what trains trials; nothing is trained."""

    fitness_images = (3, 5, 8)

    def __init__(self, plan: SearchPlan, device: str, folder: Path, say):
        super().__init__(noise=0.1)


@pytest.fixture
def plan_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a search, whose trials come from a table; searches lie in a folder of their own."""
    trainer = ModuleType("workbench.search.trainer")
    trainer.TrialTrainer = Opened  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "workbench.search.trainer", trainer)
    monkeypatch.setenv("WORKBENCH_SEARCHES", str(tmp_path / "searches"))
    path = tmp_path / "tried.yaml"
    path.write_text(yaml.safe_dump(PLAN | {"inputs": list(PLAN["inputs"]), "sampler": "recommended"}))
    return path


def test_a_search_runs_shows_itself_and_writes_what_it_found(plan_file: Path, tmp_path: Path):
    code, out, err = command("search", str(plan_file))
    assert (code, err) == (0, "")
    assert "6 of 6" in out and "3 of 3" in out and "search export tried" in out
    code, out, _ = command("search", "status", "tried", "--json", str(tmp_path / "status.json"))
    assert code == 0 and "spread between seeds" in out and "for 17 of 17 trials" in out
    status = json.loads((tmp_path / "status.json").read_text())
    search = SearchStudy.read(tmp_path / "searches" / "tried")
    assert [one["mean"] for one in status["best"]] == [one.mean for one in ranking(search)]
    assert len(status["trials"]) == 17 and status["cost"]["spent"] == sum(one["seconds"] for one in status["trials"])
    code, out, _ = command("search", "export", "tried", "--top", "2")
    assert code == 0 and out.count("workbench run found/tried-") == 2
    code, out, _ = command("methods", "--found")
    assert code == 0 and f"{100 * ranking(search)[0].mean:.3f}" in out
    # once more, there is nothing left to train
    code, _, _ = command("search", str(plan_file), "--plain")
    assert code == 0 and len(SearchStudy.read(tmp_path / "searches" / "tried").records("logits")) == len(search.records("logits"))


def broken(*given):
    raise RunError("the disk is full")


def test_several_workers_are_processes_of_their_own_and_their_errors_are_shown(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from workbench.commands import search_progress

    monkeypatch.setattr(search_progress, "subprocess", SimpleNamespace(Popen=InProcess, DEVNULL=None, STDOUT=None))
    InProcess.started.clear()
    code, out, err = command("search", str(plan_file), "--workers", "2")
    assert (code, err) == (0, "") and "6 of 6" in out
    assert [words[:4] for words in InProcess.started] == [["search", "run", str(plan_file), "--worker"]] * 2
    plan_file.write_text(plan_file.read_text().replace("trials: 6", "trials: 9"))
    monkeypatch.setattr(Opened, "train", broken)
    code, _, err = command("search", str(plan_file), "--workers", "2")
    assert code == 5 and "a worker of search 'tried' ended with code 5" in err and "workbench: the disk is full" in err
    assert not [r for r in SearchStudy.read(tmp_path / "searches" / "tried").records("logits") if r.open]


def test_what_was_found_is_the_recipe_with_the_best_distiller_and_its_lineage(plan_file: Path, tmp_path: Path):
    assert command("search", str(plan_file))[0] == 0
    search = SearchStudy.read(tmp_path / "searches" / "tried")
    (path,) = export(search)
    leader = ranking(search)[0]
    assert recipe_path(f"found/{path.stem}") == path
    found, base = load_recipe(path), load_recipe(recipe_path("shapes"))
    (method,) = found.methods
    assert isinstance(method, DetKDSConfig)
    assert set(method.genotypes.values()) == {genotype for genotype, _ in candidate_of(leader.first).shares}
    lineage = found.lineage
    assert lineage is not None and lineage.mean == leader.mean and lineage.trial == leader.first.number
    assert lineage.seeds == (0, 1, 2) and len(lineage.repeats) == 2 and lineage.search == "tried"
    assert (found.data, found.student, found.teacher, found.train) == (base.data, base.student, base.teacher, base.train)
    assert found.hash() == found.model_copy(update={"lineage": None}).hash() != base.hash()
    assert dry_run(found, path.parent).terms
    assert set(found.arms) == {"undistilled"}, "the search reads no feature maps, which the released formulas and PKD would need"


def test_a_found_recipe_has_what_it_must_surpass_as_arms(plan_file: Path, tmp_path: Path):
    plan_file.write_text(yaml.safe_dump(yaml.safe_load(plan_file.read_text()) | {"inputs": ["global"]}))
    assert command("search", str(plan_file))[0] == 0
    (path,) = export(SearchStudy.read(tmp_path / "searches" / "tried"))
    released, pkd, undistilled = (load_recipe(path, arm=arm) for arm in ("released", "pkd", "undistilled"))
    assert undistilled.methods == () and {arm: dry_run(load_recipe(path, arm=arm), path.parent).terms for arm in ("released", "pkd")}
    (method,) = released.methods
    assert isinstance(method, DetKDSConfig) and method.genotypes == DetKDSConfig().genotypes
    # the released weights are 5, 2 and, for the background, half of 2; the search gives a formula 3 times the detection gradient
    assert method.balance == pytest.approx({"global": 15 / 7, "foreground": 6 / 7, "background": 3 / 7})
    assert [(one.method, one.balance) for one in pkd.methods] == [("pkd", 3.0)]


def test_a_recipe_is_not_written_before_anything_was_trained_with_fresh_seeds(plan_file: Path, tmp_path: Path):
    folder = tmp_path / "searches" / "tried"
    search = SearchStudy.open(plan(), folder, "0", other_code=True)
    search.tell(asked := search.ask("logits"), TableTrainer().train(asked.candidate, 0, lambda step, ap: False))
    code, _, err = command("search", "export", "tried")
    assert code == 5 and "has trained no candidate with fresh seeds yet" in err


def test_stop_is_seen_by_the_workers_and_forgotten_by_the_next_start(plan_file: Path, tmp_path: Path):
    SearchStudy.open(plan(sampler="recommended"), tmp_path / "searches" / "tried", "0", other_code=True).study("logits")
    assert command("search", "stop", "tried")[0] == 0
    assert (tmp_path / "searches" / "tried" / "stop").exists()
    code, _, err = command("search", str(plan_file))
    assert code == 5 and "held_out" in err, "the plan's own images differ, and that is said"
    assert not (tmp_path / "searches" / "tried" / "stop").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["search", "nothing-like-it"], "there is no search 'nothing-like-it': no such file exists"),
    (["search", "status", "nothing"], "there is no search 'nothing'"),
    (["run", "found/nothing"], "has found a recipe 'found/nothing'"),
])  # fmt: skip
def test_a_name_that_does_not_exist_is_named(plan_file: Path, words: list[str], message: str):
    code, _, err = command(*words)
    assert code == 5 and message in err


def test_help_of_the_search_names_its_verbs():
    code, out, _ = command("search", "--help")
    assert code == 0 and all(verb in out for verb in ("space", "status", "stop", "export", "PLAN"))
