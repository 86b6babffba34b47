"""A plan of a search is read whole, or refused with one message that names the file and what is wrong."""

from pathlib import Path

import pytest

from tests.search.examples import FITNESS, opened, plan
from workbench.errors import ConfigError, RunError
from workbench.files import read_json, write_json
from workbench.methods.detkds.genotype import EXTRA
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.search.identity import identity
from workbench.search.plan import SearchPlan, cache_name, load_plan
from workbench.search.space import positions
from workbench.search.study import SearchStudy

FAULTS = {
    "no YAML": ("name: [", "is not valid YAML"),
    "no mapping": ("- a\n", "is not a search. Expected a mapping with keys such as name, recipe"),
    "an unknown key": ("name: a\nrecipe: shapes\nstep: 3\n", "step: Extra inputs are not permitted"),
    "no recipe": ("name: a\n", "recipe: Field required"),
    "one share": ("name: a\nrecipe: shapes\nshares: [1, 1]\n", "a space of one point leaves nothing to search"),
    "falling rungs": ("name: a\nrecipe: shapes\nrungs: [0.5, 0.2]\n", "rungs must be rising shares"),
    "an entry that no input has": ("name: a\nrecipe: shapes\ninputs: [logits]\nextra: [ssim]\n", "the inputs logits may add pow2"),
    "an entry that is there anyway": ("name: a\nrecipe: shapes\nextra: [giou]\n", "may add no, pow2, ssim"),
    "entries of ours as released": ("name: a\nrecipe: shapes\nmode: official\nextra: [pow2]\n", "extra needs mode corrected"),
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


def test_entries_that_a_plan_adds_are_searched_and_make_it_another_search(tmp_path: Path):
    released, added = opened(tmp_path / "released", inputs=["global", "logits"]), plan(inputs=["global", "logits"], extra=["ssim", "pow2"])
    recipe = load_recipe(recipe_path(added.recipe))
    mine = identity(added, recipe, FITNESS)
    assert mine["extra"] == ["ssim", "pow2"] and mine["space"] != released.state["identity"]["space"]
    with pytest.raises(RunError, match=r"(?s)extra: None, now \['ssim', 'pow2'\].*space: "):
        SearchStudy.open(added, tmp_path / "released", FITNESS, other_code=True)
    search = SearchStudy.open(added, tmp_path / "added", FITNESS, other_code=True)
    assert search.formulas("global").choices["distance"][-1] == "ssim"
    assert all("pow2" in search.formulas(input).choices["t3"] for input in ("global", "logits"))
    assert "ssim" not in search.formulas("logits").choices["distance"]
    before, after = (sum(1 for _ in one.formulas("global").points) for one in (released, search))
    assert (before, after) == (5 * 8 * 14 * 7, 5 * 8 * 15 * 8)


def test_a_search_from_before_there_were_extra_entries_goes_on(tmp_path: Path):
    search = opened(tmp_path / "tried")
    assert "extra" not in search.state["identity"]
    path = tmp_path / "tried" / "study.json"
    state = read_json(path)
    del state["plan"]["extra"]
    write_json(path, state)
    assert SearchStudy.read(tmp_path / "tried").plan.extra == ()
    assert opened(tmp_path / "tried").state["id"] == search.state["id"]


def test_what_a_plan_may_add_is_what_the_tables_have_besides_the_released_ones():
    for input, names in EXTRA.items():
        whole, released = positions(input, True), positions(input)
        assert {name for position in whole for name in whole[position] if name not in released[position]} == set(names)
        assert positions(input, names) == whole


def test_a_cache_is_named_after_the_pair_and_what_a_search_reads_of_the_teacher():
    plan = SearchPlan(name="one", recipe="compare/gfl", inputs=("localization", "global", "instance"))
    assert cache_name(plan, "compare_gfl") == "compare_gfl-maps-boxes"
    backbone = plan.model_copy(update={"inputs": ("global", "logits"), "settings": {"feature": "backbone"}})
    assert cache_name(backbone, "compare_gfl") == "compare_gfl-backbone-logits"
    assert cache_name(plan, "r" * 61) == "r" * 50 + "-maps-boxes", "the longest name of a recipe leaves a name that a cache may have"
