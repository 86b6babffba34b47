"""AdaMixer as teacher and student: queries that carry places of their own form."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from tests.detectors.test_adamixer import SIZES, small_adamixer
from tests.examples import batch_of, images_of, small_detector
from workbench.detectors.detector import Detector
from workbench.errors import IncompatibleError
from workbench.methods.context import Pairing, Progress, TeacherAnswer, make_pairing
from workbench.methods.method import Method
from workbench.methods.registry import MethodConfig, build_method
from workbench.training.step import DistillStep


def built(student: Detector, teacher: Detector) -> tuple[Method, Pairing]:
    config: Any = TypeAdapter(MethodConfig).validate_python({"method": "detrdistill"})
    pairing = make_pairing(student, teacher, None)
    return build_method(config, student, teacher, pairing), pairing


def test_a_teacher_of_the_family_teaches_every_term_of_detrdistill():
    student, teacher = small_adamixer(0).train(), small_adamixer(1, queries=8, width=64)
    method, pairing = built(student, teacher)
    images, padding = images_of(*SIZES)
    with torch.no_grad():
        answer = teacher(images, padding)
    terms = DistillStep(student, [method], pairing)(
        images, padding, batch_of([2, 1, 1], 3), progress=Progress(step=0, epoch=0, num_boxes=4.0), teacher=TeacherAnswer(output=answer)
    ).distillation
    assert set(terms) == {f"detrdistill.{name}" for name in method.term_names}
    for name, value in terms.items():
        gradients = torch.autograd.grad(value, list(student.parameters()), retain_graph=True, allow_unused=True)
        assert torch.isfinite(value) and any(g is not None and g.abs().sum() > 0 for g in gradients), name


def test_a_teacher_whose_references_mean_something_else_is_refused():
    with pytest.raises(IncompatibleError, match="references as xyzr"):
        built(small_adamixer(decoder_layers=2), small_detector(1))
