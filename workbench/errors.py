"""Errors that a user can act on: each says what happened, where, and what to do.

The command line prints only the message and exits with the class's ``exit_code``. Any other exception is a defect of the workbench and
keeps its traceback.
"""

DISTRIBUTION = "distillation-workbench"  # `workbench` in the public registry is another product that installs the same import name


def pip_install(extra: str) -> str:
    """Returns the command that installs the workbench with one of its extras."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


class WorkbenchError(Exception):
    """Base class of every error that a user can fix."""

    exit_code = 1


class ConfigError(WorkbenchError):
    """A recipe or an override is wrong: an unknown key, a wrong type or an impossible combination."""

    exit_code = 2


class DataError(WorkbenchError):
    """A dataset cannot be used as it is."""

    exit_code = 3


class CheckpointError(WorkbenchError):
    """Weights cannot be loaded: the file is not safetensors, keys are missing or differ in shape, or the family is another one."""

    exit_code = 4


class RunError(WorkbenchError):
    """A run directory cannot be created, opened or continued."""

    exit_code = 5


class NonFiniteError(WorkbenchError):
    """Logits, boxes or a loss contain NaN or infinity."""

    exit_code = 6


class SilentTermError(WorkbenchError):
    """A loss term with weight and eligible targets had no gradient for a whole epoch."""

    exit_code = 7


class IncompatibleError(WorkbenchError):
    """A method cannot be used with this teacher and student; the message names the missing property."""

    exit_code = 8


def lacks_memory(error: BaseException) -> str | None:
    """Returns what a user can do if an error means that memory was too little, whoever raised it; None for every other error."""
    words = ("can't allocate memory", "cannot allocate memory", "out of memory", "std::bad_alloc")  # torch's, of CPUs and of GPUs
    said = str(error).lower() if isinstance(error, (RuntimeError, OSError)) else ""
    if not isinstance(error, MemoryError) and not any(word in said for word in words):
        return None
    return (
        "there is too little memory. End other programs, or make the job smaller: a larger train.accumulate or a smaller train.batch_size, "
        "fewer train.workers, smaller images."
    )


class MissingExtraError(WorkbenchError):
    """An optional dependency is not installed; the message says how to add it, as ``pip_install`` does."""

    exit_code = 9


class CacheError(WorkbenchError):
    """A teacher cache is missing, damaged, made for something else, or too large."""

    exit_code = 10


class ExportError(WorkbenchError):
    """A detector cannot be exported, or the exported model gives other outputs than the detector."""

    exit_code = 11


class DeviceError(WorkbenchError):
    """The device that was asked for is unknown, or this machine does not have it."""

    exit_code = 12


class Interrupted(WorkbenchError):
    """Ctrl-C, or another signal, ended the job, which can be resumed. A run ends with 128 plus the signal's number: 130, 143 or 129."""

    exit_code = 130
