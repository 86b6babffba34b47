"""Implements KD-DETR (Wang et al., CVPR 2024), which asks both decoders about the same distillation points."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import Queries, QueryOutput
from workbench.detectors.query_detector import QueryDetector
from workbench.detectors.whole_batch import over_processes, sum_over_processes
from workbench.errors import IncompatibleError
from workbench.methods.classes import box_loss
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.extra_group import TeacherQueries
from workbench.methods.method import BaseMethodConfig, Method


class KDDETRConfig(BaseMethodConfig, frozen=True):
    """Configures KD-DETR, which asks both decoders about the same distillation points.

    The values are those of Myleswork/KD-DETR@e7dfccb (the authors' repository is empty and the paper points to it),
    models/DAB_DETR/kd_loss.py and tools/train.sh.
    """

    method: Literal["kd_detr"] = "kd_detr"
    """Selects the method."""
    general: int = Field(300, ge=0)
    """Number of random distillation points, drawn anew in every step. 0 leaves this term out."""
    specific: bool = True
    """Uses the teacher's own queries as distillation points too."""
    foreground: bool = True
    """Weights each point by the teacher's best class score."""
    temperature: float = Field(10.0, gt=0)
    """Temperature of the class distributions."""
    prediction_weights: tuple[float, float, float] = (1.0, 5.0, 2.0)
    """Weights of the class, L1 and GIoU part of a term."""

    @model_validator(mode="after")
    def _some_points(self) -> "KDDETRConfig":
        if not self.term_names:
            raise ValueError("general is 0 and specific is false: no distillation points")
        return self

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return (("general",) if self.general else ()) + (("specific",) if self.specific else ())

    @property
    def needs_student(self) -> frozenset[str]:
        """See ``BaseMethodConfig``."""
        return frozenset({"queries", "decode"})

    @property
    def needs_teacher(self) -> frozenset[str]:
        """See ``BaseMethodConfig``."""
        return frozenset({"queries", "decode"} if self.general else {"queries"})


class KDDETR(Method[QueryOutput]):
    """KD-DETR with the terms ``general`` (random points) and ``specific`` (the teacher's queries). Each decoder reads its own memory.

    Every student layer learns from the teacher's last layer; layers are summed. The class part is T^2 times the KL divergence of the class
    distributions, averaged over classes and summed over the points of the batch. L1 (mean over the four numbers) and 1 - GIoU are averaged
    over points. All parts are weighted by a point's foreground weight w, the teacher's best class probability. The released code takes
    a softmax over the logits of a sigmoid head and does not divide the class part by the sum of weights; both are kept.

    Random points are drawn from the standard normal distribution if the teacher's queries are embeddings; references are the sigmoid of
    such numbers. Parts that the family starts at zero stay zero. All images of a batch have the same points.
    """

    name = "kd_detr"
    without_live_teacher = "Set 'general: 0' to train without random points, or remove 'cache:' from the recipe."
    Config = KDDETRConfig
    terms = "general, specific"
    citation = "KD-DETR, CVPR 2024; released code Myleswork/KD-DETR@e7dfccb"
    config: KDDETRConfig

    def __init__(self, config: KDDETRConfig, student: QueryDetector, teacher: QueryDetector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        self.group = TeacherQueries(self.name, student, teacher)
        self.with_content = bool(teacher.blank_output().queries.content.any())
        # points are a pure function of (run's seed, step), so that a resumed run repeats them and no other random stream is disturbed
        self.seed = int(torch.randint(2**31, ()))

    def check(self, student: Detector, teacher: Detector) -> None:
        """See ``Method.check``. Class distributions need heads of one kind, and random references must mean boxes."""
        super().check(student, teacher)
        if student.activation != teacher.activation:
            raise IncompatibleError(
                f"method '{self.name}' compares softened logits, but the student ({student.family}) has a "
                f"{student.activation} head and the teacher ({teacher.family}) a {teacher.activation} head."
            )
        if self.config.general and teacher.reference_form != "boxes":
            raise IncompatibleError(
                f"method '{self.name}': random points are boxes in 0..1, but the teacher's ({teacher.family}) references "
                f"are {teacher.reference_form}. Set 'general: 0'."
            )

    def forward(self, student: QueryOutput, teacher: QueryOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        terms: dict[str, Tensor] = {}
        if self.config.general:
            points = self.general_points(teacher.queries, context.training.step)
            with torch.no_grad():
                answer = context.query_teacher.decode(points, teacher.context)
            terms["general"] = self._loss(context.query_student.decode(self.group(points), student.context), answer)
        if self.config.specific:
            terms["specific"] = self._loss(context.query_student.decode(self.teacher_group(teacher, context), student.context), teacher)
        return terms

    @property
    def sends_queries(self) -> bool:
        """See ``Method.sends_queries``."""
        return self.config.specific

    def teacher_group(self, teacher: QueryOutput, context: MethodContext) -> Queries:
        """See ``Method.teacher_group``."""
        return self.group(teacher.queries)

    def general_points(self, like: Queries, step: int) -> Queries:
        """Returns random queries in the form of the teacher's, for ``B`` images, as a function of the seed and the step."""
        generator = torch.Generator().manual_seed(self.seed + step)
        images, count = len(like.content), self.config.general

        def drawn(form: Tensor | None, scale: float = 1.0) -> Tensor | None:
            if form is None:
                return None
            values = scale * torch.randn(count, form.shape[-1], generator=generator)
            return values.to(form).expand(images, -1, -1)

        content, position, reference = drawn(like.content, float(self.with_content)), drawn(like.position), drawn(like.reference)
        assert content is not None
        source = torch.full((images, count), -1, dtype=torch.int64, device=like.source.device)
        return Queries(content, position, None if reference is None else reference.sigmoid(), source)

    def _loss(self, student: QueryOutput, teacher: QueryOutput) -> Tensor:
        """Returns the loss summed over layers. The queries ``[L, B, N]`` of ``student`` learn from ``teacher``'s last layer, ``[B, N]``."""
        config, boxes = self.config, teacher.boxes[-1]
        logits = self.pairing.in_student_classes(teacher.logits[-1], teacher.activation).float()
        score = logits.sigmoid() if teacher.activation == "sigmoid" else logits.softmax(-1)[..., :-1]
        weight = score.amax(-1) if config.foreground else torch.ones_like(score[..., 0])
        divergence = softened_divergence(student.logits, logits, config.temperature)
        l1, giou = box_loss(student.boxes, boxes.detach().expand_as(student.boxes))
        by_class, by_l1, by_giou = config.prediction_weights
        classes = sum_over_processes((weight * by_class * divergence).sum())
        return classes + (weight * (by_l1 * l1 / 4 + by_giou * giou)).sum() / over_processes(weight.sum())


def softened_divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Returns T^2 times the KL divergence of softmax(z/T) from ``wanted``'s, ``[...]``, averaged over classes (KD-DETR and LD)."""
    own, other = (values.float().div(temperature).log_softmax(-1) for values in (logits, wanted.detach()))
    return temperature**2 * (other.exp() * (other - own)).mean(-1)
