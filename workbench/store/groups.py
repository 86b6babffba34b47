"""The words in a run's ``group`` that connect the runs of a comparison: names of arms and schedules."""

UNDISTILLED = "undistilled"  # the arm without a teacher, the baseline of the others
DISTILLED = "distilled"  # a recipe with methods, as it is written
EQUAL_STEPS = "equal steps"
EQUAL_COMPUTE = "equal compute"  # a distilled run shortened to the undistilled run's seconds


def own_arm_name(has_methods: bool) -> str:
    """Names the arm that a recipe itself is, without any of its ``arms``."""
    return DISTILLED if has_methods else UNDISTILLED
