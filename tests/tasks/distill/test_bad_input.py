"""What cannot be trained on is refused by ``workbench distill`` in one clear message before a step is trained; nothing is left behind."""

import errno
import json
import os
import re
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.flows import InProcess, command
from workbench.errors import CheckpointError, RunError
from workbench.files import write_json
from workbench.recipe.setup import find_detector
from workbench.store.jobs import jobs_root
from workbench.tasks.distill import job
from workbench.tasks.distill.planning import MOST_CLASSES

Usage = namedtuple("Usage", ["total", "used", "free"])
SQUARE = (64, 64)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures a pace on one step."""
    for name, value in (("COLD", 0), ("LEAST", 1), ("ENOUGH_SECONDS", 0.0)):
        monkeypatch.setattr(f"workbench.tasks.distill.pace.{name}", value)


def coco(folder: Path, sizes: Sequence[tuple[int, int]], classes: Sequence[str] = ("cell",), boxes: int = 2) -> Path:
    """COCO data with noise for images, so that none is near another, and boxes that cover a third of each."""
    (folder / "images").mkdir(parents=True)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    for number, (width, height) in enumerate(sizes, start=1):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        for _ in range(boxes):
            count = len(content["annotations"])
            box = [0.1 * width, 0.1 * height, width / 3, height / 3]
            content["annotations"].append({"id": count + 1, "image_id": number, "category_id": count % len(classes) + 1, "bbox": box,
                                           "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    write_json(folder / "instances.json", content)
    return folder


def refused(data: Path | str, *arguments: str) -> str:
    """Asks for a job without ``--dry-run``; the message of its refusal, with nothing trained and nothing made."""
    started = len(InProcess.started)
    code, _, err = command("distill", "--data", str(data), "--student", "tiny", "--device", "cpu", "--name", "wish", *arguments)
    assert code != 0 and err.startswith("workbench: ") and "Traceback" not in err
    assert len(InProcess.started) == started and not (jobs_root() / "wish").exists()
    return err


def planned(data: Path) -> str:
    wish = ("distill", "--data", str(data), "--student", "tiny", "--device", "cpu", "--dry-run", "--budget", "8h")
    code, out, err = command(*wish)
    assert code == 0, err
    return out


def test_a_folder_that_is_no_dataset_says_what_was_seen_and_expected(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "readme.txt").write_text("hello")
    assert "not a dataset of a known format. Seen: readme.txt. Expected one of" in refused(tmp_path / "data")


def test_labels_without_images_name_the_files_that_are_missing_and_offer_no_policy(tmp_path: Path):
    folder = coco(tmp_path / "data", [SQUARE] * 3)
    for image in (folder / "images").iterdir():
        image.unlink()
    said = refused(folder)
    assert "missing image: 3 refused" in said and "1.png" in said
    assert said.rstrip().endswith("Correct the files.")


def test_images_without_boxes_are_refused(tmp_path: Path):
    assert "3 images and not one box to train on" in refused(coco(tmp_path / "data", [SQUARE] * 3, boxes=0))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_for_three_splits_say_so(tmp_path: Path, count: int):
    assert f"cannot be made of {count} image" in refused(coco(tmp_path / "data", [SQUARE] * count))


def test_one_class_is_enough(tmp_path: Path):
    said = planned(coco(tmp_path / "data", [SQUARE] * 10))
    assert "boxes: cell 20" in said and "measured: teacher" in said


def test_images_of_many_sizes_get_one_size_in_multiples_of_32(tmp_path: Path):
    sizes = [(40 + 7 * number, 150 - 6 * number) for number in range(20)]
    said = planned(coco(tmp_path / "data", sizes))
    size = re.search(r"data\.transform\.resize = {'height': (\d+), 'width': (\d+)}", said)
    assert size is not None and all(0 < int(side) <= 160 and int(side) % 32 == 0 for side in size.groups())


def test_ten_thousand_classes_are_planned_and_not_all_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    classes = [f"class{number}" for number in range(10_000)]
    monkeypatch.setattr("workbench.tasks.distill.pace.warm_seconds", lambda step: (0.1, 0.1))
    said = planned(coco(tmp_path / "data", [SQUARE] * 10, classes))
    assert f"and {10_000 - MOST_CLASSES:,} more classes" in said


@pytest.mark.parametrize(("budget", "words"), [
    ("20s", "starting 3 students and writing the answer alone take about"), ("60s", "the shortest schedules"),
])  # fmt: skip
def test_a_budget_too_small_for_one_evaluation_says_what_would_do(tmp_path: Path, budget: str, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.tasks.distill.pace.warm_seconds", lambda step: (1.0, 1.0))
    said = refused(coco(tmp_path / "data", [SQUARE] * 10), "--budget", budget)
    assert "is too small" in said and words in said and "--budget" in said


def test_a_teacher_whose_classes_do_not_cover_the_data_is_refused_with_those_it_knows(tmp_path: Path):
    said = refused(coco(tmp_path / "data", [SQUARE] * 10), "--teacher", "shapes_teacher")
    assert "the teacher does not know 'cell'; it knows 'circle', 'square', 'triangle', 'cross'" in said and "class_map" in said


def test_a_disk_without_space_for_all_checkpoints_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.tasks.distill.planning.shutil.disk_usage", lambda _: Usage(10**9, 10**9, 10**6))
    said = refused(coco(tmp_path / "data", [SQUARE] * 10))
    assert "the checkpoints of the job take" in said and "1 MB free. Free some space" in said


def test_a_disk_that_fills_while_the_plan_is_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = coco(tmp_path / "data", [SQUARE] * 10)
    monkeypatch.setattr("workbench.files.os.replace", full)
    code, _, err = command("distill", "--data", str(data), "--student", "tiny", "--device", "cpu", "--budget", "8h")
    assert code != 0 and "No space left on device" in err and "Nothing was lost" in err and "Traceback" not in err
    assert not list(jobs_root().glob("*/plan.json")), "a job without a plan begins again"


@pytest.mark.parametrize("error", [ConnectionError("cut"), TimeoutError("slow")])
def test_a_cut_connection_to_the_hub_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def cut(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", cut)
    with pytest.raises(CheckpointError, match=r"the hub could not be reached .* check the network and repeat the command"):
        find_detector("someone/detector")


def test_a_run_that_fails_leaves_the_others_and_the_job_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise RunError("run 'x' ended with code 1:\nworkbench: cannot write x: No space left on device. Nothing was lost.")

    monkeypatch.setattr(job, "execute", full)
    data = coco(tmp_path / "data", [SQUARE] * 10)
    arguments = ("distill", "--data", str(data), "--student", "tiny", "--device", "cpu", "--budget", "8h", "--name", "full")
    for _ in range(2):  # the second time it goes on with the plan that is there
        code, _, err = command(*arguments)
        assert code == RunError.exit_code and "No space left on device" in err and "Traceback" not in err
        kept = json.loads((jobs_root() / "full" / "plan.json").read_text())
        assert kept["stage"] == "teacher"
