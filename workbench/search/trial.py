"""Trains one student of a search from its first step to its last, in memory alone: a trial leaves no run folder."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError

from workbench.errors import IncompatibleError, NonFiniteError
from workbench.methods.detkds.config import DetKDSConfig
from workbench.methods.method import Method
from workbench.methods.registry import build_method
from workbench.recipe.setup import Setup, build_student, inherited
from workbench.search.candidate import Candidate
from workbench.search.gates import ratios_of, without_gradient
from workbench.search.plan import SearchPlan
from workbench.teacher_cache.read import TeacherCache
from workbench.training.balance import balanced_weights, is_wanted, mean_norms
from workbench.training.learner import BALANCE_BATCHES, Learner


class RefusedError(Exception):
    """A candidate cannot work with this pair (gate R0), or its terms have no gradient (gate R1); the message says why."""


def method_of(candidate: Candidate, plan: SearchPlan) -> DetKDSConfig:
    """Returns the method that a candidate is.

    Raises:
        RefusedError: a formula cannot work in the plan's mode.
        ConfigError: the plan's settings of the method are wrong.
    """
    try:
        return DetKDSConfig.model_validate(candidate.method(plan.mode, **plan.settings))
    except ValidationError as error:
        raise RefusedError("; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())) from error


@dataclass
class Beginning:
    """What all trials with one seed begin with, kept because it takes as long as several steps: it does not depend on the candidate.

    Attributes:
        student: The student as it is before the first step, never trained.
        state: State of torch's generator behind it.
        norms: Norm of the gradient of its detection loss, by batch, as far as a trial has measured it.
    """

    student: Any  # a Detector
    state: torch.Tensor
    norms: dict[int, float] = field(default_factory=dict[int, float])

    @classmethod
    def of(cls, shared: Setup, seed: int) -> "Beginning":
        """Builds the student of a seed."""
        teacher, pairing = shared.teacher, shared.pairing
        assert teacher is not None and pairing is not None
        recipe = shared.recipe.model_copy(update={"seed": seed, "methods": ()})
        torch.manual_seed(seed)
        student = build_student(recipe, shared.train, [])
        inherited(recipe, student, teacher.detector, pairing)
        return cls(student, torch.get_rng_state())


def trial_setup(shared: Setup, config: DetKDSConfig | None, seed: int, beginning: Beginning | None = None) -> Setup:
    """Returns what one trial trains: a fresh student, and the method's adapters; all else is shared.

    Args:
        shared: what all trials share.
        config: the candidate as a method; None trains without distillation.
        seed: seed of the student's first weights, and of the order of the images.
        beginning: what trials with this seed begin with; None builds it.

    Raises:
        RefusedError: the method cannot serve the pair.
    """
    recipe = shared.recipe.model_copy(update={"seed": seed, "methods": () if config is None else (config,)})
    teacher, pairing = shared.teacher, shared.pairing
    assert teacher is not None and pairing is not None
    beginning = beginning or Beginning.of(shared, seed)
    student = copy.deepcopy(beginning.student)
    torch.set_rng_state(beginning.state)
    try:
        methods: list[Method] = [build_method(one, student, teacher.detector, pairing) for one in recipe.methods]
    except IncompatibleError as error:
        raise RefusedError(str(error)) from error
    # as in a run, dropout does not depend on the adapters of the methods
    torch.manual_seed(seed + 1)
    return Setup(
        recipe, shared.train, shared.val, None, shared.transform, shared.evaluation_transform, student, teacher, shared.teacher_hash,
        pairing, methods, [], shared.variants,
    )  # fmt: skip


class Trial(Learner):
    """Trains one student of a search.

    Args:
        setup: result of ``trial_setup``.
        device: see ``Learner``.
        cache: the teacher's outputs; None asks the live teacher.
        positions: positions of the training images that are not held out.
        norms: ``Beginning.norms`` of its seed, which the trial completes; None measures them anew.

    Attributes:
        losses: Detection loss of each step so far.
        ratios: See ``Outcome``.
    """

    def __init__(
        self, setup: Setup, device: str, cache: TeacherCache | None, positions: tuple[int, ...], norms: dict[int, float] | None = None
    ):
        super().__init__(setup, device, cache, positions=positions)
        self._norms = {} if norms is None else norms
        self.losses: list[float] = []
        self.ratios: dict[str, float] = {}
        self._batches = self.loader.iterate(0)

    def begin(self) -> None:
        """Sets the weights of the terms from their gradients (gate R1).

        Raises:
            RefusedError: a term has no gradient, or one that is not finite.
        """
        if not self.setup.methods:
            return
        wanted = [f"{m.name}.{term}" for m in self.setup.methods for term in m.term_names if is_wanted(m, term)]
        try:
            measured = self._gradients([0], self._norms)
        except IncompatibleError as error:
            raise RefusedError(str(error)) from error
        self.ratios = ratios_of(measured[0])
        if reason := without_gradient(self.ratios, wanted):
            raise RefusedError(reason)
        measured += self._gradients(range(1, BALANCE_BATCHES), self._norms)
        self._norms.update({batch: one["detection"][0] for batch, one in enumerate(measured)})
        self.term_weights = balanced_weights(self.setup.methods, mean_norms(measured))

    def advance(self) -> None:
        """Runs one optimiser step.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite.
        """
        values = self._train_step(next(self._batches).to(self.accelerator.device), len(self.losses), True)
        assert values is not None
        loss = sum(weight * values[f"detection/{name}"] for name, weight in self.detection_weights.items())
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {len(self.losses) + 1}: the detection loss is not finite.")
        self.losses.append(loss)
