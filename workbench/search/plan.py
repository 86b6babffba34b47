"""Reads a search: which pair of detectors, which formulas, how much training each, and when the search ends."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from workbench.errors import ConfigError, RunError
from workbench.methods.detkds.genotype import EXTRA, INPUTS, Input, Mode
from workbench.recipe.loading import read_mapping
from workbench.resources import named_file, share_path

SamplerName = Literal["recommended", "family", "official", "tpe", "random"]
_NAME_LENGTH = 61  # of a cache
_READ: dict[Input, str] = {"global": "maps", "foreground": "maps", "instance": "maps", "logits": "logits", "localization": "boxes"}


class SearchPlan(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Describes one search for a distiller.

    The search has three stages: the formulas of one input at a time, the shares of the best formulas together, and training the winners on
    the whole schedule of the recipe.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")
    """Name of the search and of its folder."""
    recipe: str
    """Recipe of the pair: data, student, teacher, cache and full schedule. Its methods are replaced by those that the search tries."""
    arm: str | None = None
    """Arm of the recipe. Null takes the recipe as it is written."""
    inputs: tuple[Input, ...] = INPUTS
    """Inputs whose formulas are searched, one after the other."""
    extra: tuple[str, ...] = ()
    """Entries of the tables to search besides those of the released code and the paper's figure: ``pow2`` and ``ssim``, and ``no``, boxes
    without a transformation. ``workbench search space`` lists them.
    """
    mode: Mode = "corrected"
    """How formulas are computed: ``corrected``, or ``official`` as the released code does."""
    settings: dict[str, Any] = {}
    """Other settings of the method ``detkds``, such as ``feature``."""
    steps: int = Field(150, gt=0)
    """Training steps of a trial; the schedule of the recipe is shortened to them."""
    rungs: tuple[float, ...] = (0.5,)
    """Shares of the steps after which a trial is evaluated before its end."""
    share: float = Field(3.0, gt=0)
    """Share of the detection gradient that a formula starts with in the first stage."""
    shares: tuple[float, ...] = (0.0, 0.3, 1.0, 3.0, 10.0)
    """Shares that the second stage chooses from for each input. 0 drops the input."""
    sampler: SamplerName = "recommended"
    """What proposes the next trial."""
    seeded: bool = True
    """Whether the search begins with the released formulas and those made by hand. ``official`` and ``family`` have none."""
    trials: int = Field(100, gt=0)
    """Trials of each input in the first stage that are trained, refused ones not counted."""
    share_trials: int = Field(40, gt=0)
    """Trials of the second stage."""
    repeated: int = Field(5, ge=0)
    """How many of the best candidates of a stage are trained again with fresh seeds; the best of their means wins."""
    repeats: int = Field(2, gt=0)
    """With how many fresh seeds."""
    fitness: float = Field(0.2, gt=0, lt=1)
    """Share of the training images that is held out of training and measures a trial."""
    unpruned: int = Field(16, gt=3)
    """First trials that run to their end whatever a rung says; the rank correlation of rung and end is measured on them."""
    correlation: float = Field(0.6, ge=0, le=1)
    """Smallest rank correlation with the end at which a rung ends trials."""
    seed: int = Field(0, ge=0)
    """Seed of the held-out images, of the sampler and of the trials."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.inputs or len(set(self.inputs)) < len(self.inputs):
            raise ValueError(f"inputs must name at least one of {', '.join(INPUTS)}, each once")
        possible = set[str]().union(*(EXTRA[input] for input in self.inputs))
        if unknown := sorted(set(self.extra) - possible):
            raise ValueError(
                f"extra has no {', '.join(unknown)}; the inputs {', '.join(self.inputs)} may add {', '.join(sorted(possible))}"
            )
        if self.extra and self.mode == "official":
            raise ValueError("extra needs mode corrected, because the released code has no such entries")
        if list(self.rungs) != sorted(set(self.rungs)) or not all(0 < rung < 1 for rung in self.rungs):
            raise ValueError("rungs must be rising shares of the steps between 0 and 1")
        if len(set(self.shares)) < 2 or min(self.shares) < 0:
            raise ValueError("shares must have at least two different values, none below 0; a space of one point leaves nothing to search")
        return self


def cache_name(plan: SearchPlan, recipe: str) -> str:
    """Returns the name of the teacher cache of a search, after the pair and what is read of the teacher.

    A recipe's own cache has the recipe's name and holds what the recipe's methods read, which is rarely all that a search reads.

    Args:
        plan: the search.
        recipe: name of its recipe.
    """
    read = dict.fromkeys(_READ[input] for input in INPUTS if input in plan.inputs)
    end = "".join(f"-{plan.settings.get('feature', one) if one == 'maps' else one}" for one in read)
    return recipe[: _NAME_LENGTH - len(end)] + end


def load_plan(path: Path) -> SearchPlan:
    """Reads the YAML file of a search.

    Raises:
        ConfigError: the file is unreadable, or a setting is unknown, of the wrong type or out of bounds.
    """
    values = read_mapping(path, "search", SearchPlan.model_fields)
    try:
        return SearchPlan.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'search'}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()]
        raise ConfigError(f"{path}:\n" + "\n".join(lines)) from error


def plan_path(name: str) -> Path:
    """Returns the file of a search, given as a file or as the name of a shipped one.

    Raises:
        RunError: the name is neither; the message lists the shipped searches.
    """
    folder = share_path("recipes") / "search"
    for candidate in (name, str(folder / name), str(folder / f"{name}.yaml")):
        if (file := named_file(candidate)) is not None:
            return file
    shipped = ", ".join(sorted(one.stem for one in folder.glob("*.yaml"))) or "none"
    raise RunError(f"there is no search '{name}': no such file exists, and the shipped searches are {shipped}.")
