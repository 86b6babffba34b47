"""Prints what a GPU machine is, as one JSON object: ``python -m gpu.machine``."""

import json
import sys
from importlib import metadata

import torch

from benchmarks.harness import machine

LIBRARIES = ("torchvision", "transformers", "accelerate", "numpy")


def described() -> dict[str, object]:
    """Returns the machine of the benchmarks, with the card's memory and the versions of libraries."""
    card: dict[str, object] = {}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability = f"{properties.major}.{properties.minor}"
        card = {"memory_gb": properties.total_memory / 1e9, "capability": capability, "cuda": torch.version.cuda}
    return {**machine(), **card, "libraries": {name: metadata.version(name) for name in LIBRARIES}}


if __name__ == "__main__":
    print(json.dumps(described()))
    sys.exit(0)
