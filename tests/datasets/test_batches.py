"""Batches: a pure function of seed and step, whoever makes them."""

import numpy as np
import pytest
import torch

from workbench.datasets.base import Dataset, Record
from workbench.datasets.batches import Batch, evaluation_batches
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.datasets.transforms import FixedSize, Transform, TransformConfig
from workbench.errors import DataError
from workbench.training.loader import TrainLoader

AUGMENTED = Transform(TransformConfig.model_validate({"augment": ["dihedral", "crop", "color"], "resize": {"height": 48, "width": 40}}))


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return generate_shapes(ShapesConfig(size=48, max_size=24, train=10), "train")


def same(a: Batch, b: Batch) -> bool:
    tensors = [(a.images, b.images), (a.padding, b.padding), (a.sizes, b.sizes)]
    tensors += [(getattr(a.targets, name), getattr(b.targets, name)) for name in ("boxes", "labels", "valid")]
    return all(torch.equal(x, y) for x, y in tensors) and a.image_ids == b.image_ids and a.ops == b.ops


def record(width: int, height: int, boxes: list[list[float]], image_id: int = 1, crowd: int = 0, ignore: int = 0) -> Record:
    count = len(boxes)
    flags = np.zeros((2, count), bool)
    flags[0, :crowd] = True
    flags[1, crowd : crowd + ignore] = True
    return Record(
        image_id,
        "a.png",
        width,
        height,
        np.array(boxes, float).reshape(-1, 4),
        np.zeros(count, np.int64),
        flags[0],
        flags[1],
        np.arange(1, count + 1),
        np.ones(count),
    )


def test_the_same_step_gives_the_same_batch_in_another_loader_and_in_any_order(shapes: Dataset) -> None:
    forward = [TrainLoader(shapes, AUGMENTED, 4, seed=3).batch(step) for step in range(6)]
    loader = TrainLoader(shapes, AUGMENTED, 4, seed=3)
    assert all(same(loader.batch(step), forward[step]) for step in (5, 0, 3, 1))


def test_another_seed_or_epoch_gives_other_pictures(shapes: Dataset) -> None:
    loader = TrainLoader(shapes, AUGMENTED, 10, seed=3)
    other = TrainLoader(shapes, AUGMENTED, 10, seed=4)
    assert loader.batch(0).ops != loader.batch(1).ops
    assert loader.batch(0).image_ids != loader.batch(1).image_ids
    assert loader.batch(0).image_ids != other.batch(0).image_ids


def test_worker_processes_change_nothing_and_nobody_touches_the_global_random_state(shapes: Dataset) -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    none = [batch for batch, _ in zip(TrainLoader(shapes, AUGMENTED, 4, 3).iterate(2), range(5), strict=False)]
    two = [batch for batch, _ in zip(TrainLoader(shapes, AUGMENTED, 4, 3, workers=2).iterate(2), range(5), strict=False)]
    assert len(none) == len(two) == 5
    assert all(same(a, b) for a, b in zip(none, two, strict=True))
    assert same(none[0], TrainLoader(shapes, AUGMENTED, 4, 3).batch(2))
    assert torch.equal(before, torch.get_rng_state())
    assert (before_numpy == np.random.get_state()[1]).all()  # type: ignore[index]


def test_every_epoch_shows_every_image_and_repeats_only_to_fill_its_last_batch(shapes: Dataset) -> None:
    loader = TrainLoader(shapes, Transform(), 4, seed=0)
    assert loader.steps_per_epoch == 3
    for epoch in range(3):
        ids = [i for step in range(3) for i in loader.batch(3 * epoch + step).image_ids]
        assert sorted(ids[:10]) == list(range(1, 11))
        assert ids[10:] == ids[:2]


def test_ranks_take_disjoint_parts_of_the_batch_that_one_process_would_take(shapes: Dataset) -> None:
    whole = TrainLoader(shapes, AUGMENTED, 4, seed=1)
    parts = [TrainLoader(shapes, AUGMENTED, 2, seed=1, rank=rank, world=2) for rank in range(2)]
    for step in range(4):
        ids = [i for part in parts for i in part.batch(step).image_ids]
        assert ids == list(whole.batch(step).image_ids)
        assert [op for part in parts for op in part.batch(step).ops] == list(whole.batch(step).ops)


def test_a_dataset_smaller_than_the_batch_is_repeated(shapes: Dataset) -> None:
    batch = TrainLoader(shapes, Transform(), 25, seed=0).batch(0)
    assert len(batch.image_ids) == 25
    assert set(batch.image_ids) == set(range(1, 11))


def test_images_are_normalised_with_mean_and_std_and_padded_with_zeros_at_the_right_and_bottom() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)]
    records = [record(7, 5, [[0, 0, 7, 5]]), record(4, 6, [[1, 1.5, 3, 6]], image_id=2)]
    config = TransformConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    (batch,) = evaluation_batches(Dataset("d", "s", ["a"], [1], records, images), Transform(config), 2)
    assert batch.images.shape == (2, 3, 6, 7)
    for i, image in enumerate(images):
        height, width = image.shape[:2]
        expected = (image.transpose(2, 0, 1) / 255 - np.array(config.mean)[:, None, None]) / np.array(config.std)[:, None, None]
        np.testing.assert_allclose(batch.images[i, :, :height, :width].numpy(), expected, atol=1e-6)
        assert not batch.padding[i, :height, :width].any()
        assert batch.padding[i].sum() == 6 * 7 - height * width
        assert (batch.images[i].permute(1, 2, 0)[batch.padding[i]] == 0).all()
    assert batch.sizes.tolist() == [[5, 7], [6, 4]]
    torch.testing.assert_close(batch.targets.boxes[0, :1], torch.tensor([[0.5, 0.5, 1, 1]]))
    torch.testing.assert_close(batch.targets.boxes[1, :1], torch.tensor([[0.5, 3.75 / 6, 0.5, 0.75]]))


def test_crowd_and_ignore_regions_keep_their_index_and_may_not_be_matched() -> None:
    records = [record(8, 8, [[0, 0, 4, 4], [0, 0, 8, 8], [1, 1, 3, 3]], crowd=1, ignore=1)]
    dataset = Dataset("d", "s", ["a"], [1], records, [np.zeros((8, 8, 3), np.uint8)])
    (batch,) = evaluation_batches(dataset, Transform(), 4)
    assert batch.targets.valid[0].tolist() == [False, False, True]


def test_an_image_without_targets_gives_empty_tensors_of_the_right_types() -> None:
    dataset = Dataset("d", "s", ["a"], [1], [record(8, 8, [])], [np.zeros((8, 8, 3), np.uint8)])
    targets = TrainLoader(dataset, AUGMENTED, 1, 0).batch(0).targets
    assert targets.boxes.shape == (1, 0, 4) and targets.boxes.dtype == torch.float32
    assert targets.labels.shape == (1, 0) and targets.labels.dtype == torch.int64
    assert targets.valid.shape == (1, 0) and targets.valid.dtype == torch.bool


def test_evaluation_goes_through_the_dataset_once_in_order_without_augmentation(shapes: Dataset) -> None:
    config = AUGMENTED.config.model_copy(update={"resize": FixedSize(height=32, width=32)})
    batches = list(evaluation_batches(shapes, Transform(config), 4))
    assert [len(b.image_ids) for b in batches] == [4, 4, 2]
    assert [i for b in batches for i in b.image_ids] == list(range(1, 11))
    assert all(ops == [{"op": "resize", "width": 32, "height": 32}] for b in batches for ops in b.ops)
    (chosen,) = evaluation_batches(shapes, Transform(config), 4, indices=[7, 2])
    assert chosen.image_ids == (8, 3)
    assert torch.equal(chosen.images[1], batches[0].images[2])


def test_moving_a_batch_keeps_what_is_in_it(shapes: Dataset) -> None:
    batch = TrainLoader(shapes, AUGMENTED, 4, 0).batch(0)
    assert same(batch.to("cpu"), batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_stops_with_one_line_that_names_the_file(workers: int) -> None:
    class Broken:
        def __getitem__(self, index: int, /) -> np.ndarray:
            raise DataError("images/a.png cannot be decoded")

    dataset = Dataset("d", "s", ["a"], [1], [record(8, 8, [])], Broken())
    with pytest.raises(DataError) as caught:
        next(TrainLoader(dataset, Transform(), 1, 0, workers=workers).iterate(0))
    assert str(caught.value) == "images/a.png cannot be decoded"
