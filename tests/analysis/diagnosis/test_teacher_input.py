"""Images of other numbers or another size than the teacher knows."""

from pathlib import Path
from typing import Any

import pytest

from tests.analysis.diagnosis.small_runs import TEACHER_ONLY, small_run
from tests.flows import command, teacher_copy
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.diagnosis.findings import Finding
from workbench.analysis.diagnosis.teacher_input import doubtful, mends
from workbench.files import read_json
from workbench.store.run import Run
from workbench.training.sanity import keep_readings

VAL: dict[str, Any] = {"data": {"options": {"val": 24}}}


def found(run: Run) -> list[Finding]:
    return [finding for finding in diagnose(run).findings if finding.cause in ("normalisation", "resolution")]


def test_wrong_normalisation_is_named_once_the_teacher_was_tried_again(tmp_path: Path):
    teacher = {"teacher": {"checkpoint": str(teacher_copy(tmp_path, mean=[0.0] * 3, std=[1 / 255] * 3))}}
    run = small_run(tmp_path, "numbers", TEACHER_ONLY, VAL, teacher, guarded=False)
    assert found(run) == [] and doubtful(run)
    keep_readings(run)
    (finding,) = found(run)
    assert (finding.cause, finding.severity, doubtful(run)) == ("normalisation", "error", False)
    assert "With ImageNet mean and std it reaches" in finding.statement
    as_used, mended = finding.evidence
    assert mended.value > 40 > as_used.value and as_used.n == 24


def test_images_of_another_size_are_named_by_the_verb_which_tries_the_teacher_itself(tmp_path: Path):
    small_images = {"data": {"transform": {"resize": {"height": 40, "width": 40}}}}
    run = small_run(tmp_path, "size", TEACHER_ONLY, VAL, small_images, guarded=False)
    code, out, _ = command("diagnose", "size", "--runs", str(tmp_path), "--json", str(tmp_path / "found.json"))
    assert code == 0 and "error: resolution. The teacher gets images with another resolution than it was trained on" in out
    assert "With images in their original size it reaches" in out and "What to do: Set data.transform.resize" in out
    assert [finding["cause"] for finding in read_json(tmp_path / "found.json")["findings"]] == [f.cause for f in diagnose(run).findings]


@pytest.mark.parametrize(("ap", "other", "right"), [(0.0, 0.06, True), (0.0, 0.04, False), (0.2, 0.31, True), (0.3, 0.41, False)])
def test_another_reading_is_right_when_it_is_half_as_good_again_and_better_by_ten_ap(ap: float, other: float, right: bool):
    assert mends(ap, other) is right
