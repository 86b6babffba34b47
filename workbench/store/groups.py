"""The words in a run's ``group`` that tie the runs of a comparison: names of its arms and schedules."""

UNDISTILLED = "undistilled"  # the arm without a teacher, which the others are compared with
DISTILLED = "distilled"  # a recipe with methods, as it is written
EQUAL_STEPS = "equal steps"
EQUAL_COMPUTE = "equal compute"  # a distilled run shortened to the undistilled run's seconds


def own_arm_name(has_methods: bool) -> str:
    """Names the arm that a recipe itself is, without any of its ``arms``."""
    return DISTILLED if has_methods else UNDISTILLED
