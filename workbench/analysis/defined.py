"""Says which numbers about queries are defined for a run.

In a DETR a target has one positive query at most: the assignment is one-to-one. A dense or two-stage detector gives a target several
positive candidates: the assignment is many-to-one. Churn of the matching, IS, agreement and whatever else is said of *the* query of a
target has no meaning there, and code that expects one query a target would make up a number. Everything that reads a query table for such
a number asks here first, so that pages, reports and exports say ``NOT_DEFINED`` in its place.
"""

from collections.abc import Iterable
from typing import Literal

from workbench.analysis.of_run import SPLITS
from workbench.errors import WorkbenchError
from workbench.store.manifest import is_complete
from workbench.store.queries import TEACHER_STEP, read_facts
from workbench.store.run import Run

Model = Literal["student", "teacher"]
Number = Literal["churn", "layer churn", "teacher layer churn", "agreement", "slots", "gain", "predictors", "selection"]
NOT_DEFINED = "not defined: many-to-one"
LAYER_NUMBERS: tuple[Number, ...] = ("layer churn", "teacher layer churn")
# what each number is called, and whose assignments have to be one-to-one
_NUMBERS: dict[Number, tuple[str, tuple[Model, ...]]] = {
    "churn": ("churn and instability between evaluations", ("student",)),
    "layer churn": ("churn and instability between layers", ("student",)),
    "teacher layer churn": ("churn and instability between the teacher's layers", ("teacher",)),
    "agreement": ("pairs of queries and agreement with the teacher", ("student", "teacher")),
    "slots": ("query slots", ("student",)),
    "gain": ("gain and score x IoU of a target's query", ("student",)),
    "predictors": ("what predicts gain", ("student", "teacher")),
    "selection": ("which queries of the teacher are selected", ("teacher",)),
}


class NotDefined(WorkbenchError):
    """Raised instead of a number that the assignment of a run's detector does not define; the message names the number and says why."""


def many_to_one(run: Run, model: Model = "student") -> bool:
    """Returns True if the assignment of a run's student or teacher is many-to-one; False if the run keeps none of its candidates.

    A model is the same detector at every evaluation and on every split, so the first table that is found tells.
    """
    for split in SPLITS:
        for step in [TEACHER_STEP] if model == "teacher" else run.query_steps(split)[-1:]:
            if is_complete(run.queries_path(split, step)):
                return read_facts(run, split, step)["assignment"] == "many"
    return False


def undefined(run: Run, number: Number) -> str:
    """Returns ``NOT_DEFINED`` and why in a clause, or "" if the number is defined for the run."""
    several = [model for model in _NUMBERS[number][1] if many_to_one(run, model)]
    if not several:
        return ""
    return f"{NOT_DEFINED} (in the {' and the '.join(several)} a target has several positive candidates)"


def undefined_of(runs: Iterable[Run], number: Number) -> str:
    """Returns one sentence that names the number and all runs for which it is not defined; "" if it is defined for all of them."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if why := undefined(run, number):
            found.setdefault(why, []).append(run.name)
    title = _NUMBERS[number][0]
    return " ".join(f"{title[0].upper()}{title[1:]} of {', '.join(names)}: {why}." for why, names in found.items())


def require(run: Run, number: Number) -> None:
    """Does nothing if the number is defined for the run.

    Raises:
        NotDefined: it is not.
    """
    if said := undefined_of([run], number):
        raise NotDefined(said)
