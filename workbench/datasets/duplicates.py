"""Finds near-duplicate images: one that was saved again, made smaller, or recoloured a little, and neighbouring frames of a video.

An image is reduced to 16x16 grey pixels. Two images are near-duplicates if the differences between neighbouring pixels of the one point
the same way as those of the other: their cosine is at least 0.95. A difference hash keeps only the signs of these differences, and on
textures such as rolled steel its bits agree by chance; the sizes tell them apart. All sums are of whole numbers that float32 holds exactly,
so that every machine finds the same pairs in the same pixels. Flips, rotations and large crops are not found.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 16
_COSINE = (19, 20)
# a flat image has hardly any differences, and noise decides where they point: a mean square below one grey level says nothing
_LEAST = 4 * SIDE * (SIDE - 1) // 2
_BLOCK = 2048

Thumbnails = NDArray[np.uint8]


def thumbnail(image: np.ndarray) -> Thumbnails:
    """Returns ``[256]`` uint8, the image as 16x16 grey pixels.

    Args:
        image: ``[H, W, 3]`` uint8.
    """
    return np.asarray(Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1)


def groups(thumbnails: Thumbnails) -> NDArray[np.int64]:
    """Returns ``[N]``, the group of each image, numbered from 0: images are together if a chain of near-duplicates joins them.

    Args:
        thumbnails: ``[N, 256]`` of ``thumbnail``.
    """
    unique, place = np.unique(thumbnails, axis=0, return_inverse=True)
    edges: list[NDArray[np.int64]] = []
    for rows, columns, alike in _blocks(unique, unique, upper=True):
        first, second = np.nonzero(alike)
        if len(first):
            # a video of one scene has millions of pairs; the first member of each block's component stands for them
            size = max(len(alike), alike.shape[1])
            nodes = np.concatenate([np.arange(size) + rows, np.arange(size) + columns])
            graph = coo_array((np.ones(len(first), bool), (first, second + size)), shape=(2 * size, 2 * size))
            component = connected_components(graph, directed=False)[1]
            _, head = np.unique(component, return_index=True)
            pairs = np.stack([nodes, nodes[head[component]]])
            edges.append(pairs[:, pairs[0] != pairs[1]])
    if not edges:
        return place.reshape(-1).astype(np.int64)
    joined = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(joined.shape[1], bool), (joined[0], joined[1])), shape=(len(unique), len(unique)))
    return connected_components(graph, directed=False)[1][place.reshape(-1)].astype(np.int64)


def twins(thumbnails: Thumbnails, others: Thumbnails) -> NDArray[np.int64]:
    """Returns ``[N]``, for each image the first of ``others`` that is a near-duplicate of it, -1 if there is none.

    Args:
        thumbnails: ``[N, 256]``.
        others: ``[M, 256]``.
    """
    found = np.full(len(thumbnails), -1, np.int64)
    for rows, columns, alike in _blocks(thumbnails, others, upper=False):
        part = found[rows : rows + len(alike)]
        new = (part < 0) & alike.any(1)
        part[new] = columns + alike[new].argmax(1)
    return found


def _blocks(first: Thumbnails, second: Thumbnails, upper: bool) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Yields first row, first column and which pairs of a block are near-duplicates; ``upper`` leaves out blocks below the diagonal."""
    for rows in range(0, len(first), _BLOCK):
        a = first[rows : rows + _BLOCK]
        for columns in range(rows if upper else 0, len(second), _BLOCK):
            yield rows, columns, _alike(a, second[columns : columns + _BLOCK])


def _alike(first: Thumbnails, second: Thumbnails) -> NDArray[np.bool_]:
    a, b = _differences(first), _differences(second)
    dot = (a @ b.T).astype(np.int64)
    own, other = (a * a).sum(1).astype(np.int64), (b * b).sum(1).astype(np.int64)
    part, whole = _COSINE
    alike = (dot > 0) & (whole**2 * dot**2 >= part**2 * own[:, None] * other) & (own >= _LEAST)[:, None] & (other >= _LEAST)
    same = (first[:, None] == second).all(-1) if len(first) * len(second) <= _BLOCK else _equal_rows(first, second)
    return alike | same


def _equal_rows(first: Thumbnails, second: Thumbnails) -> NDArray[np.bool_]:
    _, place = np.unique(np.concatenate([first, second]), axis=0, return_inverse=True)
    place = place.reshape(-1)
    return place[: len(first), None] == place[len(first) :]


def _differences(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """Returns ``[N, 480]``, half the differences to the right and lower neighbour: their products sum up to less than 2**24."""
    halves = (thumbnails // 2).astype(np.float32).reshape(-1, SIDE, SIDE)
    right, down = np.diff(halves, axis=2), np.diff(halves, axis=1)
    return np.concatenate([right.reshape(len(halves), -1), down.reshape(len(halves), -1)], axis=1)
