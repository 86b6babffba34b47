"""Says whether a run is long enough for every cause to be judged."""

from workbench.analysis.diagnosis.gradients import LEAST_LINES
from workbench.analysis.diagnosis.statistics import LEAST_VALUES
from workbench.analysis.diagnosis.unsettled_matching import LEAST_MOMENTS
from workbench.store.run import GRADIENT_EVERY, Run


def too_short(run: Run) -> str:
    """Returns how many steps a run would need, and what for; empty if it is long enough, or is not distilled."""
    recipe = run.info().get("recipe") or {}
    train = recipe.get("train") or {}
    steps, every, evaluated = (int(train.get(key) or 0) for key in ("steps", "log_every", "evaluate_every"))
    if not recipe.get("methods") or not every or not evaluated:
        return ""
    gradients, moments, lines = LEAST_VALUES * GRADIENT_EVERY * every, LEAST_MOMENTS * evaluated, 3 * LEAST_LINES * every
    needed = max(gradients, moments, lines)
    if steps >= needed:
        return ""
    return (
        f"{run.name} has {steps} of the {needed} steps from which every cause can be judged: {LEAST_VALUES} measurements of the "
        f"gradients, one every {GRADIENT_EVERY * every} steps (ten times train.log_every), and {LEAST_MOMENTS} evaluations, one every "
        f"{evaluated} steps (train.evaluate_every)"
    )
