"""Makes the FiftyOne dataset of a comparison once, and updates it to the newest evaluation when it is asked for again."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import fiftyone as fo
import pandas as pd
from pymongo import UpdateOne

from workbench.analysis.of_run import open_data
from workbench.analysis.report.inspection import Inspection, inspect
from workbench.files import hash_json
from workbench.store.run import Run
from workbench.views.box_drawing import PAIR, STUDENT, TARGET, TEACHER
from workbench.views.fiftyone.connection import FoDataset, dataset_name, former_name
from workbench.views.fiftyone.documents import (
    Schema,
    declare,
    detection_documents,
    image_documents,
    image_fields,
    label_fields,
    label_tags,
    rename_former,
    sample_documents,
)
from workbench.views.fiftyone.media import allow
from workbench.views.fiftyone.pictures import picture_paths
from workbench.views.fiftyone.saved import save_views
from workbench.views.fiftyone.states import Method, save_states
from workbench.views.style import COLOURS

logger = logging.getLogger(__name__)
INFO = "workbench"  # key of the dataset's info under which its origin is kept
DEFINITIONS = 1  # raise it when the written fields change, so that older datasets are made again
_COLOURS = {"targets": TARGET, "teacher": TEACHER, "student": STUDENT, "baseline": PAIR}
_IMAGES_AT_ONCE = 50  # 15,000 boxes, which keeps a write far below MongoDB's 48 MB


def open_comparison(run: Run, baseline: Run | None = None, split: str = "val", layout: Method = "pca") -> FoDataset:
    """Returns the dataset of a run, compared with a baseline if one is given, at the last step that both have.

    Samples, boxes and their ids stay when there is a newer evaluation; only fields whose values changed are written again.

    Args:
        run: run of the student.
        baseline: run it is compared with, usually the undistilled one.
        split: split, as the runs call it.
        layout: layout of the decoder states, see ``states.save_states``.

    Raises:
        DataError: the data of the run is missing.
        RunError: there is nothing to show, or the runs have no step in common.
    """
    data = open_data(run.info(), split)
    inspection = inspect(data, run, baseline, split)
    origin = {"run": str(run.path.absolute()), "baseline": str(baseline.path.absolute()) if baseline is not None else None, "split": split}
    paths = picture_paths(data, run, split)
    allow(paths)
    name = dataset_name(run, baseline, split)
    _adopt(former_name(run, baseline, split), name, origin)
    dataset = write(inspection, name, origin, paths)
    save_states(dataset, inspection, run, split, layout)
    return dataset


def _adopt(former: str, name: str, origin: dict[str, Any]) -> None:
    """Gives the dataset that an earlier version made of this comparison its present name, so that what the user added to it stays."""
    if not fo.dataset_exists(former) or fo.dataset_exists(name):
        return
    dataset: FoDataset = fo.load_dataset(former)
    made = dataset.info.get(INFO, {})
    if {key: made.get(key) for key in origin} == origin:
        dataset.name = name


def write(inspection: Inspection, name: str, origin: dict[str, Any], paths: list[Path]) -> FoDataset:
    """Makes the dataset of this name, or updates it, so that it holds what an inspection found.

    Args:
        inspection: result of ``analysis.report.inspection.inspect``.
        name: name of the dataset.
        origin: where the data comes from. A dataset of this name with another origin or other images is replaced.
        paths: paths of the image files, one per record.
    """
    key = hash_json([DEFINITIONS, origin, inspection.dataset.hash(), [str(path) for path in paths]])
    dataset = _existing(name, key)
    new = dataset is None
    if dataset is None:
        dataset: FoDataset = fo.Dataset(name, persistent=True)
        dataset.media_type = "image"
        dataset.default_classes = list(inspection.dataset.classes)
        # every model has one colour, the same as on the dashboard, whatever the class
        colours = [{"path": path, "fieldColor": colour} for path, colour in _COLOURS.items()]
        # whatever is coloured by value, such as embeddings, uses colours that show on a dark ground
        dataset.app_config.color_scheme = fo.ColorScheme(color_by="field", color_pool=list(COLOURS), fields=colours)
    else:
        rename_former(dataset)
    labels, (numbers, schema) = label_fields(inspection), image_fields(inspection)
    declare(dataset, {field: own for field, (_, own) in labels.items()}, schema)
    said = dict(dataset.info.get(INFO, {}).get("fields", {}))
    hashes = {field: _hash(boxes[["index", "class", "x1", "y1", "x2", "y2", *own]]) for field, (boxes, own) in labels.items()}
    changed = {field: value for field, value in labels.items() if said.get(field) != hashes[field]}
    _write(dataset, inspection, changed, numbers, schema, paths if new else None)
    dataset.info[INFO] = {**origin, "key": key, "step": inspection.step, "fields": hashes, "not_defined": list(inspection.not_defined)}
    if inspection.not_defined:
        dataset.description = " ".join(inspection.not_defined)
    dataset.save()
    dataset.reload()
    save_views(dataset, inspection)
    logger.info("%s: %d images, written: %s", name, len(inspection.dataset), ", ".join(changed) or "nothing new")
    return dataset


def _existing(name: str, key: str) -> FoDataset | None:
    if not fo.dataset_exists(name):
        return None
    dataset: FoDataset = fo.load_dataset(name)
    if dataset.info.get(INFO, {}).get("key") == key:
        return dataset
    fo.delete_dataset(name)
    return None


def _write(
    dataset: FoDataset, inspection: Inspection, labels: dict[str, tuple[pd.DataFrame, Schema]], numbers: pd.DataFrame, schema: Schema,
    paths: list[Path] | None,
) -> None:  # fmt: skip
    """Writes whole samples if there are paths, otherwise only these fields of the existing samples."""
    collection = dataset._sample_collection
    count = len(inspection.dataset)
    samples = sample_documents(dataset, inspection.dataset, paths or [Path()] * count)
    tags = {field: label_tags(dataset, field) for field in labels}
    for start in range(0, count, _IMAGES_AT_ONCE):
        images = range(start, min(start + _IMAGES_AT_ONCE, count))
        documents = image_documents(numbers, schema, images)
        for field, (boxes, own) in labels.items():
            for document, value in zip(documents, detection_documents(dataset, field, boxes, own, images, tags[field]), strict=True):
                document[field] = value
        whole = [next(samples) for _ in images]
        if paths is not None:
            collection.insert_many([sample | document for sample, document in zip(whole, documents, strict=True)], ordered=False)
        else:
            changes = [
                UpdateOne({"_id": sample["_id"]}, {"$set": {**document, "last_modified_at": sample["last_modified_at"]}})
                for sample, document in zip(whole, documents, strict=True)
            ]
            collection.bulk_write(changes, ordered=False)


def _hash(frame: pd.DataFrame) -> str:
    names = [str(name) for name in frame.columns]
    plain = frame.assign(**{name: frame[name].astype(str) for name in names if frame[name].dtype == object})
    rows = pd.util.hash_pandas_object(plain, index=False).to_numpy()
    return hashlib.sha256(",".join(names).encode() + rows.tobytes()).hexdigest()
