"""Makes rows of a query table of the size of COCO's validation split, without a model."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from workbench.store.query_schema import QUERY_SCHEMA

IMAGES, LAYERS, QUERIES = 5_000, 6, 300
TARGETS = 7.3  # mean number per image of COCO's validation split
_CHUNK = 250  # images made at once
_KEPT = 0.8  # share of the targets whose query is the same at the next layer


def query_chunks(seed: int, images: int = IMAGES, model: str = "student") -> Iterator[pa.Table]:
    """Yields tables of ``QUERY_SCHEMA`` of 250 images each, together ``images`` x 6 layers x 300 queries.

    The number of targets per image is geometric, as in COCO. A target keeps its query from one layer to the next with probability 0.8.
    Scores, boxes and costs are random in all their bits. They hardly compress, which is the worst case for size and speed.

    Args:
        seed: seed of the rows; the images and their numbers of targets do not depend on it.
        images: number of images; their ids have gaps, as in COCO.
        model: "student" or "teacher".
    """
    rng = np.random.default_rng(seed)
    counts = np.minimum(np.random.default_rng(0).geometric(1 / (TARGETS + 1), images) - 1, 63)
    for first in range(0, images, _CHUNK):
        some = counts[first : first + _CHUNK]
        yield _chunk(rng, some, 113 * np.arange(first, first + len(some)) + 139, model)


def _chunk(rng: np.random.Generator, targets: np.ndarray, image_ids: np.ndarray, model: str) -> pa.Table:
    shape = (len(targets), LAYERS, QUERIES)
    rows = int(np.prod(shape))
    match = _matchings(rng, targets)
    matched = match >= 0
    floats = rng.random((16, rows), dtype=np.float32)
    values = {
        "image_id": np.broadcast_to(image_ids[:, None, None], shape), "layer": np.broadcast_to(np.arange(LAYERS)[:, None], shape),
        "query": np.broadcast_to(np.arange(QUERIES), shape), "source": np.broadcast_to(rng.permutation(8500)[:QUERIES], shape),
        "label": rng.integers(0, 80, rows), "match": match, "match_iou": np.where(matched.ravel(), floats[0], 0.0),
        "best_target": np.where(floats[1] < 0.3, rng.integers(0, 7, rows), -1), "best_iou": np.where(floats[1] < 0.3, floats[2], 0.0),
        "quality": np.where(matched.ravel(), floats[3], 0.0), "selected": matched,
        "mate": np.argsort(rng.random(shape, dtype=np.float32)), "mate_layer": np.broadcast_to(np.arange(LAYERS)[:, None], shape),
        **dict(zip(("score", "cx", "cy", "w", "h", "mate_cost_class", "mate_cost_bbox", "mate_cost_giou", "loss_class", "loss_bbox",
                    "loss_giou"), floats[4:], strict=False)),
    }  # fmt: skip

    def column(field: pa.Field) -> pa.Array:
        if field.name == "model":
            return pa.repeat(model, rows)
        if model != "student" and field.name.startswith(("mate", "train_mate")):
            return pa.nulls(rows, field.type)
        found = values["mate"] if field.name == "train_mate" else values.get(field.name, np.zeros(rows))
        return pa.array(found.reshape(-1).astype(field.type.to_pandas_dtype()), field.type)

    return pa.Table.from_arrays([column(field) for field in QUERY_SCHEMA], schema=QUERY_SCHEMA)


def _matchings(rng: np.random.Generator, targets: np.ndarray) -> np.ndarray:
    """Returns the target of each query, ``[images, LAYERS, QUERIES]``; -1 if it is unmatched."""
    match = np.full((len(targets), LAYERS, QUERIES), -1)
    for image, count in enumerate(targets):
        slots = rng.permutation(QUERIES)[:count]
        for layer in range(LAYERS):
            moved = np.flatnonzero(rng.random(count) > _KEPT)
            if layer and len(moved):
                free = np.setdiff1d(np.arange(QUERIES), slots)
                slots[moved] = rng.choice(free, len(moved), replace=False)
            match[image, layer, slots] = np.arange(count)
    return match
