"""Shows decoder states of the shown boxes as points of FiftyOne's embeddings panel, one point per box."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

import fiftyone.brain as fob
import numpy as np
from fiftyone import ViewField as F

from workbench.analysis.report.inspection import Inspection, Role
from workbench.errors import MissingExtraError, pip_install
from workbench.store.queries import TEACHER_STEP
from workbench.store.run import Run
from workbench.store.states import images_with_states, read_states
from workbench.views.fiftyone.connection import FoDataset

Method = Literal["pca", "umap"]


def save_states(dataset: FoDataset, inspection: Inspection, run: Run, split: str, method: Method = "pca") -> list[str]:
    """Lays out the last layer's states of student and teacher and stores the points with the dataset, to be coloured by any attribute.

    Args:
        dataset: dataset of ``dataset.write``.
        inspection: inspection that the dataset was written from.
        run: run whose states are shown.
        split: split, as the run calls it.
        method: ``pca``, which takes seconds, or ``umap``, which takes a minute and shows neighbours rather than distances.

    Returns:
        Keys of the layouts, ``<model>_states_<method>``. A model whose states the run does not keep at that step has no layout.

    Raises:
        MissingExtraError: UMAP is not installed.
    """
    if method == "umap" and find_spec("umap") is None:
        raise MissingExtraError(f"UMAP needs umap-learn. Install it with {pip_install('inspect')}.")
    keys = []
    for role in ("student", "teacher"):
        own = dict(_states(inspection, run, split, role)) if role in inspection.boxes else {}
        if not own:
            continue
        some = dataset.match(F("image_id").is_in(list(own)))
        # points are in the order of the samples, which may differ from the order of their ids
        states = np.concatenate([own[image] for image in some.values("image_id")])
        points = principal_components(states) if method == "pca" else _umap(states)
        key = f"{role}_states_{method}"
        if dataset.has_brain_run(key):
            dataset.delete_brain_run(key)
        fob.compute_visualization(some, patches_field=role, points=points, brain_key=key, progress=False)
        keys.append(key)
    return keys


def principal_components(states: np.ndarray) -> np.ndarray:
    """Returns ``[N, 2]`` coordinates of ``states [N, D]`` along the two directions of most variance, each with its largest loading > 0."""
    centred = states - states.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    directions = vectors[:, ::-1][:, :2]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    return centred @ (directions * np.sign(largest))


def _umap(states: np.ndarray) -> np.ndarray:
    import umap  # pyright: ignore[reportMissingImports] - of the extra, found above

    layout: Any = umap.UMAP(n_components=2, random_state=0, n_jobs=1)
    return np.asarray(layout.fit_transform(states))


def _states(inspection: Inspection, run: Run, split: str, role: Role) -> Iterator[tuple[int, np.ndarray]]:
    """Yields image id and ``[boxes, D]`` states of the image's boxes, in their order."""
    step = TEACHER_STEP if role == "teacher" else inspection.step
    boxes = inspection.boxes[role]
    queries = boxes.groupby("image_id")["query"]
    shown = set(boxes["image_id"])
    for image in images_with_states(run, split, step):
        if image in shown:
            yield image, read_states(run, split, step, image)[-1][queries.get_group(image).to_numpy()]
