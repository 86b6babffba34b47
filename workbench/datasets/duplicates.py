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
    found = np.full(len(thumbnails), len(others), np.int64)
    for rows, columns, alike in _blocks(thumbnails, others, upper=False):
        part = found[rows : rows + len(alike)]
        part[:] = np.minimum(part, np.where(alike.any(1), columns + alike.argmax(1), len(others)))
    first = {pixels.tobytes(): position for position, pixels in reversed(list(enumerate(others)))}
    same = np.array([first.get(pixels.tobytes(), len(others)) for pixels in thumbnails], np.int64)
    found = np.minimum(found, same)
    return np.where(found < len(others), found, -1)


def _blocks(first: Thumbnails, second: Thumbnails, upper: bool) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Yields first row, first column and which pairs of a block are near-duplicates; ``upper`` leaves out blocks below the diagonal."""
    for rows in range(0, len(first), _BLOCK):
        a = _differences(first[rows : rows + _BLOCK])
        for columns in range(rows if upper else 0, len(second), _BLOCK):
            yield rows, columns, _alike(a, _differences(second[columns : columns + _BLOCK]))


def _alike(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.bool_]:
    dot = first @ second.T
    own, other = (first * first).sum(1), (second * second).sum(1)
    part, whole = _COSINE
    # rounded, and so a little lower than what the whole numbers decide on: few pairs reach it
    lowest = np.sqrt(own)[:, None] * (0.999 * part / whole * np.sqrt(other))
    alike = (dot >= lowest) & (own >= _LEAST)[:, None] & (other >= _LEAST)
    rows, columns = np.nonzero(alike)
    products = dot[rows, columns].astype(np.int64)
    alike[rows, columns] = whole**2 * products**2 >= part**2 * own[rows].astype(np.int64) * other[columns].astype(np.int64)
    return alike


def _differences(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """Returns ``[N, 480]``, half the differences to the right and lower neighbour: their products sum up to less than 2**24."""
    halves = (thumbnails // 2).astype(np.float32).reshape(-1, SIDE, SIDE)
    right, down = np.diff(halves, axis=2), np.diff(halves, axis=1)
    return np.concatenate([right.reshape(len(halves), -1), down.reshape(len(halves), -1)], axis=1)
