"""The data that a run was made with."""

from typing import Any

from workbench.datasets.base import Dataset
from workbench.datasets.issues import Policy
from workbench.datasets.opening import open_dataset
from workbench.errors import RunError


def open_data(info: dict[str, Any], split: str = "val") -> Dataset:
    """The split of the data a run was made with.

    Args:
        info: content of its ``run.json``.
        split: train, val or test.

    Raises:
        DataError: the data is not there, or cannot be used.
        RunError: it is not the data of the run any more.
    """
    data = info["recipe"]["data"]
    policy = Policy.model_validate(data["policy"]) if data.get("policy") else None
    dataset = open_dataset(data["path"], data[split], format=data["format"], policy=policy, **data.get("options", {}))
    if list(dataset.classes) != info["classes"]:
        raise RunError(f"{data['path']} now has other classes than when the run was made.")
    return dataset
