"""Random matchings as rows of the query table."""

import numpy as np
import pandas as pd


def random_queries(
    seed: int, steps: int = 3, images: int = 4, layers: int = 2, slots: int = 5, selected: bool = False, teacher_layers: int = 0
) -> pd.DataFrame:
    """Every query of every image, layer and step; targets 0..7 per image, more than the slots now and then; the first has none.

    Matchings keep about half of the pairs from one moment to the next. ``selected`` gives each step its own encoder cells.
    """
    rng = np.random.default_rng(seed)
    targets = rng.integers(1, 8, images)
    targets[0] = 0
    columns = ["step", "model", "image_id", "layer", "query", "source", "match", "quality", "mate", "mate_layer"]
    rows: list[tuple[object, ...]] = []

    def matching(image: int, last: np.ndarray | None) -> np.ndarray:
        if last is not None and rng.random() < 0.3:
            return last
        count = min(slots, int(targets[image]))
        match = np.full(slots, -1)
        match[rng.permutation(slots)[:count]] = rng.permutation(int(targets[image]))[:count]
        return match

    for model, moments, depth in (("student", [10 * (k + 1) for k in range(steps)], layers), ("teacher", [-1], teacher_layers)):
        last: dict[int, np.ndarray] = {}
        for step in moments:
            for image in range(images):
                source = rng.permutation(2 * slots)[:slots] if selected else np.full(slots, -1)
                for layer in range(depth):
                    last[image] = matching(image, last.get(image))
                    mate = rng.permutation(slots) if rng.random() < 0.5 else np.arange(slots)
                    for slot in range(slots):
                        pair = (int(mate[slot]), 2 * layer + 1) if model == "student" else (None, None)
                        match = int(last[image][slot])
                        rows.append((step, model, 100 + image, layer, slot, int(source[slot]), match, rng.random(), *pair))
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sample(frac=1, random_state=seed).astype({"match": "int16", "layer": "int8", "step": "int32"})
