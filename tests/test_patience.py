"""Waits grow with a slow or busy machine, and never shrink."""

import itertools
import os

import pytest

from tests.patience import ROOM, patience, wait_until


@pytest.mark.parametrize(
    ("slowness", "load", "times"), [("0.5", 0.0, 1), ("1", 1.0, 1), ("3", 1.0, 3), ("1", 7.5, 7.5), ("3", 7.5, 7.5), ("9", 7.5, 9)]
)
def test_a_wait_is_room_times_as_long_as_on_a_quiet_machine_and_longer_on_a_slow_or_busy_one(
    monkeypatch: pytest.MonkeyPatch, slowness: str, load: float, times: float
):
    monkeypatch.setenv("WORKBENCH_TESTS_SLOWNESS", slowness)
    monkeypatch.setattr(os, "getloadavg", lambda: (load * (os.cpu_count() or 1), 0.0, 0.0))
    assert patience(60) == pytest.approx(60 * ROOM * times)


def test_what_comes_late_is_waited_for_and_what_never_comes_fails_the_test_by_name(monkeypatch: pytest.MonkeyPatch):
    looks = itertools.count()
    wait_until(lambda: next(looks) == 3)
    with pytest.raises(pytest.fail.Exception, match="the answer did not come within 0 s"):
        wait_until(lambda: False, 0, what=lambda: "the answer")


def test_a_test_may_take_as_long_as_the_machine_needs(pytestconfig: pytest.Config):
    assert pytestconfig.option.timeout >= ROOM * float(pytestconfig.getini("timeout"))
