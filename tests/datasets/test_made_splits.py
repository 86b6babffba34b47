"""Splits that are made when a dataset is opened."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.test_voc import write_xml
from workbench.datasets import made_splits
from workbench.datasets.issues import Policy
from workbench.datasets.made_splits import write_lists
from workbench.datasets.opening import open_dataset
from workbench.datasets.splitting import SplitConfig
from workbench.errors import ConfigError, DataError

CONFIG = SplitConfig(val=0.25, test=0.25)


def save(path: Path, seed: int, quality: int = 95) -> None:
    """Writes blurred noise, which survives being saved again."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(path, quality=quality)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images; c and j are copies of a and b that were saved again."""
    folder = tmp_path / "data"
    for number, stem in enumerate("abcdefghijkl"):
        save(folder / "JPEGImages" / f"{stem}.jpg", {2: 0, 9: 1}.get(number, number), 95 if number < 2 else 60)
        write_xml(folder, stem, [("cat" if number % 3 else "dog", (2, 2, 40, 40))], (64, 48))
    return folder


def members(root: Path, config: SplitConfig = CONFIG) -> dict[str, list[str]]:
    return {split: [r.file_name for r in open_dataset(root, split, splits=config).records] for split in ("train", "val", "test")}


def test_three_splits_are_made_of_one_and_images_that_were_saved_again_stay_together(root: Path) -> None:
    made = members(root)
    assert {split: len(names) for split, names in made.items()} == {"train": 6, "val": 3, "test": 3}
    assert sorted(name for names in made.values() for name in names) == [f"{stem}.jpg" for stem in "abcdefghijkl"]
    for twins in ({"a.jpg", "c.jpg"}, {"b.jpg", "j.jpg"}):
        assert any(twins <= set(names) for names in made.values())


def test_the_same_files_elsewhere_give_the_same_splits_and_hashes(root: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(root, tmp_path / "data2" / "data"))
    assert members(other) == members(root)
    assert open_dataset(other, "val", splits=CONFIG).hash() == open_dataset(root, "val", splits=CONFIG).hash()


def test_unchanged_files_are_divided_once_and_changed_ones_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    divide = made_splits.divide
    monkeypatch.setattr(made_splits, "divide", lambda names, *rest: calls.append(len(names)) or divide(names, *rest))
    made = members(root)
    assert calls == [12] and members(root) == made and calls == [12]
    (root / "Annotations" / "l.xml").unlink()
    members(root)
    assert calls == [12, 11]


def test_a_missing_image_is_counted_with_training_under_the_policy_of_the_recipe(root: Path) -> None:
    (root / "JPEGImages" / "e.jpg").unlink()
    drop = Policy(missing_image="drop", broken_file="drop")
    kept = [open_dataset(root, split, policy=drop, splits=CONFIG).records for split in ("train", "val", "test")]
    assert sum(map(len, kept)) == 11
    with pytest.raises(DataError, match="missing image"):
        open_dataset(root, "train", splits=CONFIG)


def test_a_split_that_is_not_made_is_that_of_the_files(root: Path) -> None:
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join("abcdefghi"))
    (lists / "test.txt").write_text("\n".join("jkl"))
    config = SplitConfig(of="train", val=0.3, test=0)
    made = {split: {r.file_name[0] for r in open_dataset(root, split, splits=config).records} for split in ("train", "val", "test")}
    assert made["test"] == set("jkl") and made["train"] | made["val"] == set("abcdefghi")
    assert not made["train"] & made["val"] and len(made["val"]) == 3


def test_lists_hold_one_file_name_a_line(root: Path, tmp_path: Path) -> None:
    write_lists(tmp_path / "splits", {split: open_dataset(root, split, splits=CONFIG) for split in ("train", "val")})
    assert sorted(path.name for path in (tmp_path / "splits").iterdir()) == ["train.txt", "val.txt"]
    assert (tmp_path / "splits" / "val.txt").read_text().splitlines() == members(root)["val"]


def test_a_video_of_one_scene_and_a_lone_image_are_refused_before_anything_is_made(root: Path) -> None:
    for image in (root / "JPEGImages").iterdir():
        shutil.copy(root / "JPEGImages" / "a.jpg", image) if image.stem != "a" else None
    with pytest.raises(DataError, match=r"1 groups of near-duplicates \(a video of one scene\?\) of 12 images"):
        open_dataset(root, "train", splits=CONFIG)
    for xml in (root / "Annotations").iterdir():
        xml.unlink() if xml.stem != "a" else None
    with pytest.raises(DataError, match="cannot be made of 1 image:"):
        open_dataset(root, "train", splits=CONFIG)


def test_the_embedded_dataset_makes_its_own_splits() -> None:
    with pytest.raises(ConfigError, match="shapes makes its own splits"):
        open_dataset("shapes", "train", splits=CONFIG)
