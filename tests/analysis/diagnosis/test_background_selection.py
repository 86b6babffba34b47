"""Selections that look at background."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.analysis.diagnosis.small_runs import TEACHER_ONLY, small_run
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.diagnosis.findings import Finding
from workbench.analysis.of_run import open_data
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run
from workbench.store.states import masked_images, read_masks, states_writer


def with_selection(rule: str, **more: Any) -> dict[str, Any]:
    terms = {"logits_positive": 0.3, "logits_negative": 0.1, "features": 1.0}
    return {"methods": [{"method": "detrdistill", "balance": terms, "assignment": None, "selection": {"rule": rule, **more}}]}


def found(run: Run) -> list[Finding]:
    return [finding for finding in diagnose(run).findings if finding.cause == "background selection"]


def selecting(root: Path, rule: str, **more: Any) -> Run:
    return small_run(root, rule.replace("_", "-"), TEACHER_ONLY, {"data": {"options": {"val": 32}}}, with_selection(rule, **more))


@pytest.fixture(scope="module")
def by_matches(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose selection is that of the matched queries; only read."""
    return selecting(tmp_path_factory.mktemp("runs"), "positives")


@pytest.mark.parametrize("rule", ["random_k", "lowest_k"])
def test_a_selection_that_sees_objects_no_more_often_than_chance_is_named(tmp_path: Path, rule: str):
    run = selecting(tmp_path, rule, k=5)
    finding = next(finding for finding in found(run) if "selected queries" in finding.statement)
    assert finding.severity == ("error" if rule == "lowest_k" else "warning")
    rows = read_queries(run, "val", [TEACHER_STEP], where="layer = 3")
    chosen = rows[rows["selected"]]
    assert len(chosen) == 5 * rows["image_id"].nunique()
    selected, general = finding.evidence
    assert (selected.value, general.value) == (
        pytest.approx((chosen["best_iou"] >= 0.5).mean()), pytest.approx((rows["best_iou"] >= 0.5).mean()),
    )  # fmt: skip


def test_a_selection_by_quality_or_by_matches_is_not_named(tmp_path: Path, by_matches: Run):
    for run in (selecting(tmp_path, "top_k", k=5), by_matches):
        assert found(run) == []


def test_a_threshold_that_nothing_reaches_is_named(tmp_path: Path):
    run = small_run(tmp_path, "none", TEACHER_ONLY, with_selection("threshold", threshold=1.0),
                    {"train": {"log_every": 5}})  # fmt: skip
    (finding,) = found(run)
    assert finding.severity == "error" and "picks no query at all" in finding.statement


def test_a_mask_that_weighs_targets_less_than_a_uniform_one_is_named_with_both_shares(by_matches: Run, tmp_path: Path):
    run = Run(Path(shutil.copytree(by_matches.path, tmp_path / "masked")))
    images = masked_images(run, "val", TEACHER_STEP)
    masks = [(image, {key: mask.max() - mask for key, mask in read_masks(run, "val", TEACHER_STEP, image).items()}) for image in images]
    assert [finding for finding in found(run) if "mask" in finding.statement] == []
    # where the mask was high it is now 0: it was high on targets if the teacher's queries point there
    cells = inside_by_hand(run)
    wrong = [(image, {key: np.where(cells[image, mask.shape], 0.1, 1.0) for key, mask in of_image.items()}) for image, of_image in masks]
    with states_writer(run, "val", TEACHER_STEP) as writer:
        for image, of_image in wrong:
            writer.write(image, of_image)
    finding = next(finding for finding in found(run) if "mask" in finding.statement)
    shares, covered = [], []
    for image, of_image in wrong:
        mask = of_image[max(of_image)]
        inside = cells[image, mask.shape]
        if inside.any():
            shares.append((0.01 * inside.sum()) / (0.01 * inside.sum() + (~inside).sum()))
            covered.append(inside.mean())
    share, uniform = finding.evidence
    assert share.value == pytest.approx(np.mean(shares), abs=0.01) and uniform.value == pytest.approx(np.mean(covered))


def inside_by_hand(run: Run) -> dict[Any, np.ndarray]:
    """Cells whose centre lies in a target, by image and shape of its masks."""
    cells: dict[Any, np.ndarray] = {}
    for record in open_data(run.info()).records:
        for mask in read_masks(run, "val", TEACHER_STEP, record.image_id).values():
            height, width = mask.shape
            inside = np.zeros(mask.shape, bool)
            for row in range(height):
                for column in range(width):
                    x, y = (column + 0.5) / width * record.width, (row + 0.5) / height * record.height
                    inside[row, column] = any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in record.boxes)
            cells[record.image_id, mask.shape] = inside
    return cells
