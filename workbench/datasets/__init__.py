"""Datasets of every supported format as one ``Dataset``, augmentation that can be replayed, batches."""

from workbench.datasets.base import Dataset, Record
from workbench.datasets.opening import open_dataset

__all__ = ["Dataset", "Record", "open_dataset"]
