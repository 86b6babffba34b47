"""Trains the candidates of a search, one after the other: opens once what all trials share, then trains each student in memory."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.device import resolve_device
from workbench.errors import ConfigError, NonFiniteError
from workbench.files import hash_json, read_json, try_lock, write_json
from workbench.methods.detkds.config import DetKDSConfig
from workbench.methods.detkds.genotype import INPUTS, Genotype
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import Setup, build_on, open_split
from workbench.search.candidate import Candidate, Gate, Outcome
from workbench.search.fitness import FitnessSplit, fitness_split
from workbench.search.gates import collapse_steps, collapsed, detects_too_little
from workbench.search.measure import Measure
from workbench.search.plan import SearchPlan, cache_name
from workbench.search.trial import Beginning, RefusedError, Trial, method_of, trial_setup
from workbench.store.manifest import MANIFEST
from workbench.teacher_cache.build import Builder
from workbench.teacher_cache.key import cache_folder
from workbench.teacher_cache.read import TeacherCache, open_cache
from workbench.teacher_cache.shards import read_manifest
from workbench.training.launch import Launch, ready_teacher
from workbench.training.loop import Silent
from workbench.training.sanity import check_teacher

REFERENCE = "reference.json"
WARMUP = 0.1
"""Largest share of a trial's steps over which the learning rate rises, because the warm-up of a whole run may be as long as a trial."""
RUNG_STRIDE = 2
"""A rung is measured on every second of the images that are held out, because it costs time and only has to rank trials."""
Rung = Callable[[int, float], bool]


@dataclass(frozen=True)
class Reference:
    """The undistilled student of a search, trained like a trial.

    Attributes:
        losses: Detection loss of each step.
        rungs: AP (0..1) at each rung, on every second of the held-out images, and at the end, on all of them.
    """

    losses: tuple[float, ...]
    rungs: dict[int, float]

    @property
    def ap(self) -> float:
        """Returns the AP (0..1) after the last step."""
        return self.rungs[max(self.rungs)]


def trial_recipe(plan: SearchPlan) -> Recipe:
    """Returns the recipe of a plan with the schedule of a trial and without methods.

    The learning rate falls over the trial as it does over a run. The warm-up has as many steps as in the recipe, but a tenth of the trial
    at most.

    Raises:
        RunError: there is no such recipe.
        ConfigError: the recipe is wrong, or has no teacher.
    """
    recipe = load_recipe(recipe_path(plan.recipe), arm=plan.arm)
    if recipe.teacher is None:
        raise ConfigError(f"recipe '{plan.recipe}' of search '{plan.name}' has no teacher. Add 'teacher:', or name another recipe.")
    schedule = {
        "steps": plan.steps,
        "warmup": min(recipe.train.warmup, max(1, round(WARMUP * plan.steps))),
        "log_every": plan.steps,  # nothing is logged, and the gradients of terms are not measured meanwhile
    }
    cache = recipe.cache and recipe.cache.model_copy(update={"name": recipe.cache.name or cache_name(plan, recipe.name)})
    return recipe.model_copy(update={"methods": (), "cache": cache, "train": recipe.train.model_copy(update=schedule)})


def searched_method(plan: SearchPlan) -> DetKDSConfig:
    """Returns a method that reads all that the candidates of a plan read, so that one teacher cache serves every one of them.

    Raises:
        ConfigError: the plan's inputs or settings cannot work, whatever the formula.
    """
    every = Candidate(tuple((Genotype(input, distance="l1"), 1.0) for input in INPUTS if input in plan.inputs))
    try:
        return method_of(every, plan)
    except RefusedError as error:
        raise ConfigError(f"search '{plan.name}': {error}.") from error


class TrialTrainer:
    """Trains candidates of a search. Opening it takes as long as several trials, so that a worker opens it once.

    The first worker of a search holds images out, builds the teacher cache of the recipe and trains the undistilled reference. Others wait
    for it.

    Args:
        plan: the search.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        folder: folder of the search, which holds ``fitness.json`` and ``reference.json``.
        say: receives a sentence before each step that takes long.

    Attributes:
        recipe: See ``trial_recipe``.
        split: The images that are held out.
        rungs: Steps after which a trial is evaluated before its end.
        reference: The undistilled student.

    Raises:
        WorkbenchError: the plan cannot be trained; the message says what to change.
    """

    def __init__(self, plan: SearchPlan, device: str, folder: Path, say: Callable[[str], None] = lambda text: None):
        self.plan, self.device, self.folder, self._say = plan, device, folder, say
        self.recipe = trial_recipe(plan)
        self._beginnings: dict[int, Beginning] = {}
        self.rungs = tuple(sorted({round(share * plan.steps) for share in plan.rungs} - {0, plan.steps}))
        if resolve_device(device).type == "cpu":
            torch.set_num_threads(1)  # sums are then always made in the same order
        train = open_split(self.recipe, self.recipe.data.train)
        with self._alone():
            self.split: FitnessSplit = fitness_split(train, plan.fitness, plan.seed, folder)
            fitness = train.part(self.split.held, f"{train.split}, held out")
            teacher = ready_teacher(self.recipe, Launch(device=device), _Saying(say), recipe_path(plan.recipe).parent)
            whole = self.recipe.model_copy(update={"methods": (searched_method(plan),)})
            self.shared: Setup = build_on(whole, teacher, train, fitness, None)
            check_teacher(self.shared)
            self.cache = self._cache()
            self._end = Measure(fitness, self.shared.evaluation_transform)
            self._rung = Measure(train.part(self.split.held[::RUNG_STRIDE], fitness.split), self.shared.evaluation_transform)
            self.reference: Reference = self._reference()

    @property
    def fitness_images(self) -> tuple[int, ...]:
        """Returns the ids of the training images that are held out and measure a trial."""
        return self.split.image_ids

    def train(self, candidate: Candidate | None, seed: int, rung: Rung = lambda step, ap: False) -> Outcome:
        """Trains a student with a candidate and returns what became of it, the same for equal candidate and seed.

        Args:
            candidate: the distiller; None trains without one.
            seed: seed of the student's first weights and of the order of the images.
            rung: receives step and AP (0..1) at each rung before the end; if it returns True, the trial ends there.
        """
        return self._train(candidate, seed, rung, self.reference)[0]

    def _train(self, candidate: Candidate | None, seed: int, rung: Rung, reference: Reference | None) -> tuple[Outcome, list[float]]:
        """Trains a student; returns the detection loss of each step as well."""
        start, rungs = time.process_time(), dict[int, float]()
        trial: Trial | None = None

        def outcome(gate: Gate | None, reason: str = "", ap: float | None = None) -> tuple[Outcome, list[float]]:
            ratios, losses = (trial.ratios, trial.losses) if trial is not None else ({}, [])
            return Outcome(ap, rungs, gate, reason, time.process_time() - start, ratios), losses

        try:
            config = None if candidate is None else method_of(candidate, self.plan)
            begun = self._beginning(seed)
            trial = Trial(trial_setup(self.shared, config, seed, begun), self.device, self.cache, self.split.kept, begun.norms)
        except RefusedError as error:
            return outcome("R0", str(error))
        try:
            trial.begin()
        except RefusedError as error:
            return outcome("R1", str(error))
        for done in range(1, self.plan.steps + 1):
            try:
                trial.advance()
            except NonFiniteError as error:
                # the rest is about checkpoints and settings of a run
                return outcome("R2", str(error).split(". ")[0])
            if reference is not None and done in collapse_steps(self.plan.steps):
                if reason := collapsed(trial.losses, reference.losses, self.plan.steps):
                    return outcome("R2", reason)
            if done in self.rungs:
                rungs[done] = self._rung.ap(trial)
                if reference is not None and (reason := detects_too_little(rungs[done], reference.rungs[done], done)):
                    return outcome("R2", reason)
                if rung(done, rungs[done]):
                    return outcome("rung", f"other trials were better at step {done}")
        rungs[self.plan.steps] = self._end.ap(trial)
        return outcome(None, ap=rungs[self.plan.steps])

    def _beginning(self, seed: int) -> Beginning:
        """Returns what trials with a seed begin with; a search has few seeds."""
        if seed not in self._beginnings:
            self._beginnings[seed] = Beginning.of(self.shared, seed)
        return self._beginnings[seed]

    def _cache(self) -> TeacherCache | None:
        """Opens the teacher cache of the recipe, which is built first if it is missing or unfinished; None if the recipe has none.

        Its rows are numbered by the whole training split, so that trials and the training of what was found read the same cache.
        """
        if self.recipe.cache is None:
            return None
        folder = cache_folder(self.recipe)
        if not (folder / MANIFEST).is_file() or read_manifest(folder).missing:
            builder = Builder(self.shared, resolve_device(self.device))
            estimate = builder.estimate()
            self._say(f"building teacher cache '{folder.name}': {estimate.bytes_left / 1e9:.1f} GB, {estimate.seconds_left:.0f} s")
            builder.build(estimate, accept=True)
        return open_cache(self.shared)

    def _reference(self) -> Reference:
        """Returns the undistilled student of the search, trained once and kept in its folder."""
        key = hash_json(self._reference_key())
        path = self.folder / REFERENCE
        if path.exists():
            values = read_json(path)
            if values.get("key") == key:
                return Reference(tuple(values["losses"]), {int(step): ap for step, ap in values["rungs"].items()})
        self._say("training the undistilled reference")
        outcome, losses = self._train(None, self.plan.seed, lambda step, ap: False, None)
        if outcome.ap is None:
            raise NonFiniteError(f"search '{self.plan.name}': the undistilled student cannot be trained. {outcome.reason}")
        write_json(path, {"key": key, "losses": losses, "rungs": {str(step): ap for step, ap in outcome.rungs.items()}})
        return Reference(tuple(losses), outcome.rungs)

    def _reference_key(self) -> dict[str, Any]:
        """Returns all that the undistilled student depends on."""
        return {
            "recipe": self.recipe.hash(), "dataset": self.shared.train.hash(), "fitness": self.split.hash, "seed": self.plan.seed,
            "rungs": list(self.rungs),
        }  # fmt: skip

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other worker prepares the search; the system frees the lock of a worker that is killed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / ".preparing", "w", encoding="ascii")
        except OSError as error:
            raise ConfigError(f"cannot write {self.folder}: {error.strerror or error}. Choose a writable folder of searches.") from error
        with file:
            while not try_lock(file):
                time.sleep(0.2)
            yield


class _Saying(Silent):
    """Listens to the training of a teacher and passes on its messages."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say

    def on_message(self, text: str) -> None:
        """Passes on a message."""
        self._say(text)
