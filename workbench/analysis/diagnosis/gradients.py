"""Checks the gradient of each term: too small to matter, against the detection loss, or so large that the detection loss is drowned.

The numbers are from metrics.jsonl. Every hundredth step (ten times ``log_every``) measures, over the student's parameters, the norm of each
weighted term's gradient as a share of the detection loss's, and the cosine between the two.
"""

import numpy as np

from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import Material
from workbench.analysis.diagnosis.statistics import Estimate, mean_interval, median_interval

# share of the sum of all gradient norms: one part in a hundred of a step is lost in the noise between two batches
LEAST_SHARE = 0.01
# two unrelated directions in a model of 100,000 parameters have a cosine of +-0.003
OPPOSED = -0.01

# Clipping and AdamW keep the length of a step. Beside unrelated gradients of twice its own norm, the detection loss is left with less than
# half of its learning rate.
DROWNING = 2.0
# Share of the fall of the baseline's detection loss. A large gradient alone does no harm: feature terms with 8 to 50 times the detection
# loss's gradient (docs/results.md) leave the detection loss below the baseline's. Both limits were set on 43 runs of a GFL student
# (validation, seed 9): each of the 21 that lose more than 2 AP beside such a gradient is above them, and none of those that gain is.
LEAST_LOST = 0.03
LEAST_LINES = 6  # lines of metrics.jsonl; from fewer, the spread cannot be estimated


def weak_terms(material: Material, baseline: Material | None) -> list[Finding]:
    """Finds terms whose gradient norm is less than 1 % of the sum over the detection loss and all terms. If that holds for every term,
    the run is hardly distilled at all.
    """
    shares = material.measured("share")
    steps = max(len(values) for values in shares.values())
    # a term without eligible targets was not measured at some steps; then the sum is over medians
    typical = {name: _judged(values) for name, values in shares.items()}
    weak: dict[str, Estimate] = {}
    for name, values in shares.items():
        if len(values) == steps and all(len(other) == steps for other in shares.values()):
            parts = [value / (1 + sum(other[k] for other in shares.values())) for k, value in enumerate(values)]
        else:
            parts = [value / (1 + sum(estimate.value for estimate in typical.values())) for value in values]
        share = material.compare(f"share of {name} in the sum of gradient norms, median", _judged(parts), LEAST_SHARE, "below")
        if share.high < LEAST_SHARE:
            weak[name] = share
    return [
        Finding(
            "weak term", "error" if len(weak) == len(shares) else "warning",
            f"Term {name} sends only {100 * share.value:.2g} % of the gradient into the student, so it hardly teaches.",
            (Evidence(f"share of {name} in the sum of gradient norms, median", share.value, share.n, "measurements", share.low,
                      share.high),),
            f"Set its weight by its gradient (balance: {{{name.partition('.')[2]}: 1.0}}), or leave the term out.",
        )
        for name, share in weak.items()
    ]  # fmt: skip


def opposing_terms(material: Material, baseline: Material | None) -> list[Finding]:
    """Finds terms whose gradient points against the detection loss's: the interval of the median cosine lies below 0."""
    shares = material.measured("share")
    findings = []
    for name, values in material.measured("cosine").items():
        cosine = material.compare(f"cosine of {name} with the detection loss, median", _judged(values), OPPOSED, "below")
        if cosine.high < OPPOSED:
            share = _judged(shares[name])
            # it takes away the part of its gradient that runs along the detection loss's
            undone = -cosine.value * share.value
            findings.append(Finding(
                "opposing term", "error" if undone >= 1 else "warning",
                f"Term {name} works against the detection loss: its gradient cancels {100 * undone:.2g} % of the detection loss's.",
                (
                    Evidence(f"cosine of {name} with the detection loss, median", cosine.value, cosine.n, "measurements", cosine.low,
                             cosine.high),
                    Evidence(f"gradient of {name} as a share of the detection loss's, median", share.value, share.n, "measurements",
                             share.low, share.high),
                ),
                "Lower its weight, end it early, or check that the teacher fits the data: it teaches something else than the targets do.",
            ))  # fmt: skip
    return findings


def drowning_terms(material: Material, baseline: Material | None) -> list[Finding]:
    """Finds terms whose gradient is too large for the detection loss to act: together it is more than twice the detection loss's, in the
    last third of training the detection loss is above the baseline's by more than 3 % of the fall of the baseline's, and the student's AP
    is not above the baseline's. The norms of several terms are added as if the gradients were at right angles.
    """
    shares = material.measured("share")
    together = _judged(np.sqrt(sum(np.square(values) for values in _aligned(shares))).tolist())
    material.compare("gradient of all terms together as a share of the detection loss's, median", together, DROWNING, "above")
    if together.low <= DROWNING:
        return []
    if baseline is None:
        raise NotJudged(
            f"the terms send {together.value:.0f} times the detection loss's gradient, which may help or harm; to find out, compare with "
            "the undistilled run (--against)"
        )
    lost, own, other = _lost(material, baseline)
    material.compare("share of the fall of the baseline's detection loss that is lost", lost, LEAST_LOST, "above")
    if lost.low <= LEAST_LOST or _last_ap(material) > _last_ap(baseline):
        return []
    typical = {name: _judged(values) for name, values in shares.items()}
    loud = {name: share for name, share in typical.items() if share.value >= 1} or typical
    loud = dict(sorted(loud.items(), key=lambda pair: -pair[1].value))
    named = ", ".join(f"{name} {_times(share.value)}" for name, share in loud.items())
    return [Finding(
        "drowning term", "error",
        f"The distillation terms drown the detection loss. Their gradient is {_times(together.value)} times its own ({named}), and late in "
        f"training it is {own.value:.3g}, where {baseline.run.name} has {other.value:.3g}.",
        (
            Evidence("gradient of all terms together as a share of the detection loss's, median", together.value, together.n,
                     "measurements", together.low, together.high),
            *(Evidence(f"gradient of {name} as a share of the detection loss's, median", share.value, share.n, "measurements", share.low,
                       share.high) for name, share in loud.items()),
            Evidence("detection loss in the last third of training", own.value, own.n, "logged steps", own.low, own.high),
            Evidence(f"detection loss in the last third of {baseline.run.name}", other.value, other.n, "logged steps", other.low,
                     other.high),
            Evidence("share of the fall of the baseline's detection loss that is lost", lost.value, lost.n, "logged steps", lost.low,
                     lost.high),
        ),
        "Lower the weight until the gradient is no larger than that of the detection loss "
        f"(balance: {{{next(iter(loud)).partition('.')[2]}: 1.0}}).",
    )]  # fmt: skip


def _last_ap(material: Material) -> float:
    """Returns AP (0..1) at the last evaluation on the validation split, 0 if there is none."""
    values = [line["coco"]["ap"] or 0.0 for line in material.run.evaluations() if line["split"] == "val"]
    return values[-1] if values else 0.0


def _times(share: float) -> str:
    return f"{share:,.0f}" if share >= 10 else f"{share:.1f}"


def _aligned(shares: dict[str, list[float]]) -> list[np.ndarray]:
    """Returns the shares of every term at the same measurements; a term that was not measured at all of them counts with its median."""
    steps = max(len(values) for values in shares.values())
    return [np.array(values) if len(values) == steps else np.full(steps, np.median(values)) for values in shares.values()]


def _lost(material: Material, baseline: Material) -> tuple[Estimate, Estimate, Estimate]:
    """Returns the lost share of the fall of the baseline's detection loss, and the loss late in training of the run and of the baseline.

    Both losses are read at the same steps. If the seeds are equal, both runs saw the same images at a step.
    """
    steps = [part.info.get("recipe", {}).get("train", {}).get("steps") for part in (material, baseline)]
    if steps[0] != steps[1]:
        raise NotJudged(f"the baseline trains for {steps[1]} steps and the run for {steps[0]}, so their losses cannot be compared")
    own, other = material.detection_loss, baseline.detection_loss
    common = sorted(own.keys() & other.keys())
    third = len(common) // 3
    if third < LEAST_LINES:
        raise NotJudged(f"the two runs share {len(common)} of the {3 * LEAST_LINES} logged steps that a comparison needs")
    late = np.array([(own[step], other[step]) for step in common[-third:]])
    fall = float(np.mean([other[step] for step in common[: max(1, len(common) // 10)]]) - late[:, 1].mean())
    if fall <= 0:
        raise NotJudged("the baseline's detection loss does not fall")
    return mean_interval((late[:, 0] - late[:, 1]) / fall), mean_interval(late[:, 0]), mean_interval(late[:, 1])


def _judged(values: list[float]) -> Estimate:
    estimate = median_interval(values)
    if estimate is None:
        raise NotJudged(f"metrics.jsonl holds {len(values)} of the six gradient measurements that the interval of a median needs")
    return estimate
