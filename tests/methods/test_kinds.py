"""Every method between detectors of every kind: refused by what the pair lacks, or one step with finite terms and gradients."""

import copy
from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from tests.examples import batch_of, images_of
from tests.families import tiny
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector, kind_of
from workbench.detectors.registry import FAMILIES
from workbench.errors import IncompatibleError
from workbench.methods.context import Progress, TeacherAnswer, make_pairing
from workbench.methods.method import BaseMethodConfig
from workbench.methods.registry import METHODS, build_method, find_method, method_matrix, pair_matrix, served_names
from workbench.training.step import DistillStep, weighted_sum

KINDS = {"query": "d_fine", "dense": "gfl", "two-stage": "faster_rcnn"}
PAIRS = list(product(KINDS, KINDS))  # teacher, student
UNLIKE = [
    ("fcos", "deformable_detr"),
    ("deformable_detr", "fcos"),
    ("adamixer", "fcos"),
    ("faster_rcnn", "fcos"),
    ("faster_rcnn", "deformable_detr"),
    ("mask_rcnn", "fcos"),
    ("mask_rcnn", "deformable_detr"),
    ("fcos", "mask_rcnn"),
]
TWO_STAGE = [("mask_rcnn", "mask_rcnn"), ("faster_rcnn", "mask_rcnn"), ("mask_rcnn", "faster_rcnn")]
SIZES = ((64, 96), (64, 80))
FORMS: dict[str, tuple[str, Mapping[str, Any]]] = {name: (name, {}) for name in METHODS} | {
    f"{part} of {name}": (name, settings) for name in METHODS for part, settings in find_method(name).Config.alone.items()
}


@cache
def shared(name: str, seed: int) -> Detector:
    """A tiny detector; tests that train it take a copy."""
    return tiny(name, seed)


def config_of(form: str) -> BaseMethodConfig:
    name, settings = FORMS[form]
    return find_method(name).Config.model_validate({"method": name} | dict(settings))


def missing(form: str, student: Detector, teacher: Detector) -> tuple[str, set[str]] | None:
    """The first side that lacks something the form needs, or both if they have it in different forms, and what that is."""
    config = config_of(form)
    for side, detector, needs in (("student", student, config.needs_student), ("teacher", teacher, config.needs_teacher)):
        lacks = {need for need in needs if not any(part in detector.provides for part in need.split("|"))}
        if lacks:
            return side, lacks
    apart = {need for need in config.needs if not any(part in student.provides & teacher.provides for part in need.split("|"))}
    return ("both", apart) if apart else None


def step_of(form: str, student: Detector, teacher: Detector) -> tuple[DistillStep, dict[str, float]]:
    """One step's module and the weights of the method's terms."""
    pairing = make_pairing(student, teacher, None)
    torch.manual_seed(0)
    method = build_method(config_of(form), student, teacher, pairing)
    return DistillStep(student, [method], pairing, teacher), {f"{method.name}.{t}": method.weight_of(t) for t in method.term_names}


def targets_of(*counts: int) -> TargetBatch:
    return batch_of(counts, 3, torch.Generator().manual_seed(2))


@cache
def answer_of(name: str) -> TeacherAnswer:
    teacher = shared(name, 1)
    with torch.no_grad(), teacher.collecting_attentions("attentions" in teacher.provides):
        return TeacherAnswer(output=teacher(*images_of(*SIZES)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kinds", PAIRS, ids=lambda pair: " to ".join(pair))
def test_a_pair_of_kinds_is_refused_by_what_it_lacks_or_taught_with_finite_terms_and_gradients(form: str, kinds: tuple[str, str]):
    teacher, student = shared(KINDS[kinds[0]], 1), shared(KINDS[kinds[1]], 2)
    name = FORMS[form][0]
    lacks = missing(form, student, teacher)
    if lacks is not None:
        side, needs = lacks
        with pytest.raises(IncompatibleError) as refused:
            step_of(form, student, teacher)
        message = str(refused.value)
        assert message.startswith(f"method '{name}' needs ")
        assert ("from both sides" if side == "both" else f"which the {side} ") in message
        assert all(need.replace("|", " or ") in message for need in needs)
        return
    # random boxes may miss every target, and then no query has a quality and no region a query
    targets, parameters = targets_of(4, 3), [p for p in student.parameters() if p.requires_grad]
    step, weights = step_of(form, student, teacher)
    progress = Progress(step=0, epoch=0, num_boxes=7.0)
    terms = step(*images_of(*SIZES), targets, progress=progress, teacher=answer_of(KINDS[kinds[0]]))
    found = terms.distillation
    assert set(found) <= set(weights) and set(weights) - set(found) <= {"ld.valuable"}
    assert all(torch.isfinite(value) for value in (terms.detection | found).values())
    total = torch.stack(list(found.values())).sum()
    gradients = [g for g in torch.autograd.grad(total, parameters, allow_unused=True) if g is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients) and any(g.any() for g in gradients)
    assert all(p.grad is None for p in teacher.parameters())


def forms_that_train(pair: tuple[str, str]) -> list[str]:
    """Trains some steps with every method that serves a pair, and returns which these are."""
    teacher, images, targets = shared(pair[0], 1), images_of(*SIZES), targets_of(2, 1)
    answer, served = answer_of(pair[0]), []
    for form in FORMS:
        student = copy.deepcopy(shared(pair[1], 2)).train()
        if missing(form, student, teacher) is not None:
            continue
        step, weights = step_of(form, student, teacher)
        before = [p.detach().clone() for p in student.parameters()]
        optimizer = torch.optim.SGD(step.parameters(), lr=1e-3)
        for number in range(3):
            terms = step(*images, targets, progress=Progress(step=number, epoch=0, num_boxes=3.0), teacher=answer)
            total = weighted_sum(terms, student.loss_weights, weights)
            assert torch.isfinite(total), (form, number)
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(step.parameters(), 1.0)
            optimizer.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True)), form
        served.append(form)
    return served


@pytest.mark.parametrize("pair", UNLIKE, ids=lambda pair: " to ".join(pair))
def test_an_unlike_pair_trains_some_steps_with_every_method_that_serves_it(pair: tuple[str, str]):
    features = ["fitnet", "fgd", "mgd", "fkd", "fgfi", "cwd", "pkd", "detkds", "unmasked features of detrdistill", "memory of clockdistill"]
    masked = ["features of detrdistill"] if "queries" in shared(pair[0], 1).provides else []
    assert sorted(forms_that_train(pair)) == sorted(features + masked)


@pytest.mark.parametrize("pair", TWO_STAGE, ids=lambda pair: " to ".join(pair))
def test_every_method_that_serves_two_faster_rcnns_trains_a_pair_with_a_mask_rcnn(pair: tuple[str, str]):
    served = [form for form in FORMS if missing(form, shared("faster_rcnn", 2), shared("faster_rcnn", 1)) is None]
    assert {"fgd", "mgd", "cwd", "pkd", "detkds"} <= set(served) and forms_that_train(pair) == served


@pytest.mark.parametrize(("pair", "layer_map"), [
    (("fcos", "deformable_detr"), ((0,), (0,))), (("deformable_detr", "fcos"), ((1,),)), (("fcos", "fcos"), ((0,),)),
    (("faster_rcnn", "deformable_detr"), ((0,), (0,))), (("deformable_detr", "faster_rcnn"), ((1,),)),
    (("deformable_detr", "deformable_detr"), ((0,), (1,))),
])  # fmt: skip
def test_what_has_no_decoder_layers_learns_from_the_last_and_teaches_all_of_them(pair: tuple[str, str], layer_map: Any):
    teacher, student = shared(pair[0], 1), shared(pair[1], 2)
    assert make_pairing(student, teacher, None).layer_map == layer_map


def test_a_refusal_says_which_part_of_the_method_serves_the_pair():
    student, teacher = shared("fcos", 1), shared("deformable_detr", 1)
    with pytest.raises(IncompatibleError, match=r"Only its features can serve this pair: set \{logits: null, assignment: null\}\."):
        step_of("detrdistill", student, teacher)
    with pytest.raises(IncompatibleError, match=r"Only its memory can serve this pair: set \{logits: null\}\."):
        step_of("clockdistill", student, teacher)
    with pytest.raises(IncompatibleError, match=r"does not provide\.$"):
        step_of("kd_detr", student, teacher)


def test_a_rule_that_chooses_among_queries_needs_a_teacher_that_has_some():
    student, teacher = shared("fcos", 1), shared("fcos", 2)
    settings = find_method("detrdistill").Config.alone["unmasked features"]
    chosen = find_method("detrdistill").Config.model_validate({"method": "detrdistill", "selection": {"rule": "top_k"}} | dict(settings))
    with pytest.raises(IncompatibleError, match=r"needs queries, which the teacher \(fcos\)"):
        build_method(chosen, student, teacher, make_pairing(student, teacher, None))


def test_the_matrix_of_kinds_says_what_the_families_of_these_kinds_say():
    header, *rows = pair_matrix()
    kinds = {name: kind_of(family.detector.provides) for name, family in FAMILIES.items()}
    assert header[1:] == [f"{a} → {b}" for a, b in product(("query", "dense", "two-stage"), repeat=2)]
    for name, *cells in rows:
        method = find_method(name)
        for pair, cell in zip(header[1:], cells, strict=True):
            teachers, students = ([f.detector.provides for n, f in FAMILIES.items() if kinds[n] == kind] for kind in pair.split(" → "))
            lacks = [method.lacks(own, other) for other, own in product(teachers, students)]
            if cell == "yes":
                assert not any(lacks)
            elif cell.endswith(" alone"):
                part = cell.removesuffix(" alone")
                assert all(lacks) and not any(method.lacks(own, other, part) for other, own in product(teachers, students))
            elif cell == "some":
                assert any(lacks) and not all(lacks)
            else:
                assert all(set(cell.split(", ")) <= set(found) for found in lacks)


def test_a_family_without_queries_is_listed_with_the_part_that_serves_it():
    families, *rows = method_matrix()
    cells = {row[0]: row[families.index("fcos")] for row in rows}
    assert cells["fgd"] == "yes" and cells["detrdistill"] == "unmasked features alone" and cells["clockdistill"] == "memory alone"
    assert cells["kd_detr"] == "decode, queries"
    assert served_names(["a", "b", "c"], ["yes", "memory alone", "decode"]) == "a, b (memory alone)"
    assert served_names(["a", "b"], ["yes", "yes"]) == "all" and served_names(["a"], ["decode"]) == "none"
