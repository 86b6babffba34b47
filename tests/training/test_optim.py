"""Learning rate, parameter groups and averaged weights against formulas by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.examples import small_detector
from tests.families import tiny
from workbench.recipe.schema import TrainConfig
from workbench.training.optim import Average, learning_rate, make_optimizer, optimizer_copies, parameter_groups, set_learning_rate


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"steps": 100, "learning_rate": 0.4} | changes)


def test_warm_up_rises_by_equal_parts_to_the_full_rate():
    rates = [learning_rate(config(warmup=4, schedule="constant"), step) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_cosine_falls_from_the_peak_over_the_half_to_nearly_nothing():
    made = config(warmup=20, schedule="cosine")
    assert learning_rate(made, 20) == pytest.approx(0.4)
    assert learning_rate(made, 60) == pytest.approx(0.2)
    assert learning_rate(made, 40) == pytest.approx(0.4 * (1 + math.sqrt(0.5)) / 2)
    assert 0 < learning_rate(made, 99) < 0.4 * 1e-3


def test_steps_divide_the_rate_by_ten_at_each_drop_and_not_before():
    made = config(schedule="step", drops=(0.5, 0.8))
    assert [learning_rate(made, step) for step in (0, 49, 50, 79, 80, 99)] == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_a_constant_rate_stays():
    assert {learning_rate(config(schedule="constant"), step) for step in range(100)} == {0.4}


def test_every_trainable_parameter_is_in_one_group_with_the_factor_and_the_decay_of_its_kind():
    student, adapter = small_detector(), nn.Linear(3, 2)
    frozen = next(student.parameters()).requires_grad_(False)
    groups: Any = parameter_groups(student, adapter, config(backbone_factor=0.1, sampling_factor=0.5, weight_decay=0.01))
    found = [(id(p), (g["factor"], g["weight_decay"])) for g in groups for p in g["params"]]
    wanted = {}
    for name, parameter in [*student.named_parameters(), *adapter.named_parameters()]:
        factor = 0.1 if "backbone" in name else 0.5 if "sampling_offsets" in name or "reference_points" in name else 1.0
        wanted[id(parameter)] = (factor, 0.01 if parameter.ndim > 1 else 0.0)
    del wanted[id(frozen)]
    assert dict(found) == wanted
    assert len(found) == len(wanted), "a parameter is in two groups"
    assert {kind for kind in wanted.values()} == {(f, d) for f in (0.1, 0.5, 1.0) for d in (0.0, 0.01)}, "the example lacks a kind"


def test_sgd_decays_every_parameter_as_published():
    groups: Any = parameter_groups(small_detector(), nn.Linear(3, 2), config(optimizer="sgd", weight_decay=0.01))
    assert {group["weight_decay"] for group in groups} == {0.01}
    assert any(p.ndim == 1 for group in groups for p in group["params"])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_follows_its_recurrence_in_any_memory_format(momentum: float):
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - as the trainer does
    made = config(optimizer="sgd", momentum=momentum, weight_decay=0.1, schedule="constant")
    optimizer = make_optimizer(module, nn.Identity(), made)
    weight, speed = module.weight.detach().clone(), torch.zeros_like(module.weight)
    for step in range(3):
        set_learning_rate(optimizer, rate := learning_rate(made, step))
        optimizer.zero_grad()
        module(torch.randn(2, 3, 5, 5)).square().mean().backward()
        assert module.weight.grad is not None
        speed = momentum * speed + module.weight.grad + 0.1 * weight
        weight = weight - rate * speed
        optimizer.step()
        torch.testing.assert_close(module.weight.detach(), weight)
    kept = sum(len(state) for state in optimizer.state_dict()["state"].values())
    assert kept == optimizer_copies(made) * len(list(module.parameters()))


def test_adamw_keeps_two_numbers_for_each_parameter():
    module = nn.Linear(2, 3)
    optimizer = make_optimizer(module, nn.Identity(), config())
    module(torch.randn(1, 2)).sum().backward()
    optimizer.step()
    kept = [value for state in optimizer.state_dict()["state"].values() for value in state.values() if value.ndim]
    assert len(kept) == optimizer_copies(config()) * len(list(module.parameters()))


@pytest.mark.parametrize("name", ["deimv2", "lw_detr", "rf_detr", "rt_detr"])
def test_the_factor_of_the_backbone_goes_to_the_backbone_alone_whatever_transformers_calls_it(name: str):
    student: Any = tiny(name)
    inner = student.model.model
    backbone = inner.conv_encoder.model if name == "deimv2" else inner.backbone.model if name == "rt_detr" else inner.backbone.backbone
    groups: Any = parameter_groups(student, nn.Identity(), config(backbone_factor=0.1))
    found = {id(p) for g in groups for p in g["params"] if g["factor"] == 0.1}
    assert found == {id(p) for p in backbone.parameters() if p.requires_grad}


def test_the_rate_of_each_group_is_the_steps_rate_times_its_factor():
    optimizer = make_optimizer(small_detector(), nn.Identity(), config(backbone_factor=0.1))
    set_learning_rate(optimizer, 0.02)
    assert {(group["factor"], group["lr"]) for group in optimizer.param_groups} == {(0.1, 0.1 * 0.02), (1.0, 0.02)}


class Tied(nn.Module):
    """A weight with two names, and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.tensor(0))


def test_averaged_weights_follow_the_recurrence_with_its_ramp():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 2.0)
    average, expected = Average(module, 0.5), 2.0
    for step in range(12):
        nn.init.constant_(module.weight, float(step**2))
        average.update(module, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step**2
        assert average.values["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert module.weight.item() == 121


def test_a_swap_exchanges_tied_weights_once_and_a_second_swap_restores_every_bit():
    module = Tied()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    average = Average(module, 0.9)
    nn.init.constant_(module.first.weight, 3.0)
    module.get_buffer("count").fill_(7)
    average.swap(module)
    assert torch.equal(module.second.weight, before["first.weight"])
    assert module.second.weight is module.first.weight
    assert module.get_buffer("count").item() == 7
    average.swap(module)
    assert torch.equal(module.first.weight, torch.full((2, 2), 3.0))
    assert torch.equal(average.values["first.weight"], before["first.weight"])
