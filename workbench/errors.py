"""Errors a user can act on: what happened, where, and what to do.

The command line prints the message alone and exits with the class's ``exit_code``; anything that is not a
``WorkbenchError`` is a defect of ours and keeps its traceback.
"""

DISTRIBUTION = "distillation-workbench"  # `workbench` in the public registry is another product that installs the same import name


def pip_install(extra: str) -> str:
    """Returns the command that installs the workbench with one of its extras."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


class WorkbenchError(Exception):
    """Base of every error that a user can mend."""

    exit_code = 1


class ConfigError(WorkbenchError):
    """A recipe or an override is wrong: unknown key, wrong type, impossible combination."""

    exit_code = 2


class DataError(WorkbenchError):
    """A dataset cannot be used as it is."""

    exit_code = 3


class CheckpointError(WorkbenchError):
    """Weights cannot be loaded: not safetensors, keys missing or of another shape, another family."""

    exit_code = 4


class RunError(WorkbenchError):
    """A run directory cannot be created, opened or continued."""

    exit_code = 5


class NonFiniteError(WorkbenchError):
    """NaN or infinity in logits, boxes or a loss."""

    exit_code = 6


class SilentTermError(WorkbenchError):
    """A loss term with weight and eligible targets taught nothing for a whole epoch."""

    exit_code = 7


class IncompatibleError(WorkbenchError):
    """A method cannot serve this teacher and student; the message names the missing property."""

    exit_code = 8


class MissingExtraError(WorkbenchError):
    """An optional dependency is not installed; the message says how to add it, as ``pip_install`` does."""

    exit_code = 9


class CacheError(WorkbenchError):
    """A teacher cache is missing, damaged, of something else, or too large."""

    exit_code = 10


class ExportError(WorkbenchError):
    """A detector cannot be exported, or its export does not answer as it does."""

    exit_code = 11


class DeviceError(WorkbenchError):
    """The device that was asked for is unknown, or this machine does not have it."""

    exit_code = 12


class Interrupted(WorkbenchError):
    """Ctrl-C: the run was saved once and can be resumed."""

    exit_code = 130
