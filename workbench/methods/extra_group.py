"""Sends the teacher's queries, or queries made from targets, through a decoder as an extra group."""

from typing import Literal

from torch import Tensor, nn

from workbench.detectors.output import Queries
from workbench.detectors.query_detector import QueryDetector
from workbench.errors import IncompatibleError


class TeacherQueries(nn.Module):
    """Converts the teacher's queries to the form that the student's decoder takes, with trained projections if widths differ.

    Queries that the teacher selects per image (two-stage models, DINO, the RT-DETR family) are passed on as it selected them.

    Args:
        method: name of the method, for errors.
        student: detector whose decoder receives the queries.
        teacher: detector that the queries come from.
        reference: ``teacher`` keeps the teacher's reference points; ``student`` lets the student's own layer compute them from the
            position embeddings.

    Raises:
        IncompatibleError: the teacher's queries lack something that the student's decoder needs; the message names it.
    """

    def __init__(self, method: str, student: QueryDetector, teacher: QueryDetector, reference: Literal["teacher", "student"] = "teacher"):
        super().__init__()
        wanted, given = student.blank_output().queries, teacher.blank_output().queries
        self.with_position = wanted.position is not None
        self.numbers = 0 if wanted.reference is None or reference == "student" else wanted.reference.shape[-1]
        lacks = None
        if self.with_position and given.position is None:
            lacks = "position embeddings"
        elif self.numbers and student.reference_form != teacher.reference_form:
            lacks = f"references as {student.reference_form}"
        elif self.numbers > (0 if given.reference is None else given.reference.shape[-1]):
            lacks = f"references with {self.numbers} numbers"
        if lacks is not None:
            raise IncompatibleError(
                f"method '{method}': the student's decoder ({student.family}) needs {lacks}, which the teacher's "
                f"queries ({teacher.family}) do not have."
            )
        # without a bias, because families whose queries start from zeros expect zeros
        self.content = _projection(given.content.shape[-1], wanted.content.shape[-1], bias=False)
        self.position = nn.Identity()
        if wanted.position is not None and given.position is not None:
            self.position = _projection(given.position.shape[-1], wanted.position.shape[-1])

    def forward(self, queries: Queries, valid: Tensor | None = None) -> Queries:
        """Converts ``queries`` of a teacher output, without gradient into the teacher. ``valid [B, N]`` is passed on."""
        position = self.position(queries.position.detach()) if self.with_position and queries.position is not None else None
        reference = queries.reference.detach()[..., : self.numbers] if self.numbers and queries.reference is not None else None
        return Queries(self.content(queries.content.detach()), position, reference, queries.source, valid)


def _projection(width: int, wanted: int, bias: bool = True) -> nn.Module:
    return nn.Identity() if width == wanted else nn.Linear(width, wanted, bias)
