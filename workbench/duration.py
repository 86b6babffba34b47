"""Writes how long something takes, for people."""


def duration(seconds: float) -> str:
    """Returns a time in the unit that suits it.

    Example:
        >>> duration(42), duration(1_800), duration(9_000)
        ('42 s', '30 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
