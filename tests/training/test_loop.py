"""Runs of seconds in this process: arms start alike, logs and tables hold what they promise, and agree with scipy."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.families import tiny_config
from tests.flows import DISTILLED, Silent, tiny_recipe
from workbench.datasets.batches import evaluation_batches
from workbench.detectors.registry import load_detector
from workbench.recipe.loading import parse_recipe
from workbench.recipe.setup import Setup, build
from workbench.store.queries import TEACHER_STEP, complete_steps, read_queries
from workbench.store.run import Run, read_lines
from workbench.training.loop import Trainer

STEPS = {"train": {"steps": 20, "evaluate_every": 10, "checkpoint_every": 20}, "student": {"dropout": 0.1}}


@dataclass
class Trained:
    """A finished run, what it started from and every batch it saw."""

    run: Run
    setup: Setup
    start: dict[str, Tensor]
    generator: Tensor
    images: list[Tensor]


def train(folder: Path, name: str, *changes: dict[str, Any]) -> Trained:
    recipe = tiny_recipe(DISTILLED, STEPS, *changes)
    torch.set_num_threads(1)
    setup = build(recipe, "shapes_teacher", record_teacher=bool(recipe.methods))
    trained = Trained(Run.create(name, {}, folder), setup, {}, torch.empty(0), [])
    trainer = Trainer(trained.run, setup, Silent(), "cpu")
    one_step = trainer._train_step

    def seen(batch: Any, step: int, logged: bool) -> Any:
        if step == 0:
            trained.start = {key: value.clone() for key, value in setup.student.state_dict().items()}
            trained.generator = torch.get_rng_state()
        trained.images.append(batch.images.clone())
        return one_step(batch, step, logged)

    trainer._train_step = seen
    trainer.train()
    return trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def distilled(folder: Path) -> Iterator[Trained]:
    yield train(folder, "distilled")


@pytest.fixture(scope="module")
def undistilled(folder: Path) -> Iterator[Trained]:
    yield train(folder, "undistilled", {"methods": []})


def test_arms_of_one_seed_start_from_the_same_bits_and_see_the_same_images(distilled: Trained, undistilled: Trained):
    assert distilled.start.keys() == undistilled.start.keys()
    assert all(torch.equal(distilled.start[name], value) for name, value in undistilled.start.items()), "weights or norms differ"
    assert torch.equal(distilled.generator, undistilled.generator), "dropout would differ"
    assert len(distilled.images) == len(undistilled.images) == 20
    assert all(torch.equal(a, b) for a, b in zip(distilled.images, undistilled.images, strict=True))
    assert not torch.equal(distilled.images[0], distilled.images[4]), "augmentation is drawn anew in the next epoch"


def test_distillation_changes_what_is_learned(distilled: Trained, undistilled: Trained):
    a, b = distilled.setup.student.state_dict(), undistilled.setup.student.state_dict()
    assert any(not torch.equal(a[name], value) for name, value in b.items())


def test_another_seed_sees_other_images_and_starts_elsewhere(undistilled: Trained):
    other = build(tiny_recipe(STEPS, {"seed": 1}), None)
    assert any(not torch.equal(undistilled.start[name], value) for name, value in other.student.state_dict().items())


def test_the_checkpoint_of_a_distilled_student_is_a_plain_detector_without_adapters(distilled: Trained):
    exported, student = load_detector(distilled.run.checkpoint_path(20)), distilled.setup.student
    state = student.state_dict()
    assert sum(p.numel() for method in distilled.setup.methods for p in method.parameters()) > 0, "the example has no adapters"
    assert {n for n in exported.state_dict()} == {n for n in state}
    assert all(torch.equal(v, state[n]) for n, v in exported.state_dict().items() if not n.endswith("num_batches_tracked"))


def test_every_logged_step_has_raw_and_weighted_terms_and_every_tenth_their_shares(distilled: Trained, undistilled: Trained):
    lines = read_lines(distilled.run.metrics_path)
    terms = {f"detrdistill.{name}" for name in ("logits_positive", "logits_negative", "features", "assignment")}
    assert [line["step"] for line in lines] == list(range(1, 21))
    weights = distilled.run.info()["term_weights"]
    assert weights.keys() == terms
    for line in lines:
        assert {key.split("/", 1)[1] for key in line if key.startswith("raw/")} == terms
        for term in terms:
            assert line[f"weighted/{term}"] == pytest.approx(weights[term] * line[f"raw/{term}"])
        shares = {key for key in line if key.startswith(("share/", "cosine/", "gradient/"))}
        measured = {f"{kind}/{term}" for kind in ("share", "cosine") for term in terms} | {"gradient/detection"}
        assert shares == (measured if line["step"] % 10 == 0 else set())
        weighted = sum(line[f"weighted/{term}"] for term in terms)
        detection = {name.removeprefix("detection/"): value for name, value in line.items() if name.startswith("detection/")}
        factors = distilled.setup.student.loss_weights
        assert line["loss"] == pytest.approx(weighted + sum(factors[name] * value for name, value in detection.items()), rel=1e-4)
    keys = {key.split("/")[0] for line in read_lines(undistilled.run.metrics_path) for key in line}
    assert keys == {"step", "loss", "learning_rate", "gradient_norm", "detection"}


def test_the_teachers_queries_are_written_once_and_the_students_at_every_evaluation(distilled: Trained, undistilled: Trained):
    assert complete_steps(distilled.run, "val") == [TEACHER_STEP, 10, 20]
    rows = read_queries(distilled.run, "val")
    teacher, student = rows[rows.model == "teacher"], rows[rows.model == "student"]
    assert set(teacher.step) == {TEACHER_STEP}
    assert set(student.step) == {10, 20}
    assert teacher.mate.isna().all()
    assert student[["mate", "mate_layer", "mate_cost_class", "mate_cost_bbox", "mate_cost_giou"]].notna().all().all()
    assert (student.groupby(["step", "image_id", "layer"]).mate.nunique() == 6).all(), "two queries share a mate"
    assert complete_steps(undistilled.run, "val") == [10, 20]
    assert read_queries(undistilled.run, "val").mate.isna().all()
    evaluations = [(line["step"], line["split"]) for line in read_lines(distilled.run.evaluations_path)]
    assert evaluations == [(10, "val"), (20, "val"), (20, "test")]


def giou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two cxcywh boxes, from their corners."""
    (ax, ay, bx, by), (cx, cy, dx, dy) = ((x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b))
    inner = max(min(bx, dx) - max(ax, cx), 0) * max(min(by, dy) - max(ay, cy), 0)
    union = a[2] * a[3] + b[2] * b[3] - inner
    hull = (max(bx, dx) - min(ax, cx)) * (max(by, dy) - min(ay, cy))
    return float(inner / union - (hull - union) / hull)


def test_mates_of_an_image_are_the_cheapest_assignment_that_scipy_finds(distilled: Trained):
    setup = distilled.setup
    assert setup.teacher is not None and setup.pairing is not None
    batch = next(evaluation_batches(setup.val, setup.evaluation_transform, 1, [3]))
    with torch.no_grad():
        student = load_detector(distilled.run.checkpoint_path(20)).eval()(batch.images, batch.padding)
        teacher = setup.teacher(batch.images, batch.padding)
    for layer, group in enumerate(setup.pairing.layer_map):
        z, t = student.logits[layer, 0].double().numpy(), teacher.logits[group[-1], 0].double().sigmoid().numpy()
        p = 1 / (1 + np.exp(-z))
        a, b = student.boxes[layer, 0].double().numpy(), teacher.boxes[group[-1], 0].double().numpy()
        cross_entropy = -(t[None] * np.log(p[:, None]) + (1 - t[None]) * np.log(1 - p[:, None])).sum(-1)
        distance = np.abs(a[:, None] - b[None]).sum(-1)
        overlap = np.array([[giou(x, y) for y in b] for x in a])
        _, mate = linear_sum_assignment(cross_entropy + 5 * distance - 2 * overlap)
        rows = read_queries(distilled.run, "val", [20], where="model = 'student' and image_id = $image and layer = $layer",
                            parameters={"image": batch.image_ids[0], "layer": layer})  # fmt: skip
        assert rows["query"].tolist() == list(range(6))
        assert rows.mate.tolist() == mate.tolist()
        assert set(rows.mate_layer) == {group[-1]}
        for column, cost in (("class", cross_entropy), ("bbox", distance), ("giou", -overlap)):
            assert rows[f"mate_cost_{column}"].to_numpy() == pytest.approx(cost[np.arange(6), mate], abs=1e-4)


def test_a_softmax_student_of_a_sigmoid_teacher_trains_is_evaluated_and_mated(folder: Path):
    methods = [{"method": "clockdistill", "no_object": "1-max"}, {"method": "detrdistill", "assignment": None, "no_object": "1-max"}]
    recipe = tiny_recipe({"teacher": {"checkpoint": "shapes_teacher"}, "methods": methods})
    recipe = parse_recipe({**recipe.model_dump(mode="json"), "student": tiny_config("detr")}, "softmax")
    run = Run.create("softmax", {}, folder)
    Trainer(run, build(recipe, "shapes_teacher"), Silent(), "cpu").train()
    rows = read_queries(run, "val", where="model = 'student'")
    # six students, twenty teachers: each has a mate
    assert len(rows) and (rows.mate >= 0).all() and np.isfinite(rows.mate_cost_class).all()
