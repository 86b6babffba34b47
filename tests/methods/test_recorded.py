"""The masks that are recorded of a student equal a loop over its queries, and need no method that has masks."""

import pytest
import torch

from tests.examples import batch_of, random_output
from tests.methods.test_detrdistill import built, context_of, quality_of, stub
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.recorded import recorded_student_masks


@pytest.mark.parametrize("drawn_by_the_method", [True, False])
def test_a_students_masks_are_those_of_its_own_queries_on_its_own_levels_whatever_its_teacher_calls_the_classes(drawn_by_the_method: bool):
    student, targets = random_output(2, (2, 5), seed=3), batch_of([3, 2], 3, torch.Generator().manual_seed(1))
    targets.boxes[:, 0] = student.boxes[1, :, 0]
    method = built({}, stub(), stub())
    context = MethodContext(student=stub(), pairing=Pairing(((0,), (1,)), (2, 1, 0)), targets=targets)
    ((level, masks),) = recorded_student_masks(method if drawn_by_the_method else None, student, context)
    assert level is student.memory[0] and masks.shape == (2, 2, 4, 6)
    plain = context_of(method, targets)
    assert plain.pairing.class_map is None
    for layer, image, y, x in ((0, 0, 0, 0), (1, 0, 3, 5), (1, 1, 2, 1)):
        cell = level.features[image, :, y, x]
        total = sum(
            quality_of(student, targets, layer, image, query, "paper") * float(cell @ student.states[layer, image, query]) ** 2 / 5
            for query in range(5)
        )
        assert masks[layer, image, y, x].item() == pytest.approx(total**0.5, rel=1e-4)
