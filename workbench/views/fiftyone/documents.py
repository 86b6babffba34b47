"""Turns boxes and images of an inspection into FiftyOne's documents, and declares the schema that lets its App filter on them.

Documents are written straight to the collection: writing a tenth of them through sample objects takes minutes.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pandas as pd
from bson import ObjectId

from workbench.analysis.report.inspection import Inspection
from workbench.datasets.base import Dataset
from workbench.views.fiftyone.connection import FoDataset

# attribute -> kind; a column that is null everywhere is left out
BOX_FIELDS: dict[str, type[fo.Field]] = {
    "query": fo.IntField, "layer": fo.IntField, "encoder_cell": fo.IntField, "quality": fo.FloatField, "match": fo.IntField,
    "match_iou": fo.FloatField, "teacher_query": fo.IntField, "pair_cost": fo.FloatField, "teacher_query_class": fo.StringField,
    "teacher_query_error": fo.StringField, "training_teacher_query": fo.IntField, "stability": fo.FloatField, "value": fo.FloatField,
    "gain": fo.FloatField, "error": fo.StringField, "target": fo.IntField, "iou": fo.FloatField,
    "loss_class": fo.FloatField, "loss_bbox": fo.FloatField, "loss_giou": fo.FloatField,
    "selected": fo.BooleanField, "followed": fo.BooleanField, "new": fo.BooleanField, "grade": fo.StringField,
}  # fmt: skip
# column of the inspection -> attribute that the App shows; datasets of older versions have the columns' names
SHOWN = {
    "source": "encoder_cell", "mate": "teacher_query", "mate_cost": "pair_cost", "mate_label": "teacher_query_class",
    "mate_error": "teacher_query_error", "train_mate": "training_teacher_query",
}  # fmt: skip
_TARGET_FIELDS: dict[str, type[fo.Field]] = {
    "target": fo.IntField, "kind": fo.StringField, "area": fo.FloatField, "size": fo.StringField, "crowding": fo.StringField,
    "overlap": fo.StringField, "gain": fo.FloatField, "student_against_teacher": fo.StringField, "student_change_cause": fo.StringField,
}  # fmt: skip
_OF_A_MODEL: dict[str, type[fo.Field]] = {
    "error": fo.StringField, "query": fo.IntField, "stability": fo.FloatField, "layer_changes": fo.IntField,
}  # fmt: skip
_IMAGE_FIELDS: dict[str, type[fo.Field]] = {"image_id": fo.IntField, "target_count": fo.IntField, "crowding": fo.StringField}
# attributes in which -1 means that there is none, and in a match -2 that the box is ignored in training
_NOTHING = ("encoder_cell", "match", "teacher_query", "training_teacher_query", "target")
_CODES = {"image": 0, "targets": 1, "teacher": 2, "student": 3, "baseline": 4}
Schema = dict[str, type[fo.Field]]
Identity = tuple[int, str, int]  # index of an image, the attribute that identifies its box, and the attribute's value


def label_fields(inspection: Inspection) -> dict[str, tuple[pd.DataFrame, Schema]]:
    """Returns the boxes by field, in the order of the dataset's images, with the kinds of their attributes."""
    data = inspection.dataset
    names = np.array([*data.classes, "no class"], dtype=object)  # label -1 picks the last
    corners = ["x1", "y1", "x2", "y2"]
    index = pd.Series(range(len(data)), [record.image_id for record in data.records])
    sizes = np.array([(record.width, record.height) for record in data.records], dtype=float)
    found: dict[str, tuple[pd.DataFrame, Schema]] = {}
    targets = inspection.targets.rename(columns={"label": "class", "cell": "student_against_teacher"})
    size = sizes[index[targets["image_id"]].to_numpy()]
    targets[corners] = targets[corners].to_numpy() / np.hstack([size, size])
    per_model = {f"{role}_{name}": kind for role in inspection.boxes for name, kind in _OF_A_MODEL.items()}
    found["targets"] = targets, {**_TARGET_FIELDS, **per_model}
    for role, rows in inspection.boxes.items():
        boxes = rows.rename(columns={"label": "class", "score": "confidence", **SHOWN}).assign(
            x1=(rows["cx"] - rows["w"] / 2).clip(0, 1), y1=(rows["cy"] - rows["h"] / 2).clip(0, 1),
            x2=(rows["cx"] + rows["w"] / 2).clip(0, 1), y2=(rows["cy"] + rows["h"] / 2).clip(0, 1),
        )  # fmt: skip
        boxes[[name for name in _NOTHING if name in boxes]] = boxes[[name for name in _NOTHING if name in boxes]].mask(lambda v: v < 0)
        if "teacher_query_class" in boxes:
            label = boxes["teacher_query_class"]
            boxes["teacher_query_class"] = pd.Series(names[label.fillna(-1).astype(int)], boxes.index).where(label.notna())
        found[role] = boxes, BOX_FIELDS
    for name, (boxes, schema) in found.items():
        boxes = boxes.assign(index=index[boxes["image_id"]].to_numpy(), **{"class": names[boxes["class"].to_numpy()]})
        kept = {key: kind for key, kind in schema.items() if key in boxes and boxes[key].notna().any()}
        found[name] = boxes.sort_values("index", kind="stable", ignore_index=True), kept
    return found


def image_fields(inspection: Inspection) -> tuple[pd.DataFrame, Schema]:
    """Returns the numbers of the images, in the dataset's order, with their kinds."""
    frame = inspection.images.rename(columns={"targets": "target_count"})
    rest = {name: fo.FloatField for name in frame.columns if name not in _IMAGE_FIELDS}
    schema = {name: kind for name, kind in {**_IMAGE_FIELDS, **rest}.items() if frame[name].notna().any()}
    return frame, schema


def declare(dataset: FoDataset, labels: Mapping[str, Schema], images: Schema) -> None:
    """Declares every field and attribute to FiftyOne, which lets the App filter on them."""
    there = dataset.get_field_schema(flat=True)
    for name, kind in images.items():
        if name not in there:
            dataset.add_sample_field(name, kind)
    for field in labels:
        if field not in there:
            dataset.add_sample_field(field, fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections)
    attributes = {f"{field}.detections.{name}": kind for field, schema in labels.items() for name, kind in schema.items()}
    # all in one change, because FiftyOne writes and reads the schema once per change
    dataset.add_dynamic_sample_fields({path: kind() for path, kind in attributes.items() if path not in there})


def rename_former(dataset: FoDataset) -> None:
    """Gives the attributes of a dataset of an older version their present names, so that its tags stay."""
    there = dataset.get_field_schema(flat=True)
    renamed = {
        f"{role}.detections.{old}": f"{role}.detections.{new}"
        for role in ("teacher", "student", "baseline")
        for old, new in SHOWN.items()
        if f"{role}.detections.{old}" in there
    }
    if renamed:
        dataset.rename_sample_fields(renamed)


def object_id(dataset: FoDataset, field: str, index: int, number: int = 0) -> ObjectId:
    """Returns an id that is the same for an image, model and query at every epoch, but differs between datasets: the App caches by id."""
    return ObjectId(struct.pack(">III", _base(dataset) + _CODES[field], index, number))


def sample_documents(dataset: FoDataset, data: Dataset, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yields the documents of the images without any results."""
    now = datetime.now(UTC)
    rng = np.random.default_rng(0)
    for index, (record, path) in enumerate(zip(data.records, paths, strict=True)):
        metadata = {"_cls": "ImageMetadata", "width": record.width, "height": record.height, "num_channels": 3}
        yield {
            "_id": object_id(dataset, "image", index), "filepath": str(path), "tags": [], "metadata": metadata, "_media_type": "image",
            "_rand": float(rng.random()), "_dataset_id": dataset._doc.id, "created_at": now, "last_modified_at": now,
        }  # fmt: skip


def label_tags(dataset: FoDataset, field: str) -> dict[Identity, list[str]]:
    """Returns the tags that the user gave to the boxes of a field, by an identity that stays the same at another evaluation."""
    path = f"{field}.detections"
    shown = {f"{path}.{name}": 1 for name in ("tags", *_known_by(field))}
    found = dataset._sample_collection.find({f"{path}.tags.0": {"$exists": True}}, shown)
    return {
        (struct.unpack(">III", sample["_id"].binary)[1], *_identity(field, box)): box["tags"]
        for sample in found for box in sample[field]["detections"] if box.get("tags")
    }  # fmt: skip


def _known_by(field: str) -> tuple[str, ...]:
    """Returns the attributes that identify a box: the encoder cell where queries are selected per image, otherwise the slot.

    Where queries are selected per image, a slot is only a rank.
    """
    return ("target",) if field == "targets" else ("encoder_cell", "query")


def _identity(field: str, box: Mapping[str, Any]) -> tuple[str, int]:
    kind = next(name for name in _known_by(field) if box.get(name) is not None)
    return kind, box[kind]


def detection_documents(
    dataset: FoDataset, field: str, boxes: pd.DataFrame, schema: Schema, images: range, tags: Mapping[Identity, list[str]]
) -> list[dict[str, Any]]:
    """Returns the values of a label field for some images.

    Args:
        dataset: dataset of the images.
        field: name of the field.
        boxes: boxes of the field, from ``label_fields``.
        schema: schema of the field, from ``label_fields``.
        images: indices of the images in the dataset.
        tags: result of ``label_tags``; boxes get their tags back.
    """
    own = boxes.iloc[slice(*np.searchsorted(boxes["index"], [images.start, images.stop]))]
    number = own["target" if field == "targets" else "query"].astype("int64").tolist()
    edge = own["index"].to_numpy()
    base = _base(dataset) + _CODES[field]
    ids = [ObjectId(struct.pack(">III", base, i, n)) for i, n in zip(edge.tolist(), number, strict=True)]
    x1, y1, x2, y2 = (own[name].to_numpy(np.float64) for name in ("x1", "y1", "x2", "y2"))
    bounds = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).tolist()
    columns = [_plain(own[name], kind) for name, kind in schema.items()]
    keys = ("_id", "_cls", "tags", "label", "bounding_box", *schema)
    values = [ids, ["Detection"] * len(own), [[] for _ in ids], own["class"].tolist(), bounds, *columns]
    if "confidence" in own:
        keys, values = (*keys, "confidence"), [*values, _plain(own["confidence"], fo.FloatField)]
    documents = [dict(zip(keys, row, strict=True)) for row in zip(*values, strict=True)]
    if tags:
        for document, index in zip(documents, edge.tolist(), strict=True):
            document["tags"] = tags.get((index, *_identity(field, document)), [])
    places = np.searchsorted(edge, np.arange(images.start, images.stop + 1)).tolist()
    return [{"_cls": "Detections", "detections": documents[a:b]} for a, b in pairwise(places)]


def image_documents(frame: pd.DataFrame, schema: Schema, images: range) -> list[dict[str, Any]]:
    """Returns the numbers of some images."""
    own = frame.iloc[images.start : images.stop]
    columns = [_plain(own[name], kind) for name, kind in schema.items()]
    return [dict(zip(schema, row, strict=True)) for row in zip(*columns, strict=True)]


def _base(dataset: FoDataset) -> int:
    return zlib.crc32(dataset.name.encode()) & 0xFFFFFFF0


def _plain(values: pd.Series, kind: type[fo.Field]) -> list[Any]:
    """Returns Python's own values, with None for unknown ones."""
    missing = values.isna().to_numpy()
    if kind in (fo.IntField, fo.FloatField):
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        plain = (np.where(missing, 0, numbers).astype(np.int64) if kind is fo.IntField else numbers).tolist()
    else:
        plain = values.astype(object).tolist()
    return [None if gone else value for value, gone in zip(plain, missing.tolist(), strict=True)] if missing.any() else plain
