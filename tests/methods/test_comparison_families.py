"""The compared methods on every family: served where the family provides what they need, else refused by name before training."""

import pytest
import torch

from tests.examples import batch_of, images_of
from tests.families import NAMES, tiny
from tests.methods.pairs import step_context
from workbench.detectors.detector import Detector
from workbench.detectors.query_detector import QueryDetector
from workbench.errors import IncompatibleError
from workbench.methods.context import make_pairing
from workbench.methods.registry import METHODS, build_method, find_method

COMPARED = [name for name in METHODS if name not in ("detrdistill", "clockdistill")]


def lacks(name: str, detector: Detector) -> str | None:
    """What a family lacks for a method, as the refusal says it."""
    both = {"queries", "decode"}
    own = {"d3etr": both | {"attentions", "memory"}, "kd_detr": both}.get(name, set())
    needs = {"box_distribution", "decode|dense_logits", "queries|dense_logits"} if name == "ld" else own
    if missing := sorted(need.replace("|", " or ") for need in needs if not set(need.split("|")) & detector.provides):
        return f"needs {', '.join(missing)}, which the student"
    if name == "kd_detr" and isinstance(detector, QueryDetector) and detector.reference_form != "boxes":
        return f"references are {detector.reference_form}"
    return None


@pytest.mark.parametrize("family", NAMES)
def test_every_compared_method_teaches_every_family_that_it_can_serve_and_names_what_the_others_lack(family: str):
    student, teacher, images, targets = tiny(family, 1), tiny(family, 2), images_of((64, 96), (64, 80)), batch_of([2, 1], 3)
    with teacher.collecting_attentions("attentions" in teacher.provides), torch.no_grad():
        answer = teacher(*images)
    pairing, parameters = make_pairing(student, teacher, None), [p for p in student.parameters() if p.requires_grad]
    with student.collecting_attentions("attentions" in student.provides):
        output = student(*images)
        match = student.assign(output, targets)
        for name in COMPARED:
            config, missing = find_method(name).Config(), lacks(name, student)  # pyright: ignore[reportCallIssue]
            if missing is not None:
                with pytest.raises(IncompatibleError, match=f"'{name}'.*{missing}"):
                    build_method(config, student, teacher, pairing)
                continue
            method = build_method(config, student, teacher, pairing).train()
            terms = method(output, answer, targets, step_context(student, teacher, pairing, targets, 3.0, 0, match))
            # random boxes may leave the region of ld empty
            assert set(method.term_names) - set(terms) <= ({"valuable"} if name == "ld" else set()), name
            for term, value in terms.items():
                gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                assert torch.isfinite(value), f"{name}.{term}"
                assert any(g is not None and g.any() for g in gradients), f"{name}.{term}"
    assert all(p.grad is None for p in teacher.parameters())


def test_every_compared_method_serves_some_family_and_most_serve_all():
    detectors = [tiny(family) for family in NAMES]
    served = {name: [d.family for d in detectors if lacks(name, d) is None] for name in COMPARED}
    assert all(served.values())
    assert all(len(served[name]) == len(NAMES) for name in ("fitnet", "fgd", "mgd", "fkd", "fgfi", "cwd", "pkd"))
    assert {"detr", "conditional_detr", "dab_detr", "deformable_detr", "dino"} <= set(served["d3etr"]) & set(served["kd_detr"])
    assert {"d_fine", "gfl"} <= set(served["ld"])


@pytest.mark.parametrize("family", ["deformable_detr", "d_fine", "gfl"])
def test_terms_stay_in_single_precision_in_a_step_of_mixed_precision(family: str):
    student, teacher, images, targets = tiny(family, 1), tiny(family, 2), images_of((128, 192), (128, 160)), batch_of([2, 1], 3)
    pairing = make_pairing(student, teacher, None)
    with torch.autocast("cpu", torch.bfloat16), student.collecting_attentions(), teacher.collecting_attentions():
        with torch.no_grad():
            answer = teacher(*images)
        output = student(*images)
        match = student.assign(output, targets)
        for name in COMPARED:
            if lacks(name, student) is None:
                method = build_method(find_method(name).Config(), student, teacher, pairing).train()  # pyright: ignore[reportCallIssue]
                terms = method(output, answer, targets, step_context(student, teacher, pairing, targets, 3.0, 0, match))
                assert terms and all(value.dtype == torch.float32 and torch.isfinite(value) for value in terms.values()), name
