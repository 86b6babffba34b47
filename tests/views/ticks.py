"""What an axis writes beside places on it."""

from collections.abc import Iterable
from typing import Any


def names_at(axis: Any, places: Iterable[Any]) -> list[str]:
    """The names that an axis of plotly shows at these places; each place has one, inside the axis' ends."""
    low, high = sorted(axis.range)
    assert all(low < place < high for place in axis.tickvals)
    return [axis.ticktext[list(axis.tickvals).index(place)] for place in places]
