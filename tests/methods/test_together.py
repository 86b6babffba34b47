"""Methods in real steps of training, all in one run."""

from typing import Any

import pytest
import torch

from tests.flows import Silent, tiny_recipe
from workbench.methods.registry import METHODS
from workbench.recipe.setup import Setup, build
from workbench.store.run import Run, read_lines
from workbench.training.loop import Trainer

SERVED = [name for name in METHODS if name != "ld"]  # no box distributions in Deformable DETR


@pytest.mark.parametrize("balance", [None, 0.1])
def test_two_steps_log_every_term_of_every_method_with_its_weight(balance: float | None):
    torch.set_num_threads(1)
    common: dict[str, Any] = {"balance": balance} if balance is not None else {}
    recipe = tiny_recipe({"teacher": {"checkpoint": "shapes_teacher"}, "methods": [{"method": name} | common for name in SERVED]})
    setup = build(recipe, "shapes_teacher", record_teacher=False)
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


class Killed(Exception):
    """Stands for the end of a process."""


def trained(name: str, killed_at: int | None = None) -> dict[str, torch.Tensor]:
    """The student and its adapters after 4 steps of methods that draw at random; killed in a step, and resumed behind step 2."""
    torch.set_num_threads(1)
    recipe = tiny_recipe({
        "teacher": {"checkpoint": "shapes_teacher"}, "train": {"steps": 4, "evaluate_every": 4, "checkpoint_every": 2},
        "methods": [{"method": "mgd", "balance": 1.0}, {"method": "kd_detr", "general": 5, "balance": 1.0}],
    })  # fmt: skip
    run = Run.create(name, {})

    def one_life(end: int | None) -> Setup:
        setup = build(recipe, "shapes_teacher", record_teacher=False)
        trainer = Trainer(run, setup, Silent(), "cpu")
        one_step = trainer._train_step

        def step(batch: Any, index: int, logged: bool) -> Any:
            if index == end:
                raise Killed
            return one_step(batch, index, logged)

        trainer._train_step = step
        trainer.train()
        return setup

    if killed_at is not None:
        with pytest.raises(Killed):
            one_life(killed_at)
        torch.manual_seed(99)  # another process would have drawn something else by now
    setup = one_life(None)
    adapters = {f"{method.name}.{key}": value for method in setup.methods for key, value in method.state_dict().items()}
    return {**setup.student.state_dict(), **adapters}


def test_a_resumed_run_hides_the_same_cells_and_asks_about_the_same_points():
    whole, resumed = trained("whole"), trained("resumed", killed_at=3)
    assert whole.keys() == resumed.keys() and any(name.startswith("mgd.generators") for name in whole)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize("names", [["fitnet"], ["fitnet", "d3etr"]], ids=" and ".join)
def test_attention_is_collected_only_for_a_method_that_needs_it(names: list[str]):
    torch.set_num_threads(1)
    recipe = tiny_recipe({"teacher": {"checkpoint": "shapes_teacher"}, "methods": [{"method": name} for name in names]})
    setup = build(recipe, "shapes_teacher", record_teacher=False)
    seen: list[tuple[bool, bool]] = []
    for method in setup.methods:
        method.register_forward_pre_hook(lambda m, args: seen.append((args[0].attentions is not None, args[1].attentions is not None)))
    run = Run.create("attention", {})
    trainer = Trainer(run, setup, Silent(), "cpu")
    trainer._terms(trainer.loader.batch(0), 0)
    wanted = "d3etr" in names
    assert seen == [(wanted, wanted)] * len(names)
    assert not setup.student.wants_attentions
