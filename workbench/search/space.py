"""Examines the formulas of DetKDS before any training (gate R0): which of them can work, and how many are different.

A formula is refused if it is illegal for the batch, if its loss or gradient is not finite, if it has no gradient, or if its loss is smaller
for some other student than for one that equals its teacher. All but the first is computed on a probe: small random values in double
precision, always the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from workbench.methods.detkds.canonical import canonical
from workbench.methods.detkds.distances import formula_loss
from workbench.methods.detkds.genotype import FEATURES, Added, Genotype, Input, Mode, genotypes, refusal
from workbench.methods.detkds.knowledge import Knowledge

Outcome = Literal["works", "illegal", "not finite", "no gradient", "not minimal"]
MODES: tuple[Mode, ...] = get_args(Mode)
CHANNELS, HEIGHT, WIDTH = 6, 9, 13  # odd, so that windows and patches do not divide them
CLASSES, BOXES = 4, 5
SEED = 0
DIRECTIONS = 12
# gradient times values over loss: what only the constants against division by zero leave is below it, every other formula far above
LEAST_SLOPE, NOISE = 1e-4, 1e-14
ROUNDING = 1e-4  # share of a loss that counts as none: the released correlation has 1e-8 beside its norms
SAME = 3e-3  # largest difference of two fingerprints of the same formula


@dataclass(frozen=True)
class Verdict:
    """What gate R0 says about a formula.

    Attributes:
        outcome: ``works``, or what is wrong.
        reason: The rest of the sentence that begins with the formula; empty if it works.
        fingerprint: ``[12]``, the direction of the gradient on the probe; None if the formula does not work. Formulas whose losses differ
            by a factor and a summand alone have the same.
    """

    outcome: Outcome
    reason: str = ""
    fingerprint: Tensor | None = None


class Probe:
    """Values of a student and a teacher on which formulas are examined.

    Args:
        input: what the formulas compare.
        mode: in official mode nothing is masked.
        images: images in a batch of one process.

    Attributes:
        student: ``[N, C, H, W]`` or ``[N, 4]``, a student that has learned nothing.
        others: Students that differ from the teacher in other ways: nearly equal, longer, shifted, with another image's values.
    """

    def __init__(self, input: Input, mode: Mode, images: int):
        self.input: Input = input
        self.mode: Mode = mode
        self.images = images
        generator = torch.Generator().manual_seed(SEED)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.inside: Tensor | None = None
        self.weight: Tensor | None = None
        if input == "localization":
            self.student, self.teacher = (_boxes(normal(BOXES, 4)) for _ in range(2))
            self.weight = normal(BOXES).sigmoid()
        else:
            shape = (BOXES if input == "instance" else images, CLASSES if input == "logits" else CHANNELS, HEIGHT, WIDTH)
            # heavier tails than normal, and channels of unequal size and place, as those of real maps
            spread, place = (0.3 * normal(2, 1, shape[1], 1, 1)).unbind()
            self.student, self.teacher = (normal(*shape) * (0.4 * normal(*shape) + spread).exp() + place for _ in range(2))
            if input == "logits":
                self.student, self.teacher = self.student.sigmoid(), self.teacher.sigmoid()
            if input == "foreground":
                share = torch.zeros(HEIGHT, WIDTH, dtype=torch.float64)
                share[1:7, 2:9], share[3:6, 4:8] = 1 / 42, 1 / 12
                self.student, self.teacher = self.student * share, self.teacher * share
            if mode == "corrected" and input != "instance" and images > 1:
                self.inside = torch.ones(images, 1, HEIGHT, WIDTH, dtype=torch.bool)
                self.inside[-1, :, :, -3:] = False
                self.teacher = self.teacher.masked_fill(~self.inside, 0.0)
        near = self.teacher + 0.1 * normal(*self.teacher.shape)
        self.others = (near, 1.5 * self.teacher, self.teacher + 0.5, self.teacher.roll(1, 0), self.teacher.flip(-1))
        self.directions = normal(DIRECTIONS, self.student.numel())

    def loss(self, genotype: Genotype, student: Tensor) -> Tensor:
        """Returns the loss of a formula with the probe's teacher; both sides have the same mask."""
        # what lies outside gets no gradient
        own = student if self.inside is None else student.masked_fill(~self.inside, 0.0)
        sides = Knowledge(own, self.inside), Knowledge(self.teacher, self.inside)
        return formula_loss(genotype, *sides, self.mode, SEED, self.weight, tied=True)


def examine(genotype: Genotype, probe: Probe) -> Verdict:
    """Returns what gate R0 says about a formula.

    Args:
        genotype: formula of the probe's input.
        probe: values to examine it on.
    """
    rows = None if probe.input in ("instance", "localization") else probe.images
    if reason := refusal(genotype, probe.mode, rows):
        return Verdict("illegal", reason)
    if (genotype.input, probe.mode) == ("foreground", "official"):
        genotype = replace(genotype, distance="l1")
    student = probe.student.clone().requires_grad_()
    loss = probe.loss(genotype, student)
    gradient = torch.autograd.grad(loss, student, allow_unused=True)[0] if loss.requires_grad else None
    if not torch.isfinite(loss) or (gradient is not None and not torch.isfinite(gradient).all()):
        return Verdict("not finite", "its loss or its gradient is not finite")
    length = gradient.norm() if gradient is not None else loss.new_zeros(())
    if gradient is None or length * student.detach().norm() <= LEAST_SLOPE * loss.detach().abs() + NOISE:
        return Verdict("no gradient", "its loss does not depend on the student")
    with torch.no_grad():
        least = probe.loss(genotype, probe.teacher)
        found = torch.stack([loss.detach(), *(probe.loss(genotype, other) for other in probe.others)])
    if not torch.isfinite(least):
        return Verdict("not finite", "its loss is not finite where student and teacher are equal")
    if (found < least - ROUNDING * (found - least).abs().max()).any():
        return Verdict("not minimal", "another student has a smaller loss than one that equals its teacher")
    return Verdict("works", fingerprint=probe.directions @ gradient.flatten() / length)


def gate(genotype: Genotype, mode: Mode, images: int) -> str | None:
    """Returns why a search need not train with a formula, as the end of a sentence; None if it may (gate R0)."""
    verdict = examine(genotype, Probe(genotype.input, mode, images))
    return verdict.reason or None


@dataclass(frozen=True)
class Survey:
    """The formulas of an input by what gate R0 says.

    Attributes:
        input: What is compared.
        mode: How formulas are computed.
        images: Images in a batch of one process.
        outcomes: Number of formulas with each outcome.
        alone: Number of formulas that are illegal with one image in a batch.
        different: Number of formulas that are left when rules remove what changes nothing (``canonical``).
        canonical: The same among those that work.
        distinct: Number of groups of formulas that work and have different fingerprints.
    """

    input: Input
    mode: Mode
    images: int
    outcomes: dict[Outcome, int]
    alone: int
    different: int
    canonical: int
    distinct: int

    @property
    def formulas(self) -> int:
        """Returns the number of all formulas."""
        return sum(self.outcomes.values())


def survey(input: Input, mode: Mode, images: int, added: Added = False) -> Survey:
    """Examines all formulas of an input.

    Args:
        input: what is compared.
        mode: how formulas are computed.
        images: images in a batch of one process.
        added: see ``Added``.
    """
    probe = Probe(input, mode, images)
    rows = 1 if input not in ("instance", "localization") else None
    verdicts = {genotype: examine(genotype, probe) for genotype in genotypes(input, added)}
    outcomes: dict[Outcome, int] = {"works": 0, "illegal": 0, "not finite": 0, "no gradient": 0, "not minimal": 0}
    for verdict in verdicts.values():
        outcomes[verdict.outcome] += 1
    working = [genotype for genotype, verdict in verdicts.items() if verdict.outcome == "works"]
    return Survey(
        input,
        mode,
        images,
        outcomes,
        sum(refusal(genotype, mode, rows) is not None for genotype in verdicts),
        len({canonical(genotype, mode) for genotype in verdicts}),
        len({canonical(genotype, mode) for genotype in working}),
        _groups(verdict.fingerprint for verdict in verdicts.values() if verdict.fingerprint is not None),
    )


def _groups(fingerprints: Iterable[Tensor]) -> int:
    """Returns how many fingerprints differ from all that came before."""
    table = list(fingerprints)
    if not table:
        return 0
    near = torch.cdist(torch.stack(table), torch.stack(table), p=torch.inf) < SAME
    return int((~near.tril(-1).any(1)).sum())


def positions(input: Input, added: Added = False) -> dict[str, tuple[str, ...]]:
    """Returns the choices at each position of an input's formulas, in order."""
    table: dict[str, dict[str, None]] = {"t1": {}, "t2": {}, "t3": {}, "distance": {}} if input in FEATURES else {"t3": {}, "distance": {}}
    for genotype in genotypes(input, added):
        for position, choices in table.items():
            choices[getattr(genotype, position)] = None
    return {position: tuple(choices) for position, choices in table.items()}


def _boxes(values: Tensor) -> Tensor:
    """Returns boxes with an area as corners in 0..1, of any numbers ``[P, 4]``."""
    shares = values.sigmoid()
    low = 0.7 * shares[:, :2]
    return torch.cat([low, low + 0.05 + 0.25 * shares[:, 2:]], 1)
