"""Do the selected queries, and the selection mask, look at objects?"""

import numpy as np
import pandas as pd

from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import LOCALISED, Material
from workbench.analysis.diagnosis.statistics import ratio_difference
from workbench.store.queries import TEACHER_STEP
from workbench.store.states import masked_images, read_masks

# selected queries are to see objects this many times as often as all queries do; a random choice has 1
LIFT = 1.25
# a selection that keeps most queries, or images full of objects, leave no room for such a difference
LEAST_ROOM = 1.5
MASKS = 200  # images whose masks are read; more do not change the interval's message


def background_selection(material: Material, baseline: Material | None) -> list[Finding]:
    """A selection of teacher queries that sees objects no more often than a random one would, or a mask that weighs targets less than a
    uniform weight would.

    A query sees an object when its box has IoU 0.5 or more with a target. A mask's weight is what equation 9 of DETRDistill gives a cell
    (the square of the mask); a cell lies in a target when its centre does. A mask that weighs targets as a uniform weight does is
    useless but harmless, and not a finding.
    """
    method = next((method for method in material.methods if method.get("method") == "detrdistill"), None)
    if method is None:
        raise NotJudged("no method of the run selects teacher queries")
    selects = (method.get("selection") or {}).get("rule", "all") != "all"
    masks = ((method.get("features") or {}).get("mask") or "uniform") != "uniform"
    if not selects and not masks:
        raise NotJudged("the method uses all teacher queries and no mask")
    found = _queries(material) if selects else []
    # the mask of a selection that points nowhere is 0, which says nothing more
    return found or (_mask(material) if masks else [])


def _queries(material: Material) -> list[Finding]:
    rows = material.teacher
    if rows["selected"].isna().any():
        raise NotJudged("the run does not say which queries were selected: it was made by an older version")
    sees, selected = rows["best_iou"].to_numpy() >= LOCALISED, rows["selected"].to_numpy(bool)
    per_image = pd.DataFrame({"sees": sees, "selected": selected, "both": sees & selected}).groupby(rows["image_id"].to_numpy()).sum()
    columns = per_image.to_numpy(np.float64).T
    every = np.full(len(per_image), rows.groupby("image_id").size().iloc[0], dtype=np.float64)
    saw, chose, both = columns
    if not chose.any():
        return [Finding("background selection", "error", "The selection picks no query at all: nothing is taught.",
                        (Evidence("selected queries", 0.0, len(rows), "teacher queries"),), "Lower selection.threshold.")]  # fmt: skip
    room = min(every.sum() / chose.sum(), every.sum() / max(saw.sum(), 1))
    if room < LEAST_ROOM:
        return []
    chosen, general = ratio_difference((both, chose)), ratio_difference((saw, every))
    if ratio_difference((both, chose), (LIFT * saw, every)).high >= 0:
        return []
    return [Finding(
        "background selection", "error" if chosen.high < general.low else "warning",
        f"The selected queries see an object in {100 * chosen.value:.0f} % of cases, all queries in {100 * general.value:.0f} %: the "
        "selection picks background.",
        (
            Evidence("share of selected teacher queries on an object", chosen.value, chosen.n, "images", chosen.low, chosen.high),
            Evidence("share of all teacher queries on an object", general.value, general.n, "images", general.low, general.high),
        ),
        "Select by quality (selection: {rule: top_k}) or the teacher's own matches (rule: positives).",
    )]  # fmt: skip


def _mask(material: Material) -> list[Finding]:
    images = masked_images(material.run, material.split, TEACHER_STEP)[:: max(1, len(material.data.records) // MASKS)]
    targets = dict(tuple(material.targets.groupby("image_id")))
    parts = [_mass(read_masks(material.run, material.split, TEACHER_STEP, image), targets[image]) for image in images if image in targets]
    kept = np.array([part for part in parts if part is not None])
    if not len(kept):
        raise NotJudged("the run keeps no selection masks of images with targets")
    inside, mass, area, cells = kept.T
    # the mass of every image counts the same, or one loud image would stand for all
    on_targets, of_image = (inside / mass, np.ones(len(kept))), (area / cells, np.ones(len(kept)))
    if ratio_difference(on_targets, of_image).high >= 0:
        return []
    share, uniform = ratio_difference(on_targets), ratio_difference(of_image)
    return [Finding(
        "background selection", "warning",
        f"The selection mask puts {100 * share.value:.0f} % of its weight on targets, which cover {100 * uniform.value:.0f} % of the "
        "image: it points at the background.",
        (
            Evidence("share of the mask's weight on targets", share.value, share.n, "images", share.low, share.high),
            Evidence("share of the image that targets cover", uniform.value, uniform.n, "images", uniform.low, uniform.high),
        ),
        "Compare with a uniform weight (features: {mask: uniform}), or the other mask (product, cosine); see the masks over the images.",
    )]  # fmt: skip


def _mass(masks: dict[tuple[int, int], np.ndarray], targets: pd.DataFrame) -> np.ndarray | None:
    """``[4]``: weight inside targets, weight, cells inside targets and cells of the last layer's masks of one image, levels added up.

    None where the mask is 0 everywhere: no teacher query had any quality there.
    """
    last = max(layer for layer, _ in masks)
    total = np.zeros(4)
    boxes = targets[["x1", "y1", "x2", "y2"]].to_numpy()
    for (layer, _), mask in masks.items():
        if layer == last:
            weight = np.square(np.asarray(mask, dtype=np.float64))
            inside = _covered(boxes, *mask.shape)
            # levels have cells of different sizes; each counts as one whole image
            total += np.array([weight[inside].sum() / mask.size, weight.sum() / mask.size, inside.mean(), 1.0])
    return total if total[1] > 0 else None


def _covered(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """``[height, width]`` bool: the cell's centre lies in one of the boxes ``[G, 4]`` x1 y1 x2 y2, 0..1."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    across = (boxes[:, 0, None] <= x) & (x <= boxes[:, 2, None])
    down = (boxes[:, 1, None] <= y) & (y <= boxes[:, 3, None])
    return np.any(down[:, :, None] & across[:, None, :], axis=0)
