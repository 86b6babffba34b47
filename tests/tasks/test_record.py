"""Tracing a checkpoint: the same values as evaluation wrote, sizes told before, samples that hold every class."""

import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

from tests.flows import DISTILLED, Silent, command, tiny_recipe
from workbench.datasets.batches import evaluation_batches
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.detectors.output import Queries
from workbench.detectors.registry import load_detector
from workbench.errors import ConfigError, RunError
from workbench.matching import match_targets
from workbench.store.queries import TEACHER_STEP, complete_steps, read_facts, read_queries
from workbench.store.run import Run
from workbench.store.states import images_with_states, masked_images, read_masks, read_states
from workbench.tasks.record import QueryRecording, stratified
from workbench.training.launch import Launch, start
from workbench.training.recording import Scope

SPLIT = generate_shapes(ShapesConfig(val=60), "val")  # its first images are those of a smaller split


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A distilled run of four steps, evaluated at every second; averaged weights, so that what is evaluated is not what is trained."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder))
        torch.set_num_threads(1)
        method = DISTILLED["methods"][0] | {"selection": {"rule": "top_k", "k": 12}}
        recipe = tiny_recipe(DISTILLED, {"methods": [method], "train": {"steps": 4, "ema": 0.9}})
        return start(recipe, Launch("traced", device="cpu"), Silent())


@pytest.fixture
def run(once: Run) -> Run:
    """A copy of it among this test's own runs."""
    return Run(shutil.copytree(once.path, Path(os.environ["WORKBENCH_RUNS"]) / "traced"))


def test_a_traced_table_has_the_values_that_evaluation_wrote_bit_for_bit(once: Run, run: Run):
    for folder in ("queries", "states"):
        shutil.rmtree(run.path / folder)
    trace = QueryRecording(run, checkpoint=4)
    trace.write()
    for step in (TEACHER_STEP, 4):
        before, now = read_queries(once, "val", [step]), read_queries(run, "val", [step])
        assert len(now) == len(before) > 0
        pd.testing.assert_frame_equal(now, before, check_exact=True)
        assert images_with_states(run, "val", step) == images_with_states(once, "val", step) != []
        for image in images_with_states(run, "val", step):
            assert (read_states(run, "val", step, image) == read_states(once, "val", step, image)).all()
    assert masked_images(run, "val", TEACHER_STEP) == masked_images(once, "val", TEACHER_STEP) != []
    for image in masked_images(run, "val", TEACHER_STEP):
        written, wanted = read_masks(run, "val", TEACHER_STEP, image), read_masks(once, "val", TEACHER_STEP, image)
        assert written.keys() == wanted.keys() and all((written[place] == wanted[place]).all() for place in wanted)
    rows = trace.sizes.student_rows, trace.sizes.teacher_rows
    assert rows == (len(read_queries(run, "val", [4], where="model = 'student'")), len(read_queries(run, "val", [TEACHER_STEP])))


def test_states_are_those_of_the_last_step_and_what_the_checkpoint_says_of_an_image(once: Run):
    assert images_with_states(once, "val", 2) == []
    image = images_with_states(once, "val", 4)[5]
    trace = QueryRecording(once)
    place = [record.image_id for record in SPLIT.records].index(image)
    batch = next(evaluation_batches(trace._dataset, trace._setup.evaluation_transform, 1, [place]))
    with torch.no_grad():
        wanted = load_detector(once.checkpoint_path(4)).eval()(batch.images, batch.padding).states[:, 0]
    found = read_states(once, "val", 4, image)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)


def corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def costs(student: pd.DataFrame, teacher: pd.DataFrame, classes: np.ndarray) -> np.ndarray:
    """What the logits terms are matched by: class divergence given, 5 L1 and -2 GIoU from the boxes cut to the image."""
    a, b = (rows[["cx", "cy", "w", "h"]].to_numpy(np.float64) for rows in (student, teacher))
    b = corners(b).clip(0, 1)
    b = np.concatenate([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1)
    total = classes + 5 * np.abs(a[:, None] - b[None]).sum(-1)
    for i, x in enumerate(corners(a)):
        for j, y in enumerate(corners(b)):
            inner = np.maximum(np.minimum(x[2:], y[2:]) - np.maximum(x[:2], y[:2]), 0).prod()
            union = (x[2:] - x[:2]).prod() + (y[2:] - y[:2]).prod() - inner
            hull = (np.maximum(x[2:], y[2:]) - np.minimum(x[:2], y[:2])).prod()
            total[i, j] -= 2 * (inner / union - (hull - union) / hull)
    return total


def test_train_mate_is_the_assignment_that_the_logits_terms_are_taken_over(once: Run):
    trace = QueryRecording(once)
    setup = trace._setup
    assert setup.teacher is not None and setup.pairing is not None
    rows = read_queries(once, "val", [TEACHER_STEP, 4])
    (batch,) = evaluation_batches(trace._dataset, setup.evaluation_transform, 8)
    with torch.no_grad():
        z = setup.student(batch.images, batch.padding).logits.double().numpy()
        t = setup.teacher(batch.images, batch.padding).logits.double().sigmoid().numpy()
    for place, image in enumerate(batch.image_ids):
        for layer, group in enumerate(setup.pairing.layer_map):
            own = rows[(rows.model == "student") & (rows.image_id == image) & (rows.layer == layer)]
            other = rows[(rows.model == "teacher") & (rows.image_id == image) & (rows.layer == group[-1])]
            p, q = 1 / (1 + np.exp(-z[layer, place]))[:, None], t[group[-1], place][None]
            cost = costs(own, other, -(q * np.log(p) + (1 - q) * np.log(1 - p)).sum(-1))
            positive, taught = other["match"].to_numpy() >= 0, other["selected"].to_numpy(bool)
            wanted = np.full(len(own), -1)
            # the paper leaves the class out where a query of the teacher has no target
            boxes_alone = costs(own, other, np.zeros_like(cost))
            for one, columns in ((cost, np.flatnonzero(positive & taught)), (boxes_alone, np.flatnonzero(~positive & taught))):
                free = np.flatnonzero(wanted < 0)
                row, column = linear_sum_assignment(one[np.ix_(free, columns)])
                wanted[free[row]] = columns[column]
            assert own["train_mate"].tolist() == wanted.tolist()


def test_the_teachers_group_is_what_the_students_decoder_makes_of_the_selected_teacher_queries_alone(once: Run):
    """Image by image, without padding or hiding: only the selected queries go in, through the adapters of the checkpoint."""
    trace = QueryRecording(once)
    setup, student = trace._setup, load_detector(once.checkpoint_path(4)).eval()
    weights = load_file(once.checkpoint_path(4) / "trainer.safetensors")
    rows = read_queries(once, "val", [TEACHER_STEP, 4])
    assert set(rows[rows.model == "teacher_group"].step) == {4} and setup.teacher is not None
    for place, record in enumerate(trace._dataset.records):
        (batch,) = evaluation_batches(trace._dataset, setup.evaluation_transform, 1, [place])
        of_image = rows[rows.image_id == record.image_id]
        teacher = of_image[(of_image.model == "teacher") & (of_image.layer == of_image[of_image.model == "teacher"].layer.max())]
        chosen = teacher["query"][teacher.selected.astype(bool)].tolist()
        with torch.no_grad():
            given = setup.teacher(batch.images, batch.padding).queries
            content, position = (
                value[:, chosen] @ weights[f"methods.0.group.{name}.weight"].T + weights.get(f"methods.0.group.{name}.bias", 0.0)
                for name, value in (("content", given.content), ("position", given.position)) if value is not None
            )  # fmt: skip
            asked = Queries(content, position, None, given.source[:, chosen])
            if given.reference is not None:
                asked = dataclasses.replace(asked, reference=given.reference[:, chosen])
            found = student.decode(asked, student(batch.images, batch.padding).context)
        for layer in range(2):
            group = of_image[(of_image.model == "teacher_group") & (of_image.layer == layer)]
            assert group["query"].tolist() == chosen
            np.testing.assert_allclose(group[["cx", "cy", "w", "h"]], found.boxes[layer, 0], atol=1e-5)
            score, label = found.logits[layer, 0].sigmoid().max(-1)
            np.testing.assert_allclose(group["score"], score, atol=1e-5)
            assert group["label"].tolist() == label.tolist()
            wanted = match_targets(found.logits[layer : layer + 1], found.boxes[layer : layer + 1], batch.targets)
            assert group["match"].tolist() == wanted[0, 0].tolist()
            assert group[["mate", "train_mate", "selected"]].isna().all(axis=None)


def test_the_selected_teacher_queries_are_the_best_by_the_rule_of_the_method(once: Run):
    rows = read_queries(once, "val")
    teacher = rows[rows.model == "teacher"]
    for (image, _), own in teacher.groupby(["image_id", "layer"]):
        targets = SPLIT.records[[record.image_id for record in SPLIT.records].index(image)].boxes
        quality = own.score * (own.best_iou if len(targets) else 1.0)
        selected = own.selected.astype(bool)
        assert selected.sum() == 12 and quality[selected].min() >= quality[~selected].max() - 1e-6
    assert rows[rows.model == "student"].selected.isna().all() and teacher.train_mate.isna().all()


def test_rows_say_the_epoch_of_the_weights(once: Run):
    rows = read_queries(once, "val", columns=["step", "epoch"])
    assert set(map(tuple, rows.to_numpy().tolist())) == {(TEACHER_STEP, 0), (2, 0), (4, 1)}  # four steps are an epoch


def test_the_verb_tells_sizes_and_writes_a_sample_of_another_split(run: Run):
    code, out, err = command("trace", "traced", "--split", "test", "--images", "3", "--device", "cpu")
    assert code == 0, err
    assert "traced, step 4, split test: 3 of 8 images, 36 rows of the student" in out
    assert "up to 120 of the teacher's queries in its decoder and 240 of the teacher, states of 3 images" in out
    assert complete_steps(run, "test") == [TEACHER_STEP, 4]
    for step, count in ((TEACHER_STEP, 240), (4, 36 + 3 * 2 * 12)):
        rows = read_queries(run, "test", [step])
        assert len(rows) == count and rows.image_id.nunique() == 3
        facts = read_facts(run, "test", step)
        assert facts["images"] == 3 and facts["sampled"]
        assert images_with_states(run, "test", step) == sorted(rows.image_id.unique())
    # the same sample again leaves the teacher's rows as they are, the whole split makes them anew
    assert QueryRecording(run, split="test", images=3).sizes.teacher_rows == 0
    assert QueryRecording(run, split="test").sizes.teacher_rows == 640


def test_a_sample_never_takes_the_place_of_a_whole_table(run: Run):
    with pytest.raises(RunError, match="a sample would replace them"):
        QueryRecording(run, images=3)
    assert QueryRecording(run).sizes.teacher_rows == 0


def test_what_cannot_be_traced_is_refused_before_anything_is_written(run: Run):
    with pytest.raises(RunError, match=r"no checkpoint of step 3\. Steps with a checkpoint: 4"):
        QueryRecording(run, checkpoint=3)
    with pytest.raises(ConfigError, match=r"--split tset: there is no such split\. Choose from train, val, test"):
        QueryRecording(run, split="tset")
    with pytest.raises(ConfigError, match="--images 0"):
        QueryRecording(run, images=0)
    run.update_info(dataset_hash="another")
    with pytest.raises(RunError, match="made with another dataset"):
        QueryRecording(run)


def test_a_trace_that_is_cut_off_leaves_what_was_there(run: Run):
    before = read_queries(run, "val")

    def cut(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        QueryRecording(run).write(cut)
    pd.testing.assert_frame_equal(read_queries(run, "val"), before, check_exact=True)


def test_images_are_traced_in_order_of_their_ids_and_states_spread_evenly_over_them():
    ids = np.random.default_rng(0).permutation(1000)[:40].tolist()
    dataset: Any = SimpleNamespace(records=[SimpleNamespace(image_id=image_id) for image_id in ids])
    whole = Scope.of(dataset, states=5)
    assert [ids[index] for index in whole.indices] == sorted(ids) and not whole.sampled
    assert sorted(whole.states) == [sorted(ids)[place] for place in (0, 10, 20, 29, 39)]
    some = Scope.of(dataset, [3, 1, 2], states=500)
    assert some.sampled and sorted(some.indices) == [1, 2, 3] and some.states == {ids[1], ids[2], ids[3]}


@given(count=st.integers(1, 70))
@hypothesis_settings(max_examples=30)
def test_a_sample_holds_every_class_and_as_many_images_as_asked_for(count: int):
    chosen = stratified(SPLIT, count)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(count, len(SPLIT))
    classes = {int(label) for index in chosen for label in SPLIT.records[index].labels}
    if count >= len(SPLIT.classes) + 1:
        assert classes == {int(label) for record in SPLIT.records for label in record.labels}


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6), data=st.data())
@hypothesis_settings(max_examples=60)
def test_every_group_gives_its_share_of_a_sample(sizes: list[int], data: st.DataObject):
    from workbench.tasks.record import _shares

    count = data.draw(st.integers(1, sum(sizes)))
    share = _shares(np.array(sizes), count)
    exact = np.array(sizes) * count / sum(sizes)
    assert share.sum() == count and (share <= sizes).all() and (share >= 0).all()
    if count >= len(sizes):
        assert (share >= 1).all()
    # more than a whole image off only where a group too small for one was given one
    assert (share > exact - len(sizes)).all() and (share < exact + 1 + 1e-9).all()
