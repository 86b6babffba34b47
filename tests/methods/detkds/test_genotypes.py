"""The points of the search space: how many there are, where they cannot work, and which of them are the same."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.methods.detkds.canonical import canonical
from workbench.methods.detkds.config import DetKDSConfig
from workbench.methods.detkds.genotype import INPUTS, NAMED, Genotype, Mode, genotypes, refusal

EVERY = [genotype for input in INPUTS for genotype in genotypes(input, added=True)]
modes = pytest.mark.parametrize("mode", get_args(Mode))


@pytest.mark.parametrize("input", ["global", "foreground", "instance"])
def test_a_feature_has_5_x_8_x_14_x_7_formulas_as_released_and_15_x_8_more_choices_with_ours(input):
    assert len(set(genotypes(input))) == 5 * 8 * 14 * 7 == 3920
    assert len(set(genotypes(input, added=True))) == 5 * 8 * 15 * 8 == 4800


def test_logits_have_14_x_7_formulas_and_boxes_the_4_x_4_of_the_figure():
    assert len(set(genotypes("logits"))) == 98 and len(set(genotypes("logits", added=True))) == 15 * 7
    assert len(set(genotypes("localization"))) == 16 and len(set(genotypes("localization", added=True))) == 5 * 4
    assert {(g.t1, g.t2) for input in ("logits", "localization") for g in genotypes(input, added=True)} == {("no", "no")}


@modes
@pytest.mark.parametrize("input", ["global", "foreground", "logits"])
def test_one_image_alone_refuses_each_formula_over_the_batch_and_says_so(input, mode: Mode):
    refused = {genotype: reason for genotype in genotypes(input) if (reason := refusal(genotype, mode, rows=1))}
    over = {"natt", "norm_N", "softmax_N", "logsoftmax_N", "cor"}
    wanted = {g for g in genotypes(input) if over & set(g.genes) or (g.t2, g.t3) == ("local_s1", "batchnorm")}
    assert set(refused) == wanted
    assert all("needs a batch of" in reason and reason.endswith("this one has 1") for reason in refused.values())
    assert refusal(Genotype(input, t3="norm_N"), mode, 1) == "norm_N needs a batch of 2 images or more, and this one has 1"


@modes
def test_a_correlation_over_two_images_is_refused_because_it_is_1_or_minus_1(mode: Mode):
    assert "batch of 3 images" in str(refusal(Genotype("global", distance="cor"), mode, 2))
    assert refusal(Genotype("global", distance="cor"), mode, 3) is None


@pytest.mark.parametrize(("genotype", "mode", "reason"), [
    (Genotype("localization", distance="iou"), "official", "the released code takes the boxes and ignores them"),
    (Genotype("global", t3="pow2"), "official", "the released tables have no pow2"),
    (Genotype("instance", t2="local_s2"), "official", "pools the boxes behind the chain, and local_s2 has cut the map into patches"),
    (Genotype("instance", t3="channel"), "official", "pools the boxes behind the chain, and channel leaves no map"),
    (Genotype("global", t3="batch", distance="ssim"), "corrected", "ssim compares maps, and batch leaves none"),
    (Genotype("logits", distance="ssim"), "corrected", "ssim compares maps, and there are none"),
    (Genotype("global", distance="giou"), "corrected", "giou compares boxes"),
    (Genotype("localization", t3="norm_N", distance="iou"), "corrected", "norm_N divides the corners of a box by different numbers"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_reason(genotype: Genotype, mode: Mode, reason: str):
    assert reason in str(refusal(genotype, mode))
    assert refusal(genotype, "corrected") is None or mode == "corrected"


@pytest.mark.parametrize(("genotype", "least"), [
    (Genotype("logits", t3="softmax_C"), 2), (Genotype("logits", distance="cos"), 2), (Genotype("logits", distance="pear"), 3),
    (Genotype("logits", distance="kl"), 2), (Genotype("logits", t3="norm_HW"), 1), (Genotype("logits", t3="batch", distance="cos"), 1),
])  # fmt: skip
def test_too_few_classes_are_refused(genotype: Genotype, least: int):
    assert refusal(genotype, "corrected", channels=least) is None
    if least > 1:
        assert f"an axis of {least} classes or more, and this detector has {least - 1}" in str(
            refusal(genotype, "corrected", None, least - 1)
        )


@modes
@given(genotype=st.sampled_from(EVERY))
def test_the_canonical_form_is_canonical_of_the_same_input_and_legal_where_the_formula_is(mode: Mode, genotype: Genotype):
    form = canonical(genotype, mode)
    assert form.input == genotype.input and canonical(form, mode) == form
    if refusal(genotype, mode) is None:
        assert refusal(form, mode) is None
        assert form.least_rows <= genotype.least_rows


CANONICAL = {
    ("global", "corrected"): 1994, ("foreground", "corrected"): 2024, ("instance", "corrected"): 1994, ("logits", "corrected"): 66,
    ("global", "official"): 2296, ("foreground", "official"): 378, ("instance", "official"): 3311, ("logits", "official"): 67,
    ("localization", "corrected"): 16,
}  # fmt: skip


@pytest.mark.parametrize(("input", "mode"), CANONICAL)
def test_the_number_of_canonical_formulas_is_known(input, mode: Mode):
    assert len({canonical(genotype, mode) for genotype in genotypes(input)}) == CANONICAL[input, mode]


@pytest.mark.parametrize(("one", "other"), [
    (("no", "scale_r1", "no", "l1"), ("no", "no", "no", "l1")),
    (("mask", "local_s4", "channel", "l1"), ("mask", "no", "no", "l1")),
    (("satt", "no", "norm_C", "kl"), ("no", "no", "norm_C", "kl")),
    (("no", "no", "norm_C", "l2"), ("no", "no", "no", "cos")),
    (("satt", "scale", "min_max_normalize", "pear"), ("no", "no", "no", "pear")),
    (("no", "local_s2", "logsoftmax_N", "kl"), ("no", "no", "softmax_N", "kl")),
    (("natt", "no", "softmax_C", "smooth_l1"), ("natt", "no", "softmax_C", "l2")),
])  # fmt: skip
def test_two_names_of_one_formula_have_one_form(one, other):
    assert (
        canonical(Genotype("global", *one), "corrected") == canonical(Genotype("global", *other), "corrected") == Genotype("global", *other)
    )


def test_every_named_formula_works_in_the_mode_that_it_was_made_for_and_is_written_as_a_configuration():
    for name, genotype in NAMED.items():
        mode: Mode = "official" if name.startswith("released") else "corrected"
        assert refusal(genotype, mode, rows=2, channels=3) is None
        config = DetKDSConfig.of({genotype: 2.0}, mode=mode)
        assert config.genotypes == {genotype.input: genotype} and next(iter(config.formulas.values())).weight == 2.0
        assert DetKDSConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_formula_is_written_as_it_is_read():
    assert str(NAMED["released_global"]) == "global: catt > scale_r2 > norm_N, l1"
    assert str(NAMED["released_logits_faster_rcnn"]) == "logits: softmax_C, pear"
