"""Says how exactly a run can be repeated, and why."""

import os
import platform

import torch

BIT_EQUAL = "bit-equal"
DETERMINISTIC = "deterministic kernels"
TOLERANCE = "stated tolerance"
# of the norm of a step's gradient, whatever its division; tests/training/test_whole_batch.py holds it
DIVIDED = 1e-5


def reproducibility(device: torch.device, processes: int, passes: int = 1) -> dict[str, str]:
    """Returns the ``kind`` of a run's reproducibility, one of the three above, and ``why`` as a sentence.

    Args:
        device: device of the training.
        processes: number of processes.
        passes: number of passes in which a step's images go through; more than 1 once the memory was too small.
    """
    divided = [f"{processes} processes"] * (processes > 1) + [f"{passes} passes"] * (passes > 1)
    if device.type == "cuda":
        card = torch.cuda.get_device_name(device)
        if torch.are_deterministic_algorithms_enabled() and os.environ.get("CUBLAS_WORKSPACE_CONFIG"):
            return _said(DETERMINISTIC, f"torch refuses kernels whose order of addition varies, so that a run on {card} with this torch "
                         f"({torch.__version__}) repeats itself")  # fmt: skip
        return _said(TOLERANCE, f"kernels of {card} add in an order that varies; how far two runs come apart is not measured")
    if divided:
        return _said(TOLERANCE, f"{' and '.join(divided)} share a batch, whose gradient is that of one up to the order of addition "
                     f"({DIVIDED:g} of its norm)")  # fmt: skip
    threads = torch.get_num_threads()
    return _said(BIT_EQUAL, f"one process adds in a fixed order, with {threads} threads on a {platform.machine()} processor")


def _said(kind: str, why: str) -> dict[str, str]:
    return {"kind": kind, "why": f"{why}."}
