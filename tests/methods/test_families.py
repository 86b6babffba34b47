"""What holds for the methods that speak of queries, on every family: section by section what a user would check first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import families
from tests.examples import batch_of, images_of, random_targets
from tests.families import QUERY_NAMES
from tests.methods.pairs import step_context
from workbench.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import Queries, QueryOutput
from workbench.detectors.query_detector import QueryDetector
from workbench.errors import IncompatibleError
from workbench.matching import match_targets
from workbench.methods.context import MethodContext, make_pairing
from workbench.methods.method import Method
from workbench.methods.registry import METHODS, build_method, find_method

SIZES = ((64, 96), (64, 80))
BOTH = ("detrdistill", "clockdistill")
PROFILES = ("paper", "official_code")


def tiny(name: str, seed: int = 0, **changes: Any) -> QueryDetector:
    detector = families.tiny(name, seed, **changes)
    assert isinstance(detector, QueryDetector)
    return detector


def built(name: str, student: Detector, teacher: Detector, **config: Any) -> Method:
    torch.manual_seed(0)
    settings = find_method(name).Config.model_validate({"method": name} | config)
    return build_method(settings, student, teacher, make_pairing(student, teacher, None))


def context_of(method: Method, student: Detector, teacher: Detector, output: QueryOutput, targets: TargetBatch) -> MethodContext:
    match = match_targets(output.logits, output.boxes, targets, output.activation)
    return step_context(student, teacher, method.pairing, targets, targets.valid.sum().clamp(min=1).float(), 0, match)


def terms_of(
    method: Method, student: Detector, teacher: Detector, targets: TargetBatch, changed: Any = lambda output: output
) -> dict[str, Tensor]:
    images = images_of(*SIZES)
    output = student(*images)
    with torch.no_grad():
        answer = changed(teacher(*images))
    return method(output, answer, targets, context_of(method, student, teacher, output, targets))


def profile_of(name: str, profile: str) -> dict[str, Any]:
    """The profile, less what a family without a layer from positions to references cannot do."""
    if profile == "official_code" and "reference_from_position" not in tiny(name).provides:
        return {"profile": profile, "assignment": {"reference": "teacher"}}
    return {"profile": profile}


def inside(output: QueryOutput) -> QueryOutput:
    """Boxes well inside the image, because the released code clamps those of the teacher."""
    return replace(output, boxes=xyxy_to_cxcywh(cxcywh_to_xyxy(output.boxes).clamp(0, 1)) * 0.9 + 0.05)


def overlapping(output: QueryOutput) -> QueryOutput:
    """Boxes that fill most of the image: those of a random detector may miss every target, and then no query has a quality."""
    return replace(output, boxes=0.1 * output.boxes + torch.tensor([0.45, 0.45, 0.8, 0.8]))


@pytest.mark.parametrize("name", QUERY_NAMES)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_student_that_is_its_teacher_is_mated_with_itself_and_has_nothing_to_learn(name: str, profile: str):
    detector = tiny(name)
    method = built("detrdistill", detector, detector, **{**profile_of(name, profile), "assignment": None, "contrastive": None})
    output = inside(detector(*images_of(*SIZES)))
    terms = method(output, output, targets := batch_of([2, 1], 3), context_of(method, detector, detector, output, targets))
    assert set(terms) == set(method.term_names)
    assert all(abs(value.item()) < 1e-4 for value in terms.values()), terms


@pytest.mark.parametrize("name", QUERY_NAMES)
def test_two_equal_decoders_give_equal_answers_to_the_targets_queries(name: str):
    detector = tiny(name)
    terms = terms_of(built("clockdistill", detector, detector), detector, detector, batch_of([3, 1], 3))
    assert set(terms) == {"memory_foreground", "memory_background", "logits"}
    assert all(abs(value.item()) < 1e-5 for value in terms.values()), terms


@pytest.mark.parametrize("name", QUERY_NAMES)
def test_the_order_of_the_teachers_queries_changes_no_term(name: str):
    student, teacher, targets = tiny(name, 1), tiny(name, 2), batch_of([2, 1], 3)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))

    def at(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[:, order]

    def shuffled(output: QueryOutput) -> QueryOutput:
        q = output.queries
        queries = Queries(q.content[:, order], at(q.position), at(q.reference), q.source[:, order])
        return replace(
            output, logits=output.logits[:, :, order], boxes=output.boxes[:, :, order], states=output.states[:, :, order], queries=queries
        )

    for profile in PROFILES:
        method = built("detrdistill", student, teacher, **profile_of(name, profile)).eval()
        wanted = terms_of(method, student, teacher, targets)
        for key, value in terms_of(method, student, teacher, targets, shuffled).items():
            torch.testing.assert_close(value, wanted[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", QUERY_NAMES)
@pytest.mark.parametrize("method_name", BOTH)
def test_an_extra_group_leaves_the_students_own_outputs_as_they_are(name: str, method_name: str):
    student, teacher = tiny(name, 1), tiny(name, 2)
    images = images_of(*SIZES)
    before = student(*images)
    terms_of(built(method_name, student, teacher), student, teacher, batch_of([2, 1], 3))
    after = student(*images)
    assert torch.equal(before.logits, after.logits) and torch.equal(before.boxes, after.boxes)


@pytest.mark.parametrize("name", QUERY_NAMES)
@pytest.mark.parametrize("method_name", BOTH)
def test_every_term_teaches_the_student_and_nothing_reaches_the_teacher(name: str, method_name: str):
    student, teacher = tiny(name, 1), tiny(name, 2)
    method = built(method_name, student, teacher).train()
    parameters = [p for p in student.parameters() if p.requires_grad]
    terms = terms_of(method, student, teacher, batch_of([2, 1], 3), overlapping)
    assert set(terms) == set(method.term_names)
    for key, value in terms.items():
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0, key
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", QUERY_NAMES)
@pytest.mark.parametrize("method_name", BOTH)
@pytest.mark.parametrize("counts", [[0, 0], [2, 0]])
def test_images_without_targets_work_in_every_term(name: str, method_name: str, counts: list[int]):
    student, teacher = tiny(name, 1), tiny(name, 2)
    terms = terms_of(built(method_name, student, teacher), student, teacher, batch_of(counts, 3))
    assert terms and all(torch.isfinite(value) for value in terms.values())
    about_targets = {"logits_positive"} if method_name == "detrdistill" else {"memory_foreground", "logits"}
    assert (about_targets & set(terms) == about_targets) == (sum(counts) > 0)


@pytest.mark.parametrize("name", QUERY_NAMES)
@pytest.mark.parametrize("method_name", BOTH)
def test_more_targets_than_queries_work_in_every_term(name: str, method_name: str):
    student, teacher = tiny(name, 1), tiny(name, 2)
    terms = terms_of(built(method_name, student, teacher), student, teacher, batch_of([9, 8], 3))
    assert all(torch.isfinite(value) for value in terms.values())


@pytest.mark.parametrize("name", QUERY_NAMES)
@pytest.mark.parametrize("counts", [(6, 4), (4, 6)], ids=str)
def test_unequal_query_counts_are_served_and_the_rest_of_the_students_queries_is_not_taught(name: str, counts: tuple[int, int]):
    student, teacher = tiny(name, 1, queries=counts[0]), tiny(name, 2, queries=counts[1])
    method = built("detrdistill", student, teacher, assignment=None, features=None)
    output = student(*images_of(*SIZES))
    leaf = output.boxes.detach().requires_grad_()
    with torch.no_grad():
        answer = teacher(*images_of(*SIZES))
    targets = batch_of([2, 1], 3)
    terms = method(replace(output, boxes=leaf), answer, targets, context_of(method, student, teacher, output, targets))
    torch.stack(list(terms.values())).sum().backward()
    assert leaf.grad is not None
    taught = leaf.grad.abs().sum(-1) > 0
    assert (taught.sum(-1) == min(counts)).all()
    terms = terms_of(built("detrdistill", student, teacher), student, teacher, targets)
    assert set(terms) == {"logits_positive", "logits_negative", "features", "assignment"}


@pytest.mark.parametrize("name", QUERY_NAMES)
@pytest.mark.parametrize("method_name", BOTH)
def test_a_student_of_half_the_depth_and_width_learns_from_the_groups_of_figure_five(name: str, method_name: str):
    student, teacher = tiny(name, 1, decoder_layers=2), tiny(name, 2, decoder_layers=4, width=64)
    method = built(method_name, student, teacher).train()
    assert method.pairing.layer_map == ((0, 1), (2, 3))
    terms = terms_of(method, student, teacher, batch_of([2, 1], 3), overlapping)
    torch.stack(list(terms.values())).sum().backward()
    untaught = {key for key, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    starts_from_zeros = method_name == "detrdistill" and not teacher.blank_output().queries.content.any()
    assert list(method.parameters()) and untaught == ({"group.content.weight"} if starts_from_zeros else set())


@pytest.mark.parametrize("name", QUERY_NAMES)
def test_what_fills_up_a_group_is_seen_by_no_other_query(name: str):
    detector = tiny(name)
    output = detector(*images_of(*SIZES))
    content = torch.randn(2, 3, detector.width, generator=torch.Generator().manual_seed(1))
    boxes = batch_of([3, 3], 3).boxes
    alone = detector.decode(detector.queries_of_boxes(output, boxes, content), output.context)
    more = torch.cat([content, 5 * torch.randn(2, 2, detector.width)], 1)
    queries = detector.queries_of_boxes(output, torch.cat([boxes, batch_of([2, 2], 3).boxes], 1), more)
    valid = torch.tensor([[True] * 3 + [False] * 2] * 2)
    filled = detector.decode(replace(queries, valid=valid), output.context)
    torch.testing.assert_close(filled.logits[:, :, :3], alone.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(filled.boxes[:, :, :3], alone.boxes, atol=1e-4, rtol=1e-4)
    seen = detector.decode(queries, output.context)
    assert not torch.allclose(seen.logits[:, :, :3], alone.logits, atol=1e-4), "the filling matters where it is not hidden"
    nothing = detector.decode(replace(queries, valid=torch.zeros(2, 5, dtype=torch.bool)), output.context)
    assert torch.isfinite(nothing.logits).all()


def padded(targets: Sequence[Any], count: int) -> TargetBatch:
    """The same targets with ``count`` crowd regions behind them, which may not be matched."""
    more = random_targets([count] * len(targets), 3)
    return TargetBatch.of(
        [
            replace(t, boxes=torch.cat([t.boxes, m.boxes]), labels=torch.cat([t.labels, m.labels]), valid=torch.cat([t.valid, ~m.valid]))
            for t, m in zip(targets, more, strict=True)
        ]
    )


@pytest.mark.parametrize("name", QUERY_NAMES)
@pytest.mark.parametrize("method_name", BOTH)
def test_regions_that_are_never_matched_and_padding_of_targets_change_no_term(name: str, method_name: str):
    student, teacher = tiny(name, 1), tiny(name, 2)
    targets = random_targets([2, 1], 3)
    method = built(method_name, student, teacher)
    wanted = terms_of(method, student, teacher, TargetBatch.of(targets))
    for key, value in terms_of(method, student, teacher, padded(targets, 3)).items():
        torch.testing.assert_close(value, wanted[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method_name", METHODS)
def test_a_pair_that_lacks_what_a_method_needs_is_refused_before_training(method_name: str):
    bare, whole = tiny("deformable_detr", 1), tiny("deformable_detr", 2)
    bare.provides = frozenset()
    with pytest.raises(IncompatibleError, match=rf"method '{method_name}'.*needs .* which the (student|teacher) \(deformable_detr\)"):
        built(method_name, bare, whole)


def test_a_teacher_without_what_the_students_decoder_takes_is_refused_by_what_is_missing():
    student, teacher = tiny("adamixer"), tiny("deformable_detr")
    with pytest.raises(IncompatibleError, match=r"\(adamixer\) needs references as xyzr, which the teacher's queries \(deformable_detr\)"):
        built("detrdistill", student, teacher)
    with pytest.raises(IncompatibleError, match=r"\(deformable_detr\) needs position embeddings.*\(adamixer\)"):
        built("detrdistill", teacher, student)
    assert built("detrdistill", student, teacher, assignment=None).term_names
    assert built("clockdistill", student, teacher).term_names


@pytest.mark.parametrize("name", QUERY_NAMES)
def test_a_label_table_has_a_row_for_each_class_in_the_width_of_a_query(name: str):
    detector = tiny(name)
    table = detector.label_table()
    assert (table is not None) == (name in ("dino", "rt_detr", "rt_detr_v2", "d_fine", "deimv2"))
    if table is not None:
        assert table.shape == (3, detector.blank_output().queries.content.shape[-1])
