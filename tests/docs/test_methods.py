"""The page of methods says what the code does."""

import pytest

from tests.conftest import ROOT
from workbench.methods.detrdistill.config import DETRDistillConfig
from workbench.methods.registry import METHODS, find_method, method_matrix, pair_matrix

PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def as_table(rows: list[list[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def test_the_matrix_of_methods_and_families_is_the_one_that_the_code_makes():
    shown, made = PAGE.split("<!-- matrix -->\n")[1].split("\n<!-- /matrix -->")[0], as_table(method_matrix())
    assert shown == made, f"docs/methods.md, between the two marks of the matrix, must read\n{made}"


def test_the_matrix_of_kinds_is_the_one_that_the_code_makes():
    shown, made = PAGE.split("<!-- pairs -->\n")[1].split("\n<!-- /pairs -->")[0], as_table(pair_matrix())
    assert shown == made, f"docs/methods.md, between the two marks of the pairs, must read\n{made}"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_section_and_every_term_of_it_is_named_there(name: str):
    sections = [part for part in PAGE.replace("\n### ", "\n## ").split("\n## ") if part.startswith(f"{name}\n")]
    assert len(sections) == 1
    config = find_method(name).Config()  # pyright: ignore[reportCallIssue]
    for term in config.term_names:
        ending = term.partition("_")[2] if name == "d3etr" else term
        assert f"`{term}`" in sections[0] or f"`..._{ending}`" in sections[0] or f"`{ending}`" in sections[0], term


@pytest.mark.parametrize(("profile", "column"), [("paper", 1), ("official_code", 2)])
def test_the_documented_switches_of_detrdistill_are_those_of_its_profiles(profile: str, column: int):
    values = DETRDistillConfig.model_validate({"profile": profile}).model_dump(mode="json")
    table = PAGE.split("Every difference between the two is one switch:\n\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    for row in rows:
        keys = [key.strip().strip("`") for key in row[0].split(",")]
        said = [part.strip() for part in row[column].split(", ")][: len(keys)]
        for key, text in zip(keys, said, strict=True):
            value = values
            for part in key.split("."):
                value = value[part]
            if key == "contrastive":
                assert (value is None) == (text == "null")
            else:
                assert str(value).lower() == text.split(":")[0].split(" ")[0], key
