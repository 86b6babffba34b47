"""Says what a trial of a search means, and refuses to mix trials that mean different things."""

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, RunError
from workbench.files import hash_json, read_json, write_json
from workbench.recipe.schema import Recipe
from workbench.search.genes import FormulaSpace
from workbench.search.plan import SearchPlan
from workbench.search.space import positions

FORMAT_VERSION = 1
FREE = frozenset({"name", "trials", "share_trials", "repeated", "repeats"})
"""Settings of a plan that may change when a search is resumed: they say how long it goes on, not what a trial means."""


def images_of(recipe: Recipe) -> int:
    """Returns how many images a recipe trains on at a time, which formulas over the batch need."""
    return recipe.train.batch_size // recipe.train.accumulate


def identity(plan: SearchPlan, recipe: Recipe, fitness: str | None) -> dict[str, Any]:
    """Returns everything that says what a trial means; trials of searches that differ in it cannot be compared.

    Args:
        plan: what is searched.
        recipe: the plan's recipe with its arm.
        fitness: hash of the list of held-out images; None if it is not known yet.
    """
    # searches that were begun before there was this field have the identity of those without extra entries
    unused = set[str]() if plan.extra else {"extra"}
    settings = plan.model_dump(mode="json", exclude=set(FREE) | {"recipe"} | unused)
    space = hash_json({input: positions(input, plan.extra) for input in plan.inputs})[:8]
    return {"space": f"{FORMAT_VERSION}-{space}", "recipe": recipe.hash(), "batch": images_of(recipe), "held_out": fitness, **settings}


def check_plan(folder: Path, mine: dict[str, Any], commit: str | None, other_code: bool) -> dict[str, Any] | None:
    """Returns the content of a search's study.json after comparing it with a plan; None if there is none yet.

    Args:
        folder: folder of the search.
        mine: identity of the plan.
        commit: commit of this code.
        other_code: whether the search may have been begun with another.

    Raises:
        RunError: the search has other settings or code, or its trials have no study.json.
    """
    path, journal = folder / "study.json", folder / "journal.log"
    if not path.is_file():
        if journal.is_file() and journal.stat().st_size:
            raise RunError(f"{journal} has trials, but {path}, which says what they mean, is missing. Restore it, or choose another name.")
        return None
    state = read_json(path)
    theirs: dict[str, Any] = state["identity"]
    unknown = {"held_out"} if mine["held_out"] is None else set[str]()
    keys = sorted(key for key in {*theirs, *mine} - unknown if theirs.get(key) != mine.get(key))
    if keys:
        differences = "\n".join(f"  {key}: {theirs.get(key)}, now {mine.get(key)}" for key in keys)
        raise RunError(
            f"the search in {folder} was made with other settings, and trials of both could not be compared:\n{differences}\n"
            f"Choose another name for this search, or restore the plan, which stands in {path}."
        )
    if state["commit"] != commit and not other_code:
        raise RunError(
            f"the search in {folder} was begun with commit {state['commit']} of the code, and this is {commit}, which may train "
            "differently. Check that commit out, or give --other-code; each trial records its commit."
        )
    return state


def record_plan(folder: Path, plan: SearchPlan, mine: dict[str, Any], commit: str | None, state: dict[str, Any] | None) -> dict[str, Any]:
    """Writes a search's study.json if it is new, or if its plan now goes on for longer; returns its content.

    Args:
        folder: folder of the search.
        plan: what is searched.
        mine: identity of the plan.
        commit: commit of this code.
        state: what ``check_plan`` returned.
    """
    values = plan.model_dump(mode="json")
    if state is None:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        state = {"format_version": FORMAT_VERSION, "id": secrets.token_hex(8), "created": created, "commit": commit, "identity": mine,
                 "hash": hash_json(mine)[:16]}  # fmt: skip
    if state.get("plan") != values:
        state["plan"] = values
        write_json(folder / "study.json", state)
    return state


def refuse_empty(plan: SearchPlan, images: int) -> None:
    """Refuses a plan with an input that has no formula to choose, or one alone."""
    for input in plan.inputs:
        legal = len(FormulaSpace(input, plan.mode, images, extra=plan.extra).legal)
        if legal == 0:
            raise ConfigError(
                f"search '{plan.name}': in mode {plan.mode} and with {images} images in a batch, input {input} has no legal formula. Leave "
                "the input out, choose the other mode, or use a recipe with a larger batch."
            )
        if legal == 1:
            raise ConfigError(
                f"search '{plan.name}': input {input} has one legal formula, so there is nothing to search. Leave the input out."
            )
