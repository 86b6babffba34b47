"""Checks whether the selected queries and the selection mask look at objects."""

import numpy as np
import pandas as pd

from workbench.analysis.diagnosis.findings import Evidence, Finding, NotJudged
from workbench.analysis.diagnosis.material import LOCALISED, Material
from workbench.analysis.diagnosis.statistics import ratio_difference
from workbench.store.queries import TEACHER_STEP
from workbench.store.states import masked_images, read_masks

# selected queries should see objects this many times as often as all queries do; a random selection has 1
LIFT = 1.25
# a selection of most queries, or images full of objects, leave no room for such a difference
LEAST_ROOM = 1.5
MASKS = 200  # number of images whose masks are read; more hardly narrow the interval


def background_selection(material: Material, baseline: Material | None) -> list[Finding]:
    """Finds a selection of teacher queries that sees objects no more often than a random one, or a mask that weights targets less than a
    uniform weight would.

    A query sees an object if its box has IoU 0.5 or more with a target. A mask's weight is the weight that equation 9 of DETRDistill
    gives a cell (the square of the mask). A cell lies in a target if its centre does. A mask that weights targets as a uniform weight does
    is useless but harmless, and not reported.
    """
    method = next((method for method in material.methods if method.get("method") == "detrdistill"), None)
    if method is None:
        raise NotJudged("the run has no method that selects teacher queries")
    selects = (method.get("selection") or {}).get("rule", "all") != "all"
    masks = ((method.get("features") or {}).get("mask") or "uniform") != "uniform"
    if not selects and not masks:
        raise NotJudged("the method uses all teacher queries and no mask")
    found = _queries(material) if selects else []
    # if the selection picks background, the mask is 0 and says nothing more
    return found or (_mask(material) if masks else [])


def _queries(material: Material) -> list[Finding]:
    material.require("selection")
    rows = material.teacher
    if rows["selected"].isna().any():
        raise NotJudged("the run was made by an older version, which did not record the selected queries")
    sees, selected = rows["best_iou"].to_numpy() >= LOCALISED, rows["selected"].to_numpy(bool)
    per_image = pd.DataFrame({"sees": sees, "selected": selected, "both": sees & selected}).groupby(rows["image_id"].to_numpy()).sum()
    columns = per_image.to_numpy(np.float64).T
    every = np.full(len(per_image), rows.groupby("image_id").size().iloc[0], dtype=np.float64)
    saw, chose, both = columns
    if not chose.any():
        return [Finding("background selection", "error", "The selection picks no query at all, so the teacher's queries teach nothing.",
                        (Evidence("selected queries", 0.0, len(rows), "teacher queries"),), "Lower selection.threshold.")]  # fmt: skip
    lift = ratio_difference((both, chose), (LIFT * saw, every))
    material.compare(f"share of the selected queries on an object, minus {LIFT:g} times that of all queries", lift, 0.0, "below")
    room = min(every.sum() / chose.sum(), every.sum() / max(saw.sum(), 1))
    if room < LEAST_ROOM:
        return []
    chosen, general = ratio_difference((both, chose)), ratio_difference((saw, every))
    if lift.high >= 0:
        return []
    return [Finding(
        "background selection", "error" if chosen.high < general.low else "warning",
        f"The selection picks background: {100 * chosen.value:.0f} % of the selected queries see an object, and "
        f"{100 * general.value:.0f} % of all queries do.",
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
    # every image counts the same, otherwise an image with a large weight would dominate
    on_targets, of_image = (inside / mass, np.ones(len(kept))), (area / cells, np.ones(len(kept)))
    more = material.compare("share of the mask's weight on targets, minus the share of the image that targets cover",
                            ratio_difference(on_targets, of_image), 0.0, "below")  # fmt: skip
    if more.high >= 0:
        return []
    share, uniform = ratio_difference(on_targets), ratio_difference(of_image)
    return [Finding(
        "background selection", "warning",
        f"The selection mask points at the background: {100 * share.value:.0f} % of its weight lies on targets, which cover "
        f"{100 * uniform.value:.0f} % of the image.",
        (
            Evidence("share of the mask's weight on targets", share.value, share.n, "images", share.low, share.high),
            Evidence("share of the image that targets cover", uniform.value, uniform.n, "images", uniform.low, uniform.high),
        ),
        "Look at the masks over the images. Compare with a uniform weight (features: {mask: uniform}) or the other mask (product, cosine).",
    )]  # fmt: skip


def _mass(masks: dict[tuple[int, int], np.ndarray], targets: pd.DataFrame) -> np.ndarray | None:
    """Returns ``[4]``: weight inside targets, weight, cells inside targets and cells of one image's last masks, summed over levels.

    Returns None if the mask is 0 everywhere because no teacher query has any quality there.
    """
    last = max(layer for layer, _ in masks)
    total = np.zeros(4)
    boxes = targets[["x1", "y1", "x2", "y2"]].to_numpy()
    for (layer, _), mask in masks.items():
        if layer == last:
            weight = np.square(np.asarray(mask, dtype=np.float64))
            inside = _covered(boxes, *mask.shape)
            # cells of different levels differ in size, so each level counts as one whole image
            total += np.array([weight[inside].sum() / mask.size, weight.sum() / mask.size, inside.mean(), 1.0])
    return total if total[1] > 0 else None


def _covered(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns ``[height, width]`` bool: whether a cell's centre lies in one of the boxes ``[G, 4]`` x1 y1 x2 y2, 0..1."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    across = (boxes[:, 0, None] <= x) & (x <= boxes[:, 2, None])
    down = (boxes[:, 1, None] <= y) & (y <= boxes[:, 3, None])
    return np.any(down[:, :, None] & across[:, None, :], axis=0)
