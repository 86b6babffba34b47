"""A fixed number of augmentations of every image: replayed byte for byte, padded alike, the same for every seed and arm."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from workbench.datasets.base import Dataset, Record
from workbench.datasets.batches import variant_batch
from workbench.datasets.opening import open_dataset
from workbench.datasets.transforms import Transform, TransformConfig
from workbench.datasets.variants import Variants
from workbench.training.loader import TrainLoader

SIZES = [(40, 30), (25, 38), (31, 31)]
TRANSFORMS: dict[str, dict[str, Any]] = {
    "flip": {"augment": ["flip"]},
    "resize ladder": {"resize": {"shortest": [16, 24, 33], "longest": 50}},
    "fixed size": {"resize": {"height": 24, "width": 36}},
    "crop": {"augment": [{"op": "crop", "probability": 0.8, "min": 0.3}]},
    "color": {"augment": ["color"]},
    "dihedral": {"augment": ["dihedral"]},
    "all": {"augment": ["flip", "dihedral", "crop", "color"], "resize": {"shortest": [16, 24, 33], "longest": 50}},
}


def pictures() -> Dataset:
    rng, records, images = np.random.default_rng(3), [], []
    for number, (width, height) in enumerate(SIZES):
        box, none = np.array([[2.0, 3.0, 20.5, 21.0]]), np.zeros(1, bool)
        records.append(Record(number, f"{number}.png", width, height, box, np.zeros(1, np.int64), none, none, np.arange(1), np.ones(1)))
        images.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Dataset("pictures", "train", ("thing",), (1,), records, images)


def variants_of(config: dict[str, Any], count: int = 24) -> Variants:
    return Variants(pictures(), Transform(TransformConfig.model_validate(config)), count)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_replayed_from_its_written_parameters_gives_byte_equal_images_targets_and_padding(name: str):
    variants = variants_of(TRANSFORMS[name])
    seen: set[str] = set()
    for number in range(variants.count):
        batch = variant_batch(variants, [0, 1, 2], [number] * 3)
        # nothing but what was written down: no seed and no object of the first time
        written = json.loads(json.dumps(batch.ops))
        seen |= {json.dumps(op, sort_keys=True) for ops in written for op in ops}
        for row, ops in enumerate(written):
            again = variants.transform.apply(variants.dataset.image(row), variants.dataset.records[row], ops)
            height, width = again.image.shape[:2]
            picture = torch.from_numpy(np.array(again.image)).permute(2, 0, 1).float()
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (variants.transform.config.mean, variants.transform.config.std))
            assert torch.equal(batch.images[row, :, :height, :width], picture / (255 * std) - mean / std)
            assert batch.padding[row].logical_not().sum() == height * width and not batch.padding[row, :height, :width].any()
            assert batch.images[row][:, batch.padding[row]].eq(0).all()
            there = torch.tensor(again.valid)
            assert torch.equal(batch.targets.boxes[row, : len(there)][there], torch.from_numpy(again.boxes)[there])
            assert batch.targets.valid[row].tolist() == again.valid.tolist() + [False] * (batch.targets.valid.shape[1] - len(there))
        fresh = variant_batch(variants_of(TRANSFORMS[name]), [2, 0, 1], [number] * 3)
        assert fresh.images.numpy().tobytes() == batch.images[[2, 0, 1]].numpy().tobytes()
        assert fresh.images.shape[-2:] == variants.canvas
    if name == "dihedral":
        assert seen == {json.dumps({"move": move, "op": "dihedral"}) for move in range(1, 8)}, "and the eighth, which does nothing"
    assert len(seen) == {"flip": 1, "dihedral": 7, "fixed size": 1}.get(name, len(seen)) and seen


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_canvas_is_the_largest_of_all_variants(name: str):
    variants = variants_of(TRANSFORMS[name], 5)
    shapes = [
        variants.transform.apply(variants.dataset.image(index), variants.dataset.records[index], variants.ops(index, number)).image.shape
        for index in range(3)
        for number in range(5)
    ]
    assert variants.canvas == (max(s[0] for s in shapes), max(s[1] for s in shapes))


def test_an_epoch_draws_one_variant_of_every_image_in_turn_whatever_the_seed():
    data = open_dataset("shapes", "train", train=8, val=1, test=1)
    transform = Transform(TransformConfig.model_validate({"augment": ["dihedral", "color"]}))
    variants = Variants(data, transform, 3)
    orders = []
    for seed in (0, 1):
        loader = TrainLoader(data, transform, 4, seed, variants=variants)
        order: list[int] = []
        for step in range(8):  # four epochs
            batch = loader.batch(step)
            index_of = {record.image_id: index for index, record in enumerate(data.records)}
            for image_id, ops in zip(batch.image_ids, batch.ops, strict=True):
                assert ops == variants.ops(index_of[image_id], (step // 2) % 3)
            order += batch.image_ids
        assert all(sorted(order[k : k + 8]) == sorted(index_of) for k in range(0, 32, 8))
        assert torch.equal(loader.batch(5).images, TrainLoader(data, transform, 4, seed, variants=variants).batch(5).images)
        orders.append(order)
    assert orders[0] != orders[1]
    drawn = {json.dumps(variants.ops(index, number)) for index in range(8) for number in range(3)}
    assert len(drawn) == 24, "variants of one image differ, and those of different images"


def test_parts_of_a_batch_are_its_images_in_order():
    data = open_dataset("shapes", "train", train=4, val=1, test=1)
    batch = TrainLoader(data, Transform(), 4, 0).batch(0)
    parts = [batch.part(0, 2), batch.part(2, 4)]
    assert sum((part.image_ids for part in parts), ()) == batch.image_ids
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    for first, part in zip((0, 2), parts, strict=True):
        used = part.targets.valid.shape[1]
        for own, whole in (
            (part.targets.boxes, batch.targets.boxes),
            (part.targets.labels, batch.targets.labels),
            (part.targets.valid, batch.targets.valid),
        ):
            assert torch.equal(own, whole[first : first + 2, :used])
        assert not batch.targets.valid[first : first + 2, used:].any(), "a slot that is cut off holds no target"
    assert parts[1].teacher is None
