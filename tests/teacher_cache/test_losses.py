"""Losses from the cache are those of the live teacher on the same pictures, for every family with queries and every method that can use it.

Families without queries have ``test_dense``.
"""

import contextlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.examples import SPEC, random_targets
from tests.families import QUERY_NAMES, tiny
from tests.flows import TINY
from tests.teacher_cache.teachers import opened
from workbench.datasets.base import Dataset, Record
from workbench.datasets.batches import Batch, variant_batch
from workbench.datasets.transforms import Transform
from workbench.datasets.variants import Variants
from workbench.detectors.output import DetectorOutput
from workbench.errors import IncompatibleError
from workbench.matching import assign, match_targets
from workbench.methods.context import MethodContext, Progress, make_pairing
from workbench.methods.method import Method
from workbench.methods.registry import METHODS, build_method, find_method
from workbench.recipe.loading import merge, parse_recipe
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import FrozenTeacher, Setup
from workbench.teacher_cache.build import Builder, Estimate
from workbench.teacher_cache.cached_outputs import CachedTeacherOutputs

# every method that has a form without a decoder pass of the teacher's own, and DETRDistill as released
CACHEABLE: dict[str, dict[str, Any]] = {name: {"method": name} for name in METHODS} | {
    "kd_detr": {"method": "kd_detr", "general": 0},
    "clockdistill": {"method": "clockdistill", "logits": None},
    "released": {"method": "detrdistill", "profile": "official_code", "assignment": {"reference": "teacher"}},
    "selected": {"method": "detrdistill", "selection": {"rule": "top_k", "k": 3}},
    "responses": {
        "method": "detkds", "global_": None, "foreground": None, "logits": {"t3": "softmax_C", "distance": "kl"},
        "localization": {"distance": "giou"},
    },
}  # fmt: skip
# the other methods on maps read what FitNet reads
OF_QUERIES = ("detrdistill", "released", "d3etr", "kd_detr", "ld", "responses", "fitnet")
VARIANTS = 2
ESTIMATE = Estimate("", 3, VARIANTS, 1 << 16, 0.0, 1 << 40, 0.0, (), 0)


def pictures() -> Dataset:
    """Three images of two sizes, one of them without a target."""
    rng, records, images = np.random.default_rng(0), [], []
    torch.manual_seed(0)
    for number, (targets, size) in enumerate(zip(random_targets([3, 0, 2], 3), [(96, 64), (80, 64), (80, 64)], strict=True)):
        corners = torch.cat([targets.boxes[:, :2] - targets.boxes[:, 2:] / 2, targets.boxes[:, :2] + targets.boxes[:, 2:] / 2], 1)
        boxes, none = corners.double().numpy() * [*size, *size], np.zeros(len(targets.labels), bool)
        records.append(Record(number + 5, f"{number}.png", *size, boxes, targets.labels.numpy(), none, none,
                              np.arange(len(boxes)), np.ones(len(boxes))))  # fmt: skip
        images.append(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return Dataset("pictures", "train", SPEC.classes, (1, 2, 3), records, images)


def recipe_of(precision: str) -> Recipe:
    """Names a cache and the pictures in it; the pair is given beside it."""
    transform = {"augment": ["flip", "color"], "mean": SPEC.mean, "std": SPEC.std}
    cache = {"variants": VARIANTS, "precision": precision, "name": precision}
    return parse_recipe(merge(TINY, {"data": {"transform": transform}, "cache": cache}), "tiny")


def setup_of(family: str, names: Sequence[str]) -> Setup:
    """A tiny pair of a family with those of the methods that serve it."""
    student, detector, recipe = tiny(family, 1), tiny(family, 2), recipe_of("fp32")
    pairing, data, drawn, methods = make_pairing(student, detector, None), pictures(), Transform(recipe.data.transform), []
    for name in names:
        torch.manual_seed(0)
        config = find_method(CACHEABLE[name]["method"]).Config.model_validate(CACHEABLE[name])
        with contextlib.suppress(IncompatibleError):  # what a family lacks is held by the methods' own tests
            methods.append(build_method(config, student, detector, pairing).eval())
    teacher = FrozenTeacher(detector, student.spec)
    teacher.attentions = any("attentions" in method.config.needs_teacher for method in methods)
    return Setup(recipe, data, data, None, drawn, drawn, student, teacher, "hash", pairing, methods, [], Variants(data, drawn, VARIANTS))


@dataclass
class Assignments:
    """Stands for ``assign`` in the methods: keeps what it gave, then gives that again and counts what would have flipped."""

    kept: list[Tensor] = field(default_factory=list)
    replaying: bool = False
    flips: int = 0
    held: int = 0

    def record(self) -> None:
        self.kept, self.replaying = [], False

    def replay(self) -> None:
        self.replaying = True

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        found = assign(*arguments, **named)
        if not self.replaying:
            self.kept.append(found)
            return found
        before = self.kept.pop(0)
        self.flips += int((before != found).sum())
        self.held += before.numel()
        return before


@pytest.fixture
def assignments(monkeypatch: pytest.MonkeyPatch) -> Assignments:
    made = Assignments()
    for name in ("workbench.methods.d3etr", "workbench.methods.detrdistill.logits", "workbench.methods.detkds.inputs"):
        monkeypatch.setattr(importlib.import_module(name), "assign", made)
    return made


def terms_of(
    setup: Setup, method: Method, batch: Batch, student: DetectorOutput, answer: DetectorOutput, kept: CachedTeacherOutputs | None
) -> dict[str, Tensor]:
    assert setup.pairing is not None
    targets = batch.targets
    own = match_targets(student.logits, student.boxes, targets, student.activation)
    known = kept.answer() if kept is not None else None
    if known is not None:
        known = replace(known, output=answer)
    context = MethodContext(
        student=setup.student, pairing=setup.pairing, targets=targets, answer=known, student_match=own,
        progress=Progress(step=0, epoch=0, num_boxes=3.0),
    )  # fmt: skip
    return method(student, answer, targets, context)


@pytest.mark.parametrize("family", QUERY_NAMES)
def test_losses_from_the_cache_are_those_of_the_live_teacher(family: str, assignments: Assignments):
    names, order = list(CACHEABLE) if family == "deformable_detr" else OF_QUERIES, [2, 0, 1]
    pair = setup_of(family, names)
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 1e-3)):
        setup = replace(pair, recipe=recipe_of(precision))
        assert setup.variants is not None and setup.teacher is not None and len(setup.methods) >= 3
        Builder(setup).build(ESTIMATE, accept=True)
        cache = opened(setup)
        for variant in range(VARIANTS):
            batch = variant_batch(setup.variants, order, [variant] * 3)
            answers = cache.read(order, variant, batch.ops)
            assert answers.prepared.keys() == {method.prepared_by for method in setup.methods} - {None}
            with torch.no_grad(), setup.student.collecting_attentions(setup.teacher.attentions):
                student, taught = setup.student(batch.images, batch.padding), setup.teacher(batch.images, batch.padding)
                for method in setup.methods:
                    assignments.record()
                    live = terms_of(setup, method, batch, student, taught, None)
                    assignments.replay()
                    cached = terms_of(setup, method, batch, student, answers.output(), answers)
                    assert live.keys() == cached.keys() and live
                    for term, value in live.items():
                        error = abs(float(cached[term] - value))
                        assert error <= tolerance * max(1.0, abs(float(value))), (precision, method.name, term, float(value), error)
        if precision == "fp32":
            assert assignments.flips == 0
    assert assignments.flips <= assignments.held / 20
