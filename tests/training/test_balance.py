"""Gradient norms, cosines and the weights set from them, against plain autograd; the stop when a term teaches nothing."""

from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from workbench.errors import SilentTermError
from workbench.methods.context import Pairing
from workbench.methods.method import BaseMethodConfig, Method
from workbench.training.balance import balanced_weights, mean_norms, term_gradients
from workbench.training.monitor import TermMonitor
from workbench.training.step import Terms


class TwoTermsConfig(BaseMethodConfig, frozen=True):
    method: Literal["two"] = "two"
    published_weights = {"b": 3.0}  # noqa: RUF012

    @property
    def term_names(self) -> tuple[str, ...]:
        return ("a", "b")


class TwoTerms(Method):
    """A method as far as weights are concerned."""

    name = "two"
    Config = TwoTermsConfig

    def forward(self, student: Any, teacher: Any, targets: Any, context: Any) -> dict[str, Tensor]:
        return {}


def method(**values: Any) -> Method:
    anything = cast(Any, SimpleNamespace(provides=frozenset(), activation="sigmoid"))
    return TwoTerms(TwoTermsConfig.model_validate(values), anything, anything, Pairing((), None))


def example() -> tuple[nn.Module, nn.Linear, Terms]:
    """A module, an adapter that is no part of it, and terms over both."""
    torch.manual_seed(3)
    module, adapter = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), nn.Linear(2, 2)
    output = module(torch.randn(6, 4))
    detection = {"class": output.square().mean(), "bbox": output.abs().sum()}
    return module, adapter, Terms(detection, {"two.a": (adapter(output) - 1).square().mean(), "two.b": torch.zeros(())})


def test_norms_and_cosines_are_those_of_autograd_over_the_student_alone():
    module, _, terms = example()
    parameters = list(module.parameters())
    found = term_gradients(terms, {"class": 2.0, "bbox": 0.5}, parameters)

    def gradient(value: Tensor) -> Tensor:
        module.zero_grad()
        value.backward(retain_graph=True)
        return torch.cat([cast(Tensor, p.grad).flatten() for p in parameters]).double()

    detection = gradient(2.0 * terms.detection["class"] + 0.5 * terms.detection["bbox"])
    term = gradient(terms.distillation["two.a"])
    assert found["detection"] == (pytest.approx(detection.norm().item(), rel=1e-5), 1.0)
    cosine = torch.nn.functional.cosine_similarity(detection, term, dim=0).item()
    assert found["two.a"] == (pytest.approx(term.norm().item(), rel=1e-5), pytest.approx(cosine, abs=1e-5))
    assert found["two.b"] == (0.0, 0.0)


def test_measuring_leaves_no_gradient_behind_and_the_graph_usable():
    module, adapter, terms = example()
    term_gradients(terms, {"class": 1.0, "bbox": 1.0}, list(module.parameters()))
    assert all(p.grad is None for p in [*module.parameters(), *adapter.parameters()])
    terms.distillation["two.a"].backward()


def test_a_batch_without_a_term_does_not_make_the_term_look_small():
    measured = [{"detection": (2.0, 1.0), "m.a": (6.0, 0.1)}, {"detection": (4.0, 1.0)}, {"detection": (3.0, 1.0), "m.a": (8.0, 0.2)}]
    assert mean_norms(measured) == pytest.approx({"detection": 3.0, "m.a": 7.0})
    assert mean_norms([]) == {}


def test_a_balanced_weight_gives_the_term_its_share_of_the_detection_gradient():
    norms = {"detection": 12.0, "two.a": 3.0, "two.b": 0.5}
    weights = balanced_weights([method(weight=2.0, balance=0.25)], norms)
    assert weights == {"two.a": pytest.approx(2 * 0.25 * 12 / 3), "two.b": pytest.approx(2 * 0.25 * 12 / 0.5)}
    assert {name: weights[name] * norms[name] / norms["detection"] for name in weights} == pytest.approx({"two.a": 0.5, "two.b": 0.5})


def test_share_zero_turns_a_term_off_and_a_term_that_is_not_named_keeps_its_published_weight():
    norms = {"detection": 12.0, "two.a": 3.0, "two.b": 0.5}
    assert balanced_weights([method(weight=2.0, balance={"a": 0.0})], norms) == {"two.a": 0.0, "two.b": 6.0}
    assert balanced_weights([method(weight=2.0)], norms) == {"two.a": 2.0, "two.b": 6.0}


def test_a_weight_given_by_term_takes_the_place_of_the_published_one():
    norms = {"detection": 12.0, "two.a": 3.0, "two.b": 0.5}
    assert balanced_weights([method(weight=2.0, weights={"b": 0.25})], norms) == {"two.a": 2.0, "two.b": 0.5}
    with pytest.raises(ValidationError, match="weights names c; the terms are a, b"):
        method(weights={"c": 1.0})


def test_a_term_that_sent_no_gradient_or_was_absent_gets_weight_zero_and_no_division_by_zero():
    assert balanced_weights([method(balance=1.0)], {"detection": 2.0, "two.a": 0.0}) == {"two.a": 0.0, "two.b": 0.0}


def watched(teaching: list[dict[str, float]], measured: dict[str, float] | None = None, **values: Any) -> TermMonitor:
    """A monitor that has measured one batch for each mapping of term to the size of its gradient."""
    monitor = TermMonitor([method(**values)], {"class": 1.0}, measured or {"two.a": 1.0, "two.b": 1.0}, {})
    parameter = nn.Parameter(torch.ones(2))
    for sizes in teaching:
        terms = Terms({"class": parameter.sum()}, {f"two.{name}": 1 + size * parameter.sum() for name, size in sizes.items()})
        monitor.measure(terms, [parameter])
    return monitor


def test_a_term_without_gradient_in_every_measurement_of_an_epoch_stops_the_run_and_is_named():
    monitor = watched([{"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.0}])
    with pytest.raises(SilentTermError, match=r"step 40: two\.b was 0 or had no gradient") as caught:
        monitor.check(40)
    assert "two.a" not in str(caught.value)


def test_one_measurement_that_taught_is_enough():
    monitor = watched([{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 2.0}, {"a": 0.0, "b": 0.0}])
    assert monitor.taught == {"two.a": True, "two.b": True}
    monitor.check(40)


def test_every_epoch_is_watched_anew():
    monitor = watched([{"a": 1.0, "b": 1.0}])
    monitor.check(10)
    parameter = nn.Parameter(torch.ones(2))
    monitor.measure(Terms({"class": parameter.sum()}, {"two.a": 0 * parameter.sum()}), [parameter])
    with pytest.raises(SilentTermError, match=r"two\.a"):
        monitor.check(20)


@pytest.mark.parametrize("values", [{"weight": 0.0}, {"weights": {"b": 0.0}}, {"balance": {"a": 1.0, "b": 0.0}}], ids=str)
def test_a_term_that_was_turned_off_is_not_waited_for(values: dict[str, Any]):
    monitor = watched([{"a": 1.0, "b": 0.0}], **values)
    assert "two.b" not in monitor.taught
    monitor.check(10)


def test_a_term_that_was_absent_because_nothing_was_eligible_is_not_counted():
    monitor = watched([{"a": 1.0}, {"a": 1.0}])
    assert monitor.taught == {"two.a": True}
    monitor.check(10)


def test_a_wanted_term_whose_measured_weight_came_out_zero_stops_the_run():
    with pytest.raises(SilentTermError, match=r"two\.b"):
        watched([{"a": 1.0, "b": 1.0}], {"two.a": 1.0, "two.b": 0.0}, balance=1.0).check(10)


def test_the_logged_share_is_the_weighted_norm_over_the_detection_norm():
    parameter = nn.Parameter(torch.ones(2))
    monitor = TermMonitor([method()], {"class": 2.0}, {"two.a": 0.5, "two.b": 1.0}, {})
    terms = Terms({"class": 3 * parameter[0]}, {"two.a": 4 * parameter.sum(), "two.b": -parameter[0]})
    values = monitor.measure(terms, [parameter])
    assert values == {
        "gradient/detection": pytest.approx(6.0),
        "share/two.a": pytest.approx(0.5 * 4 * 2**0.5 / 6),
        "cosine/two.a": pytest.approx(0.5**0.5),
        "share/two.b": pytest.approx(1 / 6),
        "cosine/two.b": pytest.approx(-1.0),
    }
