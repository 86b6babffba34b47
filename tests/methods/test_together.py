"""Methods in real steps of training, all in one run."""

from typing import Any

import pytest
import torch

from tests.flows import Silent, tiny_recipe
from workbench.methods import METHODS
from workbench.runs import Run, read_lines
from workbench.training.loop import Trainer
from workbench.training.setup import build

SERVED = [name for name in METHODS if name != "ld"]  # no box distributions in Deformable DETR


@pytest.mark.parametrize("balance", [None, 0.1])
def test_two_steps_log_every_term_of_every_method_with_its_weight(balance: float | None):
    torch.set_num_threads(1)
    common: dict[str, Any] = {"balance": balance} if balance is not None else {}
    recipe = tiny_recipe({"teacher": {"checkpoint": "shapes_teacher"}, "methods": [{"method": name} | common for name in SERVED]})
    setup = build(recipe, "shapes_teacher", trace_teacher=False)
    assert [method.name for method in setup.methods] == SERVED
    run = Run.create("together", {})
    Trainer(run, setup, Silent(), "cpu").train()
    lines, weights = read_lines(run.metrics_path), run.info()["term_weights"]
    assert [line["step"] for line in lines] == [1, 2]
    for method in setup.methods:
        for term in method.term_names:
            key = f"{method.name}.{term}"
            assert weights[key] > 0 and (balance is not None or weights[key] == method.weight_of(term)), key
            assert all(line[f"raw/{key}"] > 0 for line in lines), key
