"""Gate R0: what is refused before training and why, and that the rules of sameness hold on the probe."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.flows import command
from workbench.methods.detkds import genotype as names
from workbench.methods.detkds.canonical import canonical
from workbench.methods.detkds.genotype import NAMED, Genotype, Mode, genotypes, refusal
from workbench.search.space import SAME, Probe, examine, gate, positions, survey

SPACES = [(input, mode) for input in ("global", "foreground", "logits") for mode in ("official", "corrected")]
SPACES += [("instance", "official"), ("localization", "corrected")]


@pytest.mark.parametrize(("genotype", "mode", "images", "reason"), [
    (Genotype("global", t3="norm_N"), "corrected", 1, "norm_N needs a batch of 2 images"),
    (Genotype("global", t2="local_s1", t3="softmax_HW"), "corrected", 2, "does not depend on the student"),
    (Genotype("global", distance="cos"), "official", 2, "another student has a smaller loss"),
    (Genotype("global", distance="kl"), "official", 2, "not finite"),
    (Genotype("logits", t3="softmax_C", distance="kl"), "official", 2, "another student has a smaller loss"),
])  # fmt: skip
def test_the_gate_says_why_a_formula_cannot_teach(genotype: Genotype, mode: Mode, images: int, reason: str):
    assert reason in str(gate(genotype, mode, images))
    assert gate(Genotype("global"), mode, images) is None


def test_every_named_formula_passes_the_gate():
    assert {name: gate(g, "corrected", 2) for name, g in NAMED.items()} == dict.fromkeys(NAMED)
    released = {name: g for name, g in NAMED.items() if name.startswith("released")}
    assert {name: gate(g, "official", 2) for name, g in released.items()} == dict.fromkeys(released)


@pytest.mark.parametrize(("input", "mode"), SPACES)
def test_a_formula_and_its_canonical_form_have_one_gradient(input, mode: Mode):
    """The direction of the gradient on a probe of three images; every seventh formula of a large space, which meets all pairs of genes."""
    probe, found = Probe(input, mode, 3), {}
    every = list(genotypes(input, added=True))
    for genotype in every[:: 7 if len(every) > 200 else 1]:
        form = canonical(genotype, mode)
        if form == genotype:
            continue
        one, other = (found.setdefault(g, examine(g, probe)) for g in (genotype, form))
        if one.outcome == "illegal":
            continue
        assert one.outcome == other.outcome, genotype
        if one.fingerprint is not None and other.fingerprint is not None:
            assert float((one.fingerprint - other.fingerprint).abs().max()) < SAME, genotype
    assert len(found) > 10 or input == "localization"


def test_formulas_that_differ_have_gradients_that_differ():
    probe = Probe("global", "corrected", 3)
    prints = [examine(g, probe).fingerprint for name, g in NAMED.items() if g.input == "global"]
    assert len(prints) == 5
    for place, one in enumerate(prints):
        for other in prints[:place]:
            assert one is not None and other is not None and float((one - other).abs().max()) > 100 * SAME


@pytest.mark.parametrize("mode", ["official", "corrected"])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_the_survey_of_logits_adds_up(mode: Mode, images: int):
    found = survey("logits", mode, images)
    assert found.formulas == 98 and found.alone == 32
    assert found.outcomes["illegal"] == {1: 32, 2: 14, 4: 0}[images]
    assert 0 < found.distinct <= found.canonical <= found.outcomes["works"] and found.canonical <= found.different
    if mode == "corrected":
        assert found.outcomes["not finite"] == found.outcomes["not minimal"] == 0
    else:
        assert found.outcomes["not minimal"] > 10 and found.outcomes["not finite"] > 0


def test_no_corrected_formula_of_features_is_worse_at_the_teacher_than_elsewhere_nor_infinite():
    probe = Probe("global", "corrected", 3)
    found = {genotype: examine(genotype, probe).outcome for genotype in list(genotypes("global", added=True))[::11]}
    assert set(found.values()) == {"works", "illegal", "no gradient"}
    assert all(
        g.t2 == "local_s1" and (g.t3.endswith("HW") or g.t3 == "channel") for g, outcome in found.items() if outcome == "no gradient"
    )
    assert all(g.distance == "ssim" for g, outcome in found.items() if outcome == "illegal")


def test_the_page_of_the_search_counts_as_the_code_does():
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    for line in page.split("| input | formulas as released |")[1].splitlines()[2:7]:
        name, total, corrected, official = (cell.strip() for cell in line.strip("|").split("|"))
        input: Any = name.strip("`")
        every = list(genotypes(input))
        assert f"{len(every):,}" in total
        assert corrected == f"{len({canonical(g, 'corrected') for g in every}):,}"
        assert official == f"{len({canonical(g, 'official') for g in every}):,}" or official.startswith("none")
    refused = [sum(refusal(g, "corrected", images) is not None for g in genotypes("global")) for images in (2, 1)]
    assert "{} of the 3,920 formulas of whole maps are illegal, and {:,} with one".format(*refused) in page


def test_the_probe_is_always_the_same_and_disturbs_no_random_stream():
    before = torch.get_rng_state()
    one, other = Probe("foreground", "corrected", 3), Probe("foreground", "corrected", 3)
    assert torch.equal(one.student, other.student) and torch.equal(one.directions, other.directions)
    assert torch.equal(before, torch.get_rng_state())


def test_the_table_of_positions_is_that_of_the_paper():
    assert [len(choices) for choices in positions("instance").values()] == [5, 8, 14, 7]
    assert [len(choices) for choices in positions("logits").values()] == [14, 7]
    assert [len(choices) for choices in positions("localization").values()] == [4, 4]


def test_the_verb_shows_positions_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names, "INPUTS", ("logits", "localization"))
    code, out, err = command("search", "space", "--images", "4", "--json", str(tmp_path / "space.json"))
    assert code == 0, err
    assert "t3: no, batch, channel, norm_HW" in out and "(ours besides: pow2)" in out and "with 4 images in a batch" in out
    written = json.loads((tmp_path / "space.json").read_text())
    rows = {(row["input"], row["mode"]): row for row in written["formulas"]}
    assert rows["logits", "corrected"]["formulas"] == 98 and rows["localization", "official"]["works"] == 0
    assert written["positions"]["localization"]["with ours"]["t3"][0] == "no"


def test_the_verb_counts_entries_that_a_plan_adds_and_refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names, "INPUTS", ("localization",))
    code, out, err = command("search", "space", "--extra", "no", "--json", str(tmp_path / "space.json"))
    assert code == 0, err
    assert "with no, with 2 images" in out and "ours besides" not in out
    written = json.loads((tmp_path / "space.json").read_text())
    assert {row["formulas"] for row in written["formulas"]} == {5 * 4} and written["extra"] == ["no"]
    code, out, err = command("search", "space", "--extra", "drop")
    assert code == 2 and "--extra has no drop. Entries that a plan may add: no, pow2, ssim." in err
