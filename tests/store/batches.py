"""Random batches for the tests of the store."""

from typing import Any

import pyarrow as pa
import torch

from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import Queries, QueryOutput
from workbench.training.query_rows import Mates, RowExtras, RowsOf, query_rows


def random_batch(
    seed: int, layers: int = 2, images: int = 3, queries: int = 4, targets: int = 3, activation: str = "sigmoid"
) -> dict[str, Any]:
    """What ``rows_of`` takes, for student rows; the last image has no valid target."""
    torch.manual_seed(seed)
    boxes = torch.rand(layers, images, queries, 4) * 0.4 + 0.2
    target_boxes = torch.rand(images, targets, 4) * 0.4 + 0.2
    valid = torch.rand(images, targets) < 0.8
    valid[-1] = False
    match = torch.full((layers, images, queries), -1)
    for layer in range(layers):
        for image in range(images):
            which = valid[image].nonzero()[:, 0]
            slots = torch.randperm(queries)[: len(which)]
            match[layer, image, slots] = which[: len(slots)]
    mate = torch.stack([torch.randperm(queries) for _ in range(layers * images)]).reshape(layers, images, queries)
    mate[:, :, 0] = -1
    return {
        "image_ids": [int(v) for v in torch.randperm(1000)[:images]],
        "epoch": 7,
        "model": "student",
        "logits": torch.randn(layers, images, queries, 3 + (activation == "softmax")),
        "boxes": boxes,
        "activation": activation,
        "source": torch.randint(-1, 50, (images, queries)),
        "match": match,
        "targets": TargetBatch(target_boxes, torch.randint(0, 3, (images, targets)), valid),
        "mates": Mates(mate, range(1, 2 * layers, 2), torch.randn(layers, images, queries, 3)),
        "train_mate": mate.roll(1, -1),
        "losses": torch.rand(layers, images, queries, 3),
        "selected": torch.rand(layers, images, queries) < 0.5,
    }


def rows_of(batch: dict[str, Any], **options: Any) -> pa.Table:
    """``query_rows`` of a random batch, whose entries a test may change first."""
    nothing = torch.empty(0)
    output = QueryOutput(
        logits=batch["logits"], boxes=batch["boxes"], states=nothing, queries=Queries(nothing, None, None, batch["source"]), memory=(),
        neck=(), backbone=(), context=None, activation=batch["activation"],
    )  # fmt: skip
    extras = RowExtras(**{name: batch[name] for name in ("mates", "train_mate", "losses", "selected")})
    of = RowsOf(batch["image_ids"], batch["model"], batch["epoch"])
    return query_rows(output, batch["source"], batch["targets"], batch["match"], of, extras, **options)
