"""Trains the arms of the recipe ``shapes`` in bf16, one JSON line a run as soon as it is done: ``python -m gpu.evidence``.

The AP of each arm is to lie within what seeds do on a CPU, which docs/results/shapes.json holds. Seeds are the outer loop, so that a cut
leaves whole seeds.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from workbench.recipe.loading import load_recipe, recipe_path
from workbench.store.run import runs_root
from workbench.training.launch import Launch, start
from workbench.training.loop import Silent

ARMS = ("undistilled", None)  # None is the recipe as written, which distils
SEEDS = (0, 1, 2)
BF16 = "train.precision=bf16"


def lines(
    device: str = "cuda", arms: Sequence[str | None] = ARMS, seeds: Sequence[int] = SEEDS, changes: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yields the test AP of every arm and seed.

    Args:
        device: ``cuda``, or ``cpu`` to show that it works.
        arms: arms of the recipe.
        seeds: seeds of the runs.
        changes: further settings, as in ``--set``.
    """
    runs_root().mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for arm in arms:
            recipe = load_recipe(recipe_path("shapes"), [BF16, f"seed={seed}", *changes], arm=arm)
            name = arm or recipe.own_arm
            run = start(recipe, Launch(f"bf16-{name}-seed{seed}", arm=name, device=device), Silent())
            result = next(line for line in run.evaluations() if line["split"] == "test")
            yield {"arm": name, "seed": seed, "ap": result["coco"]["ap"], "seconds": run.info()["seconds"], "device": run.info()["device"]}


if __name__ == "__main__":
    for line in lines():
        print(json.dumps(line), flush=True)
    sys.exit(0)
