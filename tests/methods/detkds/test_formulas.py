"""Every transformation, every distance and every formula against loops over the entries that count."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.detkds import loops
from tests.methods.detkds.loops import Entries
from workbench.methods.detkds import ssim
from workbench.methods.detkds.distances import CORRECTED, RELEASED, formula_loss
from workbench.methods.detkds.genotype import Distance, First, Genotype, Mode, Second, Third, genotypes, refusal
from workbench.methods.detkds.knowledge import Knowledge
from workbench.methods.detkds.operations import FIRST, SECOND, THIRD

SHAPES = [(2, 3, 5, 7), (1, 3, 5, 7), (3, 2, 4, 8), (1, 4, 1, 1), (2, 3, 5), (1, 3, 5), (2, 4), (1, 4)]
ALL = [genotype for input in ("global", "logits") for genotype in genotypes(input, added=True)]
BOXES = list(genotypes("localization", added=True))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(values: torch.Tensor, seed: int = 0) -> np.ndarray:
    """The uniform numbers that a mask of these values is made of."""
    return torch.rand((len(values), 1, *values.shape[2:]), generator=torch.Generator().manual_seed(seed)).numpy()


def padding_of(shape: tuple[int, ...]) -> torch.Tensor:
    """The last columns of the last image are padding; those of vectors do not exist."""
    inside = torch.ones((shape[0], 1, *shape[2:]), dtype=torch.bool)
    if len(shape) > 2 and shape[0] > 1:
        inside[-1, ..., -2:] = False
    return inside


def check(found: Knowledge, wanted: Entries) -> None:
    assert found.values.shape == wanted.values.shape
    counts = np.ones(wanted.counts.shape, bool) if found.inside is None else found.inside.expand_as(found.values).numpy()
    np.testing.assert_array_equal(counts, wanted.counts)
    np.testing.assert_allclose(found.values.numpy(), wanted.values, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_transformation_is_its_loop_at_every_rank(shape: tuple[int, ...], padded: bool):
    values = random(*shape)
    inside = padding_of(shape) if padded else None
    given = Knowledge(values if inside is None else values.masked_fill(~inside, 0.0), inside)
    entries = Entries.of(values.numpy(), None if inside is None else inside.numpy())
    for name in FIRST:
        check(FIRST[name](given, torch.Generator().manual_seed(0)), loops.first(name, entries, drawn(values)))
    for name in SECOND:
        check(SECOND[name](given, not padded), loops.second(name, entries, border=not padded))
    for name in THIRD:
        check(THIRD[name](given), loops.third(name, entries))


@pytest.mark.parametrize("shape", [(2, 6, 9, 13), (1, 6, 9, 13), (3, 5, 7), (2, 9)], ids=str)
def test_single_precision_keeps_six_digits_of_the_released_transformations(shape: tuple[int, ...]):
    values = random(*shape).float()
    entries = Entries.of(values.numpy().astype(np.float64))
    found = [FIRST[name](Knowledge(values), torch.Generator().manual_seed(0)).values for name in FIRST]
    wanted = [loops.first(name, entries, drawn(values)).values for name in FIRST]
    found += [SECOND[name](Knowledge(values), True).values for name in SECOND] + [THIRD[name](Knowledge(values)).values for name in THIRD]
    wanted += [loops.second(name, entries, border=True).values for name in SECOND] + [loops.third(name, entries).values for name in THIRD]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=1e-6 * max(1.0, np.abs(other).max()))


def test_the_tables_hold_what_the_genes_name():
    assert [tuple(FIRST), tuple(SECOND), tuple(THIRD)] == [get_args(First), get_args(Second), get_args(Third)]
    assert tuple(RELEASED) == tuple(name for name in get_args(Distance) if name not in ("ssim", "iou", "giou"))
    assert {*CORRECTED, "kl"} == set(get_args(Distance))  # a divergence is computed with its chain


def loss_in_loops(genotype: Genotype, student: torch.Tensor, teacher: torch.Tensor, inside: torch.Tensor | None, mode: Mode) -> float:
    """The loss once more; in official mode the two masks are drawn one after the other."""
    generator = torch.Generator().manual_seed(0)
    begun: list[Entries] = []
    for values in (student, teacher):
        if mode == "corrected":
            generator = torch.Generator().manual_seed(0)
        uniform = np.zeros(1)
        if genotype.t1 == "mask" and values.ndim == 4:
            uniform = torch.rand((len(values), 1, *values.shape[2:]), generator=generator).numpy()
        entries = Entries.of(values.numpy(), None if inside is None else inside.numpy())
        begun.append(loops.second(genotype.t2, loops.first(genotype.t1, entries, uniform), border=mode == "official"))
    if genotype.distance == "kl" and mode == "corrected":
        return float(np.mean(loops.divergence(genotype.t3, *begun)))
    done = [loops.third(genotype.t3, entries) for entries in begun]
    if mode == "official":
        return loops.released_distance(genotype.distance, done[0].values, done[1].values)
    return loops.corrected_distance(genotype.distance, *done)


@pytest.mark.parametrize("mode", get_args(Mode))
@settings(max_examples=250)
@given(data=st.data())
def test_every_formula_is_its_loop(mode: Mode, data: st.DataObject):
    genotype = data.draw(st.sampled_from(ALL))
    # a map of one cell is constant behind many formulas, so that some are 0 / 0
    shapes = [shape for shape in SHAPES if shape[-1] > 1 and (len(shape) == 4 or genotype.input == "logits")]
    shape = data.draw(st.sampled_from(shapes))
    seed = data.draw(st.integers(0, 50))
    if refusal(genotype, mode, shape[0], shape[1]) or (genotype.distance == "ssim" and len(shape) < 4):
        return
    student, teacher = random(*shape, seed=seed), random(*shape, seed=seed + 100)
    if genotype.input == "logits":
        student, teacher = student.sigmoid(), teacher.sigmoid()
    inside = padding_of(shape) if mode == "corrected" and data.draw(st.booleans()) else None
    sides = [Knowledge(values if inside is None else values.masked_fill(~inside, 0.0), inside) for values in (student, teacher)]
    found = float(formula_loss(genotype, sides[0], sides[1], mode))
    wanted = loss_in_loops(genotype, student, teacher, inside, mode)
    if math.isfinite(wanted):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9), genotype
    else:
        assert not math.isfinite(found), genotype


@pytest.mark.parametrize("genotype", BOXES, ids=str)
def test_every_formula_of_boxes_is_its_loop_and_each_box_counts_by_its_weight(genotype: Genotype):
    if refusal(genotype, "corrected"):
        return
    corners = [random(6, 4, seed=seed).sigmoid() for seed in (1, 2)]
    student, teacher = (torch.cat([0.6 * values[:, :2], 0.6 * values[:, :2] + 0.1 + 0.3 * values[:, 2:]], 1) for values in corners)
    weight = random(6, seed=3).sigmoid()
    found = float(formula_loss(genotype, Knowledge(student), Knowledge(teacher), "corrected", weight=weight))
    begun = [Entries.of(values.numpy()) for values in (student, teacher)]
    own, other = (loops.third(genotype.t3, entries).values for entries in begun)
    if genotype.distance == "kl":
        rows = np.array(loops.divergence(genotype.t3, *begun))
        wanted = rows.mean() if genotype.t3 == "norm_N" else (rows * weight.numpy()).sum() / weight.sum().item()
    else:
        rows = np.abs(own - other).mean(1)
        if genotype.distance != "l1":
            rows = np.array([1 - loops.overlaps(a, b)[genotype.distance == "giou"] for a, b in zip(own, other, strict=True)])
        wanted = (rows * weight.numpy()).sum() / weight.sum().item()
    assert found == pytest.approx(float(wanted), rel=1e-9)


@settings(max_examples=300)
@given(data=st.data())
def test_in_corrected_mode_no_student_has_a_smaller_loss_than_one_that_equals_its_teacher(data: st.DataObject):
    genotype = data.draw(st.sampled_from([*ALL, *BOXES]))
    shape = (
        (6, 4) if genotype.input == "localization" else data.draw(st.sampled_from([(3, 3, 5, 7), (2, 3, 5, 7), (1, 3, 5, 7), (4, 2, 4, 8)]))
    )
    seed = data.draw(st.integers(0, 1000))
    if refusal(genotype, "corrected", None if genotype.input == "localization" else shape[0], shape[1]):
        return
    teacher, noise = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    student = data.draw(st.sampled_from([noise, teacher + 0.01 * noise, 2 * teacher, teacher + 1, -teacher, torch.zeros_like(teacher)]))
    if genotype.input in ("logits", "localization"):
        student, teacher = student.sigmoid(), teacher.sigmoid()
    inside = padding_of(shape) if data.draw(st.booleans()) and genotype.input != "localization" else None
    weight = random(6, seed=seed).sigmoid() if genotype.input == "localization" else None

    def loss(values: torch.Tensor) -> float:
        sides = [Knowledge(one if inside is None else one.masked_fill(~inside, 0.0), inside) for one in (values, teacher)]
        return float(formula_loss(genotype, sides[0], sides[1], "corrected", seed, weight))

    least, other = loss(teacher), loss(student)
    assert math.isfinite(least) and math.isfinite(other)
    assert other >= least - 1e-9, genotype


@settings(max_examples=200)
@given(data=st.data())
def test_what_padding_holds_reaches_no_corrected_loss_and_no_gradient(data: st.DataObject):
    genotype = data.draw(st.sampled_from(ALL))
    if refusal(genotype, "corrected", 3):
        return
    inside = padding_of((3, 3, 5, 7))
    teacher = random(3, 3, 5, 7, seed=1).masked_fill(~inside, 0.0)
    student = random(3, 3, 5, 7, seed=2).masked_fill(~inside, 0.0).requires_grad_()
    loss = formula_loss(genotype, Knowledge(student, inside), Knowledge(teacher, inside), "corrected")
    # more padding around the same images
    wider = [torch.nn.functional.pad(values, (0, 1, 0, 3)) for values in (student, teacher, inside.double())]
    sides = [Knowledge(values, wider[2] > 0) for values in wider[:2]]
    # a mask of random cells is drawn for the whole map, and windows of pooling and patches begin at its first cell
    if genotype.t1 != "mask":
        found = float(formula_loss(genotype, sides[0], sides[1], "corrected").detach())
        assert found == pytest.approx(float(loss.detach()), rel=1e-6, abs=1e-12), genotype
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, student, allow_unused=True)
        assert gradient is None or torch.isfinite(gradient).all(), genotype


def test_a_released_mask_hides_other_cells_of_each_side_and_a_corrected_one_the_same():
    values = random(2, 3, 16, 16)
    genotype = Genotype("global", t1="mask", distance="l1")
    assert float(formula_loss(genotype, Knowledge(values), Knowledge(values), "official")) > 0.1
    assert float(formula_loss(genotype, Knowledge(values), Knowledge(values), "official", tied=True)) == 0
    assert float(formula_loss(genotype, Knowledge(values), Knowledge(values), "corrected")) == 0
    kept = FIRST["mask"](Knowledge(torch.ones(8, 1, 64, 64)), torch.Generator().manual_seed(0)).values.mean()
    assert float(kept) == pytest.approx(0.35, abs=0.01)


def test_the_released_cosine_rewards_a_student_for_turning_away_and_the_corrected_one_does_not():
    teacher = random(2, 3, 5, 7)
    genotype = Genotype("global", distance="cos")
    released = [float(formula_loss(genotype, Knowledge(sign * teacher), Knowledge(teacher), "official")) for sign in (1, -1)]
    corrected = [float(formula_loss(genotype, Knowledge(sign * teacher), Knowledge(teacher), "corrected")) for sign in (1, -1)]
    assert released == pytest.approx([1, -1]) and corrected == pytest.approx([0, 2])


@pytest.mark.parametrize("mask", ["none", "of images", "of all", "of channels"])
@pytest.mark.parametrize("what", ["ssim", "batchnorm"])
def test_gradients_that_are_written_by_hand_are_those_of_small_differences(what: str, mask: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ssim, "_CELLS", 2 * 7 * 13)  # two maps together, and one is left
    student, teacher = random(2, 3, 7, 13), random(2, 3, 7, 13, seed=1)
    inside = None if mask == "none" else padding_of((2, 3, 7, 13))
    if mask == "of all":
        inside = inside[1:]
    if mask == "of channels":
        inside = inside.repeat(1, 3, 1, 1)
        inside[0, 1, 2:4] = False
    weights = random(2, 3, 7, 13, seed=2)

    def loss(values: torch.Tensor) -> torch.Tensor:
        sides = [Knowledge(side if inside is None else side.masked_fill(~inside, 0.0), inside) for side in (values, teacher)]
        return CORRECTED["ssim"](*sides, None) if what == "ssim" else (THIRD["batchnorm"](sides[0]).values * weights).sum()

    assert torch.autograd.gradcheck(loss, student.requires_grad_(), atol=1e-7)


def test_similarity_is_the_same_however_many_maps_are_computed_together(monkeypatch: pytest.MonkeyPatch):
    found: list[tuple[float, torch.Tensor]] = []
    for cells in (1, 3 * 63, 2**18):
        monkeypatch.setattr(ssim, "_CELLS", cells)
        student = random(2, 5, 7, 9).float().contiguous(memory_format=torch.channels_last).requires_grad_()
        loss = CORRECTED["ssim"](Knowledge(student), Knowledge(random(2, 5, 7, 9, seed=1).float()), None)
        loss.backward()
        assert student.grad is not None
        found.append((float(loss.detach()), student.grad))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-7, rtol=1e-5)


def test_a_vector_of_zeros_has_no_gradient_instead_of_a_huge_one():
    for name, distance in (("norm_C", "l1"), ("no", "cos"), ("no", "pear")):
        student = torch.zeros(2, 3, 5, 7).requires_grad_()
        loss = formula_loss(
            Genotype("global", t3=name, distance=distance), Knowledge(student), Knowledge(torch.ones(2, 3, 5, 7)), "corrected"
        )
        loss.backward()
        assert student.grad is not None and (student.grad == 0).all()
