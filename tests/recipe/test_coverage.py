"""Targets that no anchor or point covers are counted before training: all of them are refused, more than 5 % are noted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.examples import batch_of
from tests.families import tiny, tiny_config
from tests.flows import TINY, Silent
from workbench.datasets.base import Dataset, Record
from workbench.datasets.transforms import Op, Transform, TransformConfig, targets_after
from workbench.detectors.registry import FAMILIES
from workbench.errors import ConfigError
from workbench.recipe import coverage
from workbench.recipe.coverage import SAMPLE, check_coverage
from workbench.recipe.loading import parse_recipe
from workbench.recipe.setup import Setup, build
from workbench.training.launch import Launch, start

PLAIN = Transform()
# the tiny FCOS has points at 2, 6, 10 ..., at 4, 12 ... and at 8, 24 ...
SEEN, UNSEEN = (1.0, 1.0, 9.0, 9.0), (0.25, 0.25, 1.75, 1.75)


def records(*boxes: Sequence[tuple[float, float, float, float]], crowd: Sequence[int] = (), ignore: Sequence[int] = ()) -> list[Record]:
    """One image of 64 x 48 pixels for each list of boxes; ``crowd`` and ``ignore`` number the boxes of every image."""
    made: list[Record] = []
    for image, own in enumerate(boxes):
        count = len(own)
        crowded, ignored = (np.isin(np.arange(count), flagged) for flagged in (crowd, ignore))
        corners = np.array(own, np.float64).reshape(-1, 4)
        labels = np.where(ignored, -1, 0)
        made.append(Record(image, f"{image}.png", 64, 48, corners, labels, crowded, ignored, np.arange(count), np.ones(count)))
    return made


def dataset(made: list[Record]) -> Dataset:
    return Dataset("made", "train", ["thing"], [1], made, [np.zeros((48, 64, 3), np.uint8)] * len(made))


def test_a_student_whose_points_see_every_target_is_not_noted():
    assert check_coverage(tiny("fcos"), dataset(records([SEEN], [SEEN], [])), PLAIN) == []


def test_the_share_of_targets_without_a_point_is_noted_above_five_percent():
    others = [[(8.0 * k + 1, 8.0 * row + 1, 8.0 * k + 7, 8.0 * row + 7)] for k in range(5) for row in range(4)]
    one_in_21, two_in_21 = dataset(records(*others, [UNSEEN])), dataset(records(*others[1:], [UNSEEN], [UNSEEN]))
    assert check_coverage(tiny("fcos"), one_in_21, PLAIN) == []
    (note,) = check_coverage(tiny("fcos"), two_in_21, PLAIN)
    assert note.startswith("student fcos: 10 % of 21 targets of the training images get no positive candidate")
    assert "nine in ten targets are 2 to 6 pixels large" in note and "strides 4, 8, 16" in note


def test_a_student_that_sees_no_target_is_refused_with_the_sizes_of_targets_and_anchors():
    data = dataset(records([UNSEEN], [UNSEEN, (4.25, 4.25, 5.75, 5.75)]))
    with pytest.raises(
        ConfigError, match=r"student fcos: all of 3 targets .* no positive candidate.* 2 to 2 pixels.*data\.transform\.resize"
    ):
        check_coverage(tiny("fcos"), data, PLAIN)
    with pytest.raises(
        ConfigError, match=r"student retinanet: all of 3 targets .*no anchor by an IoU of 0\.5.*anchors 16 to 101; .*4, 8, 16"
    ):
        check_coverage(tiny("retinanet"), data, PLAIN)


def test_the_size_after_the_transform_decides():
    data = dataset(records([UNSEEN], [(8.25, 8.25, 9.75, 9.75)]))
    enlarged = Transform(TransformConfig.model_validate({"resize": {"height": 480, "width": 640}}))
    assert check_coverage(tiny("fcos"), data, enlarged) == []
    shrunk = Transform(TransformConfig.model_validate({"resize": {"shortest": [6], "longest": 640}}))
    with pytest.raises(ConfigError, match="all of 2 targets"):
        check_coverage(tiny("fcos"), dataset(records([SEEN], [SEEN])), shrunk)


def test_anchors_count_the_nearest_as_none_and_two_targets_may_share_one():
    anchor = (8.0, 8.0, 24.0, 24.0)  # the smallest anchor of stride 4 around (16, 16)
    data = dataset(records([anchor, anchor], [(12.0, 12.0, 20.0, 20.0)]))  # the second has an IoU of 0.25
    (note,) = check_coverage(tiny("retinanet"), data, PLAIN)
    assert "33 % of 3 targets" in note and "only their nearest anchors learn them" in note


def test_regions_that_nothing_learns_and_images_without_targets_do_not_count():
    data = dataset(records([SEEN, UNSEEN, UNSEEN], [], crowd=[1], ignore=[2]))
    assert check_coverage(tiny("fcos"), data, PLAIN) == []
    assert check_coverage(tiny("fcos"), dataset(records([UNSEEN], crowd=[0])), PLAIN) == []


def test_a_target_that_the_crop_leaves_nothing_of_does_not_count():
    crop = Transform(TransformConfig.model_validate({"augment": [{"op": "crop", "probability": 1.0, "min": 0.1, "max": 0.1}]}))
    rng = np.random.default_rng(0)
    draws = [crop.draw(rng, 64, 48)[0] for _ in range(6)]
    windows = [(float(d["x"]), float(d["y"]), float(d["x"] + d["width"]), float(d["y"] + d["height"])) for d in draws]
    outside = [(50.0, 40.0, 52.0, 42.0) if window[0] < 32 else (2.0, 2.0, 4.0, 4.0) for window in windows]
    data = dataset(records(*([window, other] for window, other in zip(windows, outside, strict=True))))
    # a box as large as the window would be seen, and one of no pixel would not
    assert check_coverage(tiny("fcos"), data, crop) == []


@pytest.mark.parametrize("name", [name for name, row in FAMILIES.items() if not row.detector.geometric])
def test_families_whose_assignment_depends_on_predictions_are_not_checked(name: str):
    assert check_coverage(tiny(name), dataset(records([UNSEEN])), PLAIN) == []


def test_a_large_dataset_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch):
    made, asked = records(*([SEEN] if image % 2 else [] for image in range(1000))), list[int]()

    def counted(record: Record, ops: list[Op]) -> Any:
        asked.append(record.image_id)
        return targets_after(record, ops)

    monkeypatch.setattr(coverage, "targets_after", counted)
    assert check_coverage(tiny("fcos"), dataset(made), PLAIN) == []
    assert len(asked) == SAMPLE and asked[0] == 1 and asked[-1] == 999 and all(image % 2 for image in asked)
    assert max(np.diff(asked)) <= 6


def test_a_run_tells_the_share_before_it_trains_and_a_hopeless_one_leaves_no_folder(runs_folder: Path):
    values = {**TINY, "student": tiny_config("retinanet", anchor_sizes=[48, 64, 80], octave_scales=1)}
    listener = Silent()
    start(parse_recipe(values, "test"), Launch("run", device="cpu"), listener)
    assert any("student retinanet:" in message and "overlap no anchor by an IoU of 0.5" in message for message in listener.messages)
    hopeless = parse_recipe({**values, "student": tiny_config("retinanet", anchor_sizes=[300, 300, 300])}, "test")
    with pytest.raises(ConfigError, match=r"student retinanet: all of \d+ targets"):
        start(hopeless, Launch("hopeless", device="cpu"), Silent())
    assert not (runs_folder / "hopeless").exists()


@pytest.mark.parametrize("family", ["fcos", "faster_rcnn"])
def test_strides_that_the_images_are_no_multiple_of_are_noted_and_train(family: str):
    student = tiny_config(family)
    whole, odd = (build_sized(student, height, width) for height, width in ((64, 96), (50, 77)))
    assert not any("multiple" in note for note in whole.notes)
    (note,) = [note for note in odd.notes if "multiple" in note]
    strides = odd.student.config.strides
    assert "77x50 pixels" in note and ", ".join(map(str, strides)) in note and f"Multiples of {max(strides)} " in note
    output = odd.student.train()(torch.zeros(1, 3, 50, 77), torch.zeros(1, 50, 77, dtype=torch.bool), batch_of((3,), 4))
    losses = odd.student.losses(output, batch_of((3,), 4), 1.0)
    assert all(torch.isfinite(value) for value in losses.values())


def test_images_of_several_sizes_are_padded_and_no_stride_is_noted():
    data = {**TINY["data"], "transform": {"resize": {"shortest": [50], "longest": 77}}}
    made = build(parse_recipe({**TINY, "data": data, "student": tiny_config("fcos")}, "test"), None)
    assert not any("multiple" in note for note in made.notes)


def build_sized(student: dict[str, Any], height: int, width: int) -> Setup:
    data = {**TINY["data"], "transform": {"resize": {"height": height, "width": width}}}
    return build(parse_recipe({**TINY, "data": data, "student": student}, "test"), None)
