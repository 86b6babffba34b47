"""One training step as one module: student forward, matching, the detection loss and every distillation term."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import QueryOutput
from workbench.errors import NonFiniteError
from workbench.matching import NonFiniteCostError
from workbench.methods.context import MethodContext, Pairing, Progress, TeacherAnswer
from workbench.methods.method import Method


@dataclass(frozen=True)
class Terms:
    """Unweighted loss terms of a step.

    Attributes:
        detection: Terms of the family's own criterion.
        distillation: Terms of the methods, by ``method.term``.
    """

    detection: dict[str, Tensor]
    distillation: dict[str, Tensor]


class DistillStep(nn.Module):
    """The trainable module that is prepared for devices and processes; it holds the teacher outside its submodules.

    Args:
        student: the detector that is trained.
        methods: methods whose adapters are trained too.
        pairing: pairing of teacher and student; None without a teacher.
        teacher: teacher for methods that pass queries through its decoder; None without one, or if its outputs come from a cache.
    """

    def __init__(self, student: Detector, methods: list[Method], pairing: Pairing | None, teacher: Detector | None = None):
        super().__init__()
        self.student = student
        self.methods = nn.ModuleList(methods)
        self.pairing = pairing
        # a module in a tuple is not a submodule: the teacher is neither optimised, nor saved, nor prepared for processes
        self._outside = (teacher,)

    @property
    def term_names(self) -> list[str]:
        """Names of all distillation terms, as ``method.term``."""
        return [f"{method.name}.{term}" for method in self.methods for term in method.term_names]  # pyright: ignore

    def forward(
        self,
        images: Tensor,
        padding: Tensor,
        targets: TargetBatch,
        *,
        progress: Progress,
        teacher: TeacherAnswer | None = None,
    ) -> Terms:
        """Computes all terms of one batch.

        Args:
            images: see ``Detector.forward``.
            padding: see ``Detector.forward``.
            targets: targets of the batch.
            progress: step, epoch and number of boxes.
            teacher: the teacher's output for the batch; if None, the student learns without a teacher.

        Raises:
            NonFiniteCostError: a logit or box is NaN or infinite.
        """
        attentions = any("attentions" in method.config.needs_student for method in self.methods)  # pyright: ignore
        with self.student.collecting_attentions(attentions):
            output = self.student(images, padding, targets)
            match = self.student.assign(output, targets)
            detection = self.student.losses(output, targets, progress.num_boxes, match)
            distillation: dict[str, Tensor] = {}
            if teacher is not None and self.pairing is not None:
                context = MethodContext(
                    student=self.student,
                    pairing=self.pairing,
                    targets=targets,
                    teacher=self._outside[0],
                    answer=teacher,
                    progress=progress,
                    student_match=match,
                )
                for method in self.methods:
                    terms = method(output, teacher.output, targets, context)
                    distillation |= {f"{method.name}.{name}": value for name, value in terms.items()}
        return Terms(detection, distillation)


def weighted_sum(terms: Terms, detection_weights: dict[str, float], term_weights: dict[str, float]) -> Tensor:
    """Returns the weighted sum of all terms, which training minimises."""
    parts = [detection_weights[name] * value for name, value in terms.detection.items()]
    parts += [term_weights[name] * value for name, value in terms.distillation.items()]
    return torch.stack(parts).sum()


def explain_non_finite(
    student: Detector, images: Tensor, padding: Tensor, image_ids: tuple[int, ...], step: int, terms: Terms | None = None
) -> NonFiniteError:
    """Returns an error that says where NaN or infinity appeared: terms, decoder layer, images and step.

    ``step`` is counted from 1, as in metrics.jsonl.
    """
    if terms is not None:
        bad = [name for name, value in (terms.detection | terms.distillation).items() if not torch.isfinite(value)]
        if bad:
            return NonFiniteError(
                f"step {step}: loss term {', '.join(bad)} is not finite on images {list(image_ids)}. The last good "
                "checkpoint is kept. Lower the learning rate or the clip norm, or check these images."
            )
    with torch.no_grad():
        output = student(images, padding)
    stage = "decoder layer" if isinstance(output, QueryOutput) else "stage"
    found = [
        f"{stage} {layer}: {name} of images {[i for i, ok in zip(image_ids, finite.tolist(), strict=True) if not ok]}"
        for name, values in (("logits", output.logits), ("boxes", output.boxes))
        for layer, finite in enumerate(torch.isfinite(values).flatten(2).all(-1))
        if not finite.all()
    ]
    where = "; ".join(found) or f"gradients of images {list(image_ids)}"
    return NonFiniteError(
        f"step {step}: found NaN or infinity in {where}. The last good checkpoint is kept. Lower the learning rate or use "
        "--set train.precision=fp32."
    )


__all__ = ["DistillStep", "NonFiniteCostError", "Terms", "explain_non_finite", "weighted_sum"]
