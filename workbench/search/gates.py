"""Decides when a trial ends early: no gradient on a batch (gate R1), or collapse during training (gate R2).

The thresholds of losses are those of the reference algorithm (``docs/search.md``); the paper has none. Its bounds on the gradient-norm
ratio of R1 (1e-3 to 1e3) are not used, because ``balance`` sets every weight from that ratio, whatever it is.

Losses alone tell too little: with AdamW a head learns how common the classes are even on features that a formula has made useless, and its
detection loss falls nearly as far as that of the undistilled student while nothing is detected. AP at the rungs is looked at as well.
"""

import math
from collections.abc import Mapping, Sequence

COLLAPSE = 1.5
"""A detection loss this many times that of the undistilled student means that the formula destroys what detection learns."""
COLLAPSE_AT = (0.2, 0.5)
"""When it is compared, as shares of the steps."""
SMOOTHED = 0.1
"""The mean over the last steps is compared, this share of all of them, because single batches differ more than students."""

FEW = 0.25
"""An AP at a rung below this share of the undistilled student's means the same. On the table of fitness no trial below it recovered."""
SOME = 0.01
"""AP (0..1) that the undistilled student must have there, because shares of less are chance."""


def ratios_of(measured: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Returns each term's gradient norm at weight 1 over that of the detection loss.

    Args:
        measured: result of ``term_gradients``.
    """
    detection = measured["detection"][0]
    return {name: norm / detection if detection else math.nan for name, (norm, _) in measured.items() if name != "detection"}


def without_gradient(ratios: Mapping[str, float], wanted: Sequence[str]) -> str | None:
    """Returns why a candidate cannot teach this pair, as a sentence; None if each of its terms has a gradient (gate R1).

    Args:
        ratios: gradient norm of each term over that of detection, on one batch.
        wanted: terms that must have one.
    """
    for name in wanted:
        if name not in ratios:
            return f"{name} found nothing to compare in the first batch"
        if not math.isfinite(ratios[name]):
            return f"the gradient of {name} is not finite on the first batch"
        if ratios[name] == 0:
            return f"{name} has no gradient in the student on the first batch"
    return None


def collapse_steps(steps: int) -> tuple[int, ...]:
    """Returns the steps after which collapse is looked for."""
    return tuple(sorted({max(1, round(share * steps)) for share in COLLAPSE_AT}))


def collapsed(losses: Sequence[float], reference: Sequence[float], steps: int) -> str | None:
    """Returns why a trial has collapsed, as a sentence; None if it has not (gate R2).

    Args:
        losses: detection loss of each step so far.
        reference: the same of the undistilled student, for all steps.
        steps: steps of a trial.
    """
    window = max(1, round(SMOOTHED * steps))
    own, other = (sum(values[-window:]) / len(values[-window:]) for values in (losses, reference[: len(losses)]))
    if own <= COLLAPSE * other:
        return None
    return f"its detection loss at step {len(losses)} is {own:.3g}, {own / other:.3g} times that of the undistilled student"


def detects_too_little(ap: float, reference: float, step: int) -> str | None:
    """Returns why a trial has collapsed at a rung, as a sentence; None if it has not (gate R2).

    Args:
        ap: AP (0..1) of the trial.
        reference: AP of the undistilled student at the same step.
        step: step of the rung.
    """
    if reference < SOME or ap >= FEW * reference:
        return None
    return f"its AP at step {step} is {100 * ap:.2f}, and the undistilled student has {100 * reference:.2f} there"
