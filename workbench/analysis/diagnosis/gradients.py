"""What each term sends into the student: too little to matter, or against the detection loss.

Read from metrics.jsonl, where every hundredth step (ten times ``log_every``) measures, over the student's parameters, the norm of each
weighted term's gradient as a share of the detection loss's, and its cosine with it.
"""

from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import Material
from workbench.analysis.diagnosis.statistics import Estimate, median_interval

# of all gradient norms together: a step that is one part in a hundred is lost in the noise between two batches
LEAST_SHARE = 0.01
# two directions in a model of 100,000 parameters that have nothing to do with each other have a cosine of +-0.003
OPPOSED = -0.01


def weak_terms(material: Material, baseline: Material | None) -> list[Finding]:
    """Terms whose gradient is less than 1 % of all: of the norms of the detection loss and of every term, added up. Where that is so of
    every term, the run is hardly distilled at all.
    """
    shares = material.measured("share")
    steps = max(len(values) for values in shares.values())
    # a term without eligible targets was not measured at some steps; the total is over typical values then
    typical = {name: _judged(values) for name, values in shares.items()}
    weak: dict[str, Estimate] = {}
    for name, values in shares.items():
        if len(values) == steps and all(len(other) == steps for other in shares.values()):
            parts = [value / (1 + sum(other[k] for other in shares.values())) for k, value in enumerate(values)]
        else:
            parts = [value / (1 + sum(estimate.value for estimate in typical.values())) for value in values]
        share = _judged(parts)
        if share.high < LEAST_SHARE:
            weak[name] = share
    return [
        Finding(
            "weak term", "error" if len(weak) == len(shares) else "warning",
            f"Term {name} sends {100 * share.value:.2g} % of the gradient into the student: it hardly teaches.",
            (Evidence(f"share of {name} in the sum of gradient norms, median", share.value, share.n, "measurements", share.low,
                      share.high),),
            f"Set its weight from its gradient (balance: {{{name.partition('.')[2]}: 1.0}}), or leave the term out.",
        )
        for name, share in weak.items()
    ]  # fmt: skip


def opposing_terms(material: Material, baseline: Material | None) -> list[Finding]:
    """Terms whose gradient points away from the detection loss's throughout: the interval of the median cosine lies below 0."""
    shares = material.measured("share")
    findings = []
    for name, values in material.measured("cosine").items():
        cosine = _judged(values)
        if cosine.high < OPPOSED:
            share = _judged(shares[name])
            # what it takes away is the part of its gradient that runs along the detection loss's
            undone = -cosine.value * share.value
            findings.append(Finding(
                "opposing term", "error" if undone >= 1 else "warning",
                f"Term {name} pulls against the detection loss: its gradient undoes {100 * undone:.2g} % of the detection loss's.",
                (
                    Evidence(f"cosine of {name} with the detection loss, median", cosine.value, cosine.n, "measurements", cosine.low,
                             cosine.high),
                    Evidence(f"gradient of {name} as a share of the detection loss's, median", share.value, share.n, "measurements",
                             share.low, share.high),
                ),
                "Lower its weight, end it early, or check that teacher and data fit: what it teaches is not what the targets ask for.",
            ))  # fmt: skip
    return findings


def _judged(values: list[float]) -> Estimate:
    estimate = median_interval(values)
    if estimate is None:
        raise NotJudged(f"{len(values)} measurements of the terms' gradients; six are the least that bound a median")
    return estimate
