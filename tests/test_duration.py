"""Times are told in the unit that suits them."""

import pytest

from workbench.duration import duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (1800, "30 min"), (5399, "90 min"), (5400, "1.5 h"), (86_400, "24.0 h")]
)
def test_a_time_is_told_in_seconds_minutes_or_hours(seconds: float, text: str):
    assert duration(seconds) == text
