"""A plan of a search is read whole, or refused with one message that names the file and what is wrong."""

from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.search.plan import load_plan

FAULTS = {
    "no YAML": ("name: [", "is not valid YAML"),
    "no mapping": ("- a\n", "is not a search. Expected a mapping with keys such as name, recipe"),
    "an unknown key": ("name: a\nrecipe: shapes\nstep: 3\n", "step: Extra inputs are not permitted"),
    "no recipe": ("name: a\n", "recipe: Field required"),
    "one share": ("name: a\nrecipe: shapes\nshares: [1, 1]\n", "a space of one point leaves nothing to search"),
    "falling rungs": ("name: a\nrecipe: shapes\nrungs: [0.5, 0.2]\n", "rungs must be rising shares"),
    "an input twice": ("name: a\nrecipe: shapes\ninputs: [global, global]\n", "each once"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_plan_is_refused_by_name(text: str, message: str, tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_plan(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_a_plan_that_is_not_there_cannot_be_read(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot read search .*none\.yaml: No such file"):
        load_plan(tmp_path / "none.yaml")
