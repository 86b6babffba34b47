"""Trials: what they share, what they leave behind, and that equal trials have equal results."""

import json
from pathlib import Path

import pytest
import torch

from tests.search.trainers import FITNET, alone, small_plan
from workbench.datasets.batches import evaluation_batches
from workbench.errors import ConfigError, IncompatibleError
from workbench.methods.detkds.genotype import Genotype
from workbench.recipe.loading import load_recipe
from workbench.recipe.setup import build
from workbench.search.candidate import Candidate
from workbench.search.trainer import TrialTrainer, trial_recipe
from workbench.search.trial import Beginning, Trial, method_of, trial_setup
from workbench.store.run import list_runs
from workbench.teacher_cache.folders import list_caches
from workbench.teacher_cache.read import open_cache
from workbench.training.balance import term_gradients
from workbench.training.launch import Launch, start
from workbench.training.loop import Silent
from workbench.training.optim import learning_rate

UNION = Candidate(((Genotype("global", "catt"), 1.0), (Genotype("foreground", distance="l1"), 0.5), (Genotype("instance"), 2.0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def trainer(folder: Path) -> TrialTrainer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        return TrialTrainer(small_plan(folder), "cpu", folder / "small")


def test_equal_candidate_and_seed_give_equal_ap_whatever_was_trained_before(trainer: TrialTrainer):
    first = trainer.train(alone(FITNET), 3)
    other = trainer.train(alone(FITNET), 4)
    again = trainer.train(alone(FITNET), 3)
    assert first.ap is not None and first.gate is None
    assert (first.ap, first.rungs, first.ratios) == (again.ap, again.rungs, again.ratios)
    assert first.ratios != other.ratios
    assert list(first.rungs) == [2, 4] and first.rungs[4] == first.ap


def test_a_trial_leaves_no_run_and_no_file(trainer: TrialTrainer, folder: Path):
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    assert trainer.train(alone(FITNET), 0).gate is None
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before
    assert list_runs(folder / "runs") == []


def test_one_cache_serves_every_candidate_and_the_training_of_what_was_found(
    trainer: TrialTrainer, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
    assert trainer.train(UNION, 0).gate is None
    assert [row["cache"] for row in list_caches()] == ["compare_fcos_of_detr-maps"]
    # the whole training split has rows, those that are held out included
    assert list_caches()[0]["images"] == 40
    recipe = load_recipe(folder / "recipe.yaml", ["train.steps=2", "train.evaluate_every=2", "train.checkpoint_every=2"])
    found = recipe.model_copy(update={"methods": (method_of(UNION, trainer.plan),), "cache": trainer.recipe.cache})
    assert open_cache(build(found, "shapes_teacher")) is not None


def test_the_cached_answer_is_that_of_the_live_teacher(trainer: TrialTrainer):
    setup = trial_setup(trainer.shared, method_of(UNION, trainer.plan), 0)
    trial = Trial(setup, "cpu", trainer.cache, trainer.split.kept)
    batch = trial.loader.batch(0)
    assert batch.teacher is not None and trainer.shared.teacher is not None
    cached, live = batch.teacher.answer().output, trainer.shared.teacher(batch.images, batch.padding)
    for own, other in zip(cached.memory, live.memory, strict=True):
        torch.testing.assert_close(own.features, other.features, rtol=1e-4, atol=1e-5)


def test_trials_never_see_an_image_that_is_held_out(trainer: TrialTrainer):
    trial = Trial(trial_setup(trainer.shared, None, 0), "cpu", trainer.cache, trainer.split.kept)
    seen = {image for step in range(3 * trial.loader.steps_per_epoch) for image in trial.loader.batch(step).image_ids}
    assert len(trainer.fitness_images) == 8
    assert seen == {record.image_id for record in trainer.shared.train.records} - set(trainer.fitness_images)
    assert {record.image_id for record in trainer.shared.val.records} == set(trainer.fitness_images)


def test_held_out_images_are_those_of_the_training_split(trainer: TrialTrainer):
    position = trainer.shared.train.positions
    for index, record in enumerate(trainer.shared.val.records):
        assert (trainer.shared.val.image(index) == trainer.shared.train.image(position[record.image_id])).all()


def test_weights_are_shares_of_the_detection_gradient(trainer: TrialTrainer):
    trial = Trial(trial_setup(trainer.shared, method_of(alone(FITNET, 0.7), trainer.plan), 0), "cpu", trainer.cache, trainer.split.kept)
    trial.begin()
    shares: list[float] = []
    norms: list[float] = []
    for step in range(4):
        terms = trial._terms(trial.loader.batch(step), 0)
        found = term_gradients(terms, trial.detection_weights, list(trial.setup.student.parameters()))
        shares.append(found["detkds.global"][0])
        norms.append(found["detection"][0])
        if step == 0:
            assert trial.ratios["detkds.global"] == pytest.approx(shares[0] / norms[0])
    assert trial.term_weights["detkds.global"] * sum(shares) / sum(norms) == pytest.approx(0.7, rel=1e-3)


def test_a_trial_is_the_same_whether_what_it_begins_with_is_built_anew_or_kept(trainer: TrialTrainer):
    config = method_of(UNION, trainer.plan)
    anew = Trial(trial_setup(trainer.shared, config, 0), "cpu", trainer.cache, trainer.split.kept)
    kept, weights = Beginning.of(trainer.shared, 0), []
    for _ in range(2):
        again = Trial(trial_setup(trainer.shared, config, 0, kept), "cpu", trainer.cache, trainer.split.kept, kept.norms)
        for own, other in zip(again.step_module.parameters(), anew.step_module.parameters(), strict=True):
            assert torch.equal(own, other)
        again.begin()
        weights.append((again.term_weights, again.ratios))
    anew.begin()
    assert weights == [(anew.term_weights, anew.ratios)] * 2
    found = anew._gradients(range(4))
    assert kept.norms == {batch: one["detection"][0] for batch, one in enumerate(found)}
    # another candidate with the same seed has the same detection gradient, and one with another seed has another
    other = Trial(trial_setup(trainer.shared, method_of(alone(FITNET), trainer.plan), 0), "cpu", trainer.cache, trainer.split.kept)
    assert [one["detection"][0] for one in other._gradients(range(4))] == list(kept.norms.values())
    seeded = Trial(trial_setup(trainer.shared, config, 1), "cpu", trainer.cache, trainer.split.kept)
    assert seeded._gradients([0])[0]["detection"][0] != kept.norms[0]


def test_a_trial_leaves_what_the_next_one_begins_with_as_it_is(trainer: TrialTrainer):
    first = trainer.train(UNION, 0)
    assert trainer.train(alone(FITNET), 0).gate is None
    second = trainer.train(UNION, 0)
    assert (first.ap, first.rungs, first.ratios) == (second.ap, second.rungs, second.ratios)


def test_a_rung_that_is_told_to_end_a_trial_ends_it(trainer: TrialTrainer):
    asked: list[tuple[int, float]] = []

    def rung(step: int, ap: float) -> bool:
        asked.append((step, ap))
        return True

    outcome = trainer.train(alone(FITNET), 0, rung)
    assert (outcome.gate, outcome.ap) == ("rung", None)
    assert asked == list(outcome.rungs.items()) and list(outcome.rungs) == [2]


def test_the_reference_is_trained_once(trainer: TrialTrainer, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
    said: list[str] = []
    again = TrialTrainer(trainer.plan, "cpu", folder / "small", said.append)
    assert said == [] and again.reference == trainer.reference
    assert again.fitness_images == trainer.fitness_images
    own = trainer.train(None, trainer.plan.seed)
    assert own.rungs == trainer.reference.rungs


def test_the_reference_of_other_steps_is_not_taken(trainer: TrialTrainer, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
    before = (folder / "small" / "reference.json").read_text()
    said: list[str] = []
    longer = TrialTrainer(trainer.plan.model_copy(update={"steps": 6}), "cpu", folder / "small", said.append)
    assert said == ["training the undistilled reference"] and len(longer.reference.losses) == 6
    (folder / "small" / "reference.json").write_text(before)


def test_a_trial_with_all_images_learns_as_a_run_does(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    plan = small_plan(tmp_path, recipe={"train": {"steps": 4, "warmup": 0, "evaluate_every": 4, "checkpoint_every": 4}})
    trainer = TrialTrainer(plan, "cpu", tmp_path / "small")
    trial = Trial(trial_setup(trainer.shared, None, 0), "cpu", trainer.cache, tuple(range(40)))
    for _ in range(4):
        trial.advance()
    recipe = load_recipe(tmp_path / "recipe.yaml", ["train.log_every=1"])
    run = start(recipe, Launch(name="run", device="cpu"), Silent())
    losses = [line["loss"] for line in run.metrics()]
    assert trial.losses == pytest.approx(losses, rel=1e-5)


def test_the_schedule_is_that_of_the_recipe_shortened(tmp_path: Path):
    short = trial_recipe(small_plan(tmp_path, steps=100)).train
    whole = load_recipe(tmp_path / "recipe.yaml").train
    assert (short.steps, short.warmup, whole.warmup) == (100, 10, 50)
    assert max(learning_rate(short, step) for step in range(100)) == whole.learning_rate
    assert learning_rate(short, 99) < 0.01 * whole.learning_rate


def test_a_pair_that_an_input_cannot_serve_is_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    with pytest.raises(IncompatibleError, match="detkds"):
        TrialTrainer(small_plan(tmp_path, inputs=("global", "logits")), "cpu", tmp_path / "small")
    assert not (tmp_path / "runs").exists()


def test_a_recipe_without_a_teacher_cannot_be_searched(tmp_path: Path):
    with pytest.raises(ConfigError, match="has no teacher"):
        TrialTrainer(small_plan(tmp_path, recipe={"teacher": None, "cache": None}), "cpu", tmp_path / "small")


def test_two_detrs_are_searched_on_all_five_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    inputs = ("global", "foreground", "instance", "logits", "localization")
    trainer = TrialTrainer(small_plan(tmp_path, "deformable_detr", inputs=inputs, steps=2, rungs=()), "cpu", tmp_path / "small")
    pairs = (Genotype("logits", distance="l2"), 0.3), (Genotype("localization", distance="giou"), 0.3)
    outcome = trainer.train(Candidate(pairs), 0)
    assert outcome.gate is None and set(outcome.ratios) == {"detkds.logits", "detkds.localization"}


def test_the_files_of_a_search_are_whole_json(trainer: TrialTrainer, folder: Path):
    fitness = json.loads((folder / "small" / "fitness.json").read_text())
    assert tuple(fitness["image_ids"]) == trainer.fitness_images and fitness["hash"] == trainer.split.hash
    batches = evaluation_batches(trainer.shared.val, trainer.shared.evaluation_transform, 16)
    assert [image for batch in batches for image in batch.image_ids] == list(trainer.fitness_images)
