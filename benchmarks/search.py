"""Measures what a search adds to the training of its students: gates, proposals, trials and rungs, and the operations on large maps.

Trials are those of ``recipes/search/shapes_fcos.yaml``, on one thread.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from optuna.trial import create_trial

from benchmarks.harness import Figure, interleaved, median_ratio, temporary_runs
from benchmarks.methods import CLASSES, SPEC
from benchmarks.step import step_of
from workbench.datasets.targets import TargetBatch
from workbench.detectors.fcos import Fcos, FcosModelConfig
from workbench.methods.context import MethodContext, Progress, make_pairing
from workbench.methods.detkds.config import DetKDSConfig
from workbench.methods.detkds.detkds import DetKDS
from workbench.methods.detkds.genotype import INPUTS, NAMED, Genotype, genotypes
from workbench.resources import share_path
from workbench.search.candidate import Candidate, Outcome
from workbench.search.plan import SamplerName, load_plan
from workbench.search.samplers import Sampling
from workbench.search.space import gate
from workbench.search.study import SearchStudy
from workbench.search.trainer import TrialTrainer
from workbench.search.trial import Trial, method_of, trial_setup

GATED, GATE_REPEATS, MAP_REPEATS = 100, 20, 3
LONG, PROPOSALS = 5000, 20
SHARES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
PART = 10  # steps between two measurements of a trial
IMAGES = 16  # in a batch of the pair on shapes
HEIGHT, WIDTH, BATCH, TARGETS = 800, 1333, 2, 7
CANDIDATE = NAMED["released_global"]
# formulas on large maps: the released one, the published methods that are points of the space, and one with the dearest operations
ON_MAPS = {
    "released_global": NAMED["released_global"], "cwd": NAMED["cwd"], "pkd": NAMED["pkd"],
    "natt > no > batchnorm, ssim": Genotype("global", "natt", "no", "batchnorm", "ssim"),
}  # fmt: skip


def figures() -> Iterator[Figure]:
    """Yields the cost of a trial around its steps, and of a formula beside the step of a ResNet-50 student."""
    torch.set_num_threads(1)
    yield from _static_gate()
    with temporary_runs(), tempfile.TemporaryDirectory() as folder:
        yield from _trials(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from _proposals(long_search(Path(folder), LONG))
    yield from _large_maps()


def _static_gate() -> Iterator[Figure]:
    """Yields the time of gate R0 over formulas that are drawn from the space of whole maps."""
    every = list(genotypes("global", added=True))
    picks = np.random.default_rng(0).choice(len(every), GATED, replace=False)
    seconds: list[float] = []
    for index in picks:
        start = time.process_time()
        gate(every[index], "corrected", IMAGES)
        seconds.append(time.process_time() - start)
    yield Figure("gate R0 of a formula", 1000 * float(np.median(seconds)), "ms", "<= 50", repeats=GATED)
    yield Figure("gate R0, the slowest formula", 1000 * max(seconds), "ms", "<= 50", repeats=GATED)


def long_search(folder: Path, trials: int) -> SearchStudy:
    """Returns a search whose study of shares has so many trials with random AP, no two of them alike.

    The shares of five formulas have 7**5 points, more than the formulas of any input. The first 50 trials and the pairs behind them are
    noted as ``family`` would, and generations of 50 as ``official`` would.
    """
    plan = load_plan(share_path("recipes") / "search" / "shapes_fcos.yaml").model_copy(update={"shares": SHARES})
    search, random = SearchStudy.open(plan, folder, fitness="0" * 16), np.random.default_rng(0)
    study = search.study("shares", formulas=[asdict(Genotype(input, distance="l1")) for input in INPUTS])
    space = search.space("shares")
    with search.journal.together():
        for number, point in enumerate(random.choice(len(space.points), trials, replace=False)):
            role = "random" if number < 50 else ("child", "newcomer")[number % 2]
            made = create_trial(
                params=space.points[point], distributions=dict(space.distributions), value=random.random(), user_attrs={"role": role},
                system_attrs={"NSGAIISampler:generation": number // 50},
            )  # fmt: skip
            study.add_trial(made)
    return search


def _proposals(search: SearchStudy) -> Iterator[Figure]:
    """Yields the time to begin a trial late in a search and to record it, through the journal."""
    samplings = {name: Sampling(name, search.space("shares"), 0) for name in get_args(SamplerName)}

    def propose(sampling: Sampling) -> None:
        search._samplings["shares"] = sampling
        search.tell(search.ask("shares"), Outcome(0.1))

    functions: dict[str, Callable[[], object]] = {name: partial(propose, sampling) for name, sampling in samplings.items()}
    seconds = interleaved(functions, PROPOSALS, warmup=2, clock=time.process_time)
    for name, values in seconds.items():
        # NSGA-II is Optuna's and reads all trials each time; it is there to show what the released scripts do
        target = None if name == "official" else "<= 20"
        yield Figure(f"ask and tell of {name} at {LONG} trials", 1000 * float(np.median(values)), "ms", target, repeats=PROPOSALS)


def _trials(folder: Path) -> Iterator[Figure]:
    """Yields the time of gate R1, and what a trial costs beside its bare steps."""
    plan = load_plan(share_path("recipes") / "search" / "shapes_fcos.yaml")
    trainer = TrialTrainer(plan, "cpu", folder)
    candidate = Candidate(((CANDIDATE, plan.share),))

    def trial() -> Trial:
        first = trainer._beginning(0)
        setup = trial_setup(trainer.shared, method_of(candidate, plan), 0, first)
        return Trial(setup, "cpu", trainer.cache, trainer.split.kept, first.norms)

    def begun() -> Trial:
        made = trial()
        made.begin()
        return made

    made, other = begun(), trial()
    gates = interleaved({"R1": lambda: made._gradients([0])}, GATE_REPEATS, warmup=2, clock=time.process_time)["R1"]
    yield Figure("gate R1 of a formula", 1000 * float(np.median(gates)), "ms", "<= 100", repeats=GATE_REPEATS)
    batches, run = other.loader.iterate(0), step_of(other.setup, other.setup.recipe, other.setup.methods)

    def bare() -> None:
        """Trains steps that a user would write, on the same batches from the same cache."""
        for _ in range(PART):
            run(next(batches))

    def steps() -> None:
        for _ in range(PART):
            made.advance()

    functions: dict[str, Callable[[], object]] = {
        "begin": begun, "bare": bare, "steps": steps, "rung": lambda: trainer._rung.ap(made), "end": lambda: trainer._end.ap(made),
    }  # fmt: skip
    # process time of one thread, so that other processes do not count
    seconds = interleaved(functions, plan.steps // PART - 1, clock=time.process_time)
    whole = {name: values * (plan.steps / PART if name in ("bare", "steps") else 1) for name, values in seconds.items()}
    around, rungs = whole["begin"] + whole["steps"] - whole["bare"], len(trainer.rungs) * whole["rung"]
    repeats = len(around)
    together = whole["begin"] + whole["steps"] + rungs + whole["end"]
    yield Figure("a trial, evaluation included", float(np.median(together)), "s", repeats=repeats)
    parts = (
        ("student, gates and weights of a trial / its bare steps", around, "<= 0.05"),
        ("the same with its rungs / its bare steps", around + rungs, "<= 0.12"),
        ("evaluation at the end / bare steps of a trial", whole["end"], None),
    )
    for name, cost, target in parts:
        ratio = median_ratio(cost, whole["bare"])
        yield Figure(name, ratio.value, "x", target, (ratio.low, ratio.high), repeats)


def _large_maps() -> Iterator[Figure]:
    """Yields the cost of formulas, forward and backward to the maps that they receive, beside the step of FCOS with a ResNet-50."""
    torch.manual_seed(0)
    config = {"family": "fcos", "backbone": {"name": "resnet50", "levels": [2, 3, 4], "norm": "frozen"}, "width": 256, "extra_levels": 2}
    student = Fcos.build(FcosModelConfig.model_validate(config), SPEC).train()
    student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.randn(BATCH, 3, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last)
    padding = torch.zeros(BATCH, HEIGHT, WIDTH, dtype=torch.bool)
    padding[1, :, 1100:] = True
    sides = 0.05 + 0.4 * torch.rand(BATCH, TARGETS, 2)
    boxes = torch.cat([sides / 2 + (1 - sides) * torch.rand(BATCH, TARGETS, 2), sides], -1)
    targets = TargetBatch(boxes, torch.randint(CLASSES, (BATCH, TARGETS)), torch.ones(BATCH, TARGETS, dtype=torch.bool))
    with torch.no_grad():
        output = student(images, padding)
    # values of other students cost the same
    answer = replace(output, neck=tuple(replace(level, features=torch.randn_like(level.features)) for level in output.neck))
    pairing = make_pairing(student, student, None)
    count = float(BATCH * TARGETS)

    def step() -> None:
        student.zero_grad()
        found = student(images, padding)
        terms = student.losses(found, targets, count, student.assign(found, targets))
        torch.stack([student.loss_weights[name] * value for name, value in terms.items()]).sum().backward()

    def cost_of(genotype: Genotype) -> Callable[[], None]:
        method = DetKDS(DetKDSConfig.of({genotype: 1.0}), student, student, pairing).train()

        def run() -> None:
            leaves = replace(output, neck=tuple(replace(level, features=level.features.detach().requires_grad_()) for level in output.neck))
            progress = Progress(step=0, epoch=0, num_boxes=count)
            context = MethodContext(student=student, pairing=pairing, targets=targets, progress=progress)
            torch.stack(list(method(leaves, answer, targets, context).values())).sum().backward()

        return run

    functions: dict[str, Callable[[], object]] = {"step": step, **{name: cost_of(genotype) for name, genotype in ON_MAPS.items()}}
    seconds = interleaved(functions, MAP_REPEATS, clock=time.process_time)
    yield Figure(
        f"FCOS with ResNet-50, step at {HEIGHT}x{WIDTH}, batch {BATCH}", float(np.median(seconds["step"])), "s", repeats=MAP_REPEATS
    )
    for name in ON_MAPS:
        ratio = median_ratio(seconds[name], seconds["step"])
        yield Figure(f"formula {name} / that step", ratio.value, "x", "<= 0.05", (ratio.low, ratio.high), MAP_REPEATS)
