"""Checkpoints of a run, stored as safetensors and JSON only; a checkpoint is complete or absent.

``checkpoints/<step>/`` holds the student as a detector folder, which is evaluated and exported, and the trainer's state: the weights
being optimised, adapters, optimiser moments, random generators, loss scaler and averaged weights.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from workbench.detectors.detector import Detector
from workbench.detectors.weights import EXACT_NORMS, read_spec, read_tensors
from workbench.errors import CheckpointError, RunError, WorkbenchError
from workbench.files import read_json, replacing_folder, write_json, write_text
from workbench.store.intact import check_hashes, write_hashes
from workbench.store.run import Run
from workbench.store.schemas import TrainerState
from workbench.training.optim import Average

TRAINER_TENSORS = "trainer.safetensors"
TRAINER_STATE = "trainer.json"


def save_checkpoint(
    run: Run,
    step: int,
    student: Detector,
    methods: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    scaler: GradScaler | None,
    state: dict[str, Any],
) -> None:
    """Writes the checkpoint after ``step`` steps into a temporary folder and renames it into place.

    Raises:
        RunError: the disk is full or the folder cannot be written; earlier checkpoints are kept.
    """
    tensors = {f"student.{k}": v for k, v in student.state_dict().items()}
    tensors |= {f"methods.{k}": v for k, v in methods.state_dict().items()}
    tensors |= _optimizer_tensors(optimizer)
    tensors |= {f"rng.cuda.{i}": v for i, v in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])}
    tensors["rng.cpu"] = torch.get_rng_state()
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in average.values.items()}
    # clones: tied weights share memory and safetensors stores each tensor once; besides, the swap below writes into the student's tensors
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    if average is not None:
        average.swap(student)
    try:
        with replacing_folder(run.checkpoint_path(step)) as folder:
            student.save(folder)
            save_file(tensors, folder / TRAINER_TENSORS)
            write_json(folder / TRAINER_STATE, {"step": step, "scaler": scaler.state_dict() if scaler is not None else None, **state})
            write_hashes(folder)
            write_text(folder / "DONE", f"{step}\n")
    except (WorkbenchError, SafetensorError) as error:
        raise RunError(
            f"cannot write the checkpoint of step {step}: {error} Earlier checkpoints are kept. Free some space, then run "
            f"'workbench run --resume {run.name}'."
        ) from error
    finally:
        if average is not None:
            average.swap(student)


def load_checkpoint(
    run: Run,
    step: int,
    student: Detector,
    methods: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    scaler: GradScaler | None,
) -> dict[str, Any]:
    """Restores what ``save_checkpoint`` wrote and returns the trainer's own state.

    Raises:
        CheckpointError: the files do not match this recipe.
    """
    folder = run.checkpoint_path(step)
    _check(folder)
    written = read_spec(folder)
    if written is not None and student.exact_norms and not written[1].get(EXACT_NORMS, False):
        raise CheckpointError(
            f"{folder} was written by an earlier version of the workbench, which left the activations of this backbone out. It cannot be "
            "continued. Start a new run."
        )
    tensors = read_tensors(folder / TRAINER_TENSORS)
    try:
        state: dict[str, Any] = read_json(folder / TRAINER_STATE, TrainerState)
    except WorkbenchError as error:
        raise CheckpointError(f"the checkpoint cannot be continued: {error}") from error
    try:
        report = student.load_state_dict(_part(tensors, "student."), strict=False)
        # torch adds num_batches_tracked counters to a plain mapping while loading, and norms of pretrained layouts do not have them
        wrong = [key for key in (*report.missing_keys, *report.unexpected_keys) if not key.endswith("num_batches_tracked")]
        if wrong:
            raise KeyError(", ".join(wrong))
        methods.load_state_dict(_part(tensors, "methods."))
        _restore_optimizer(optimizer, _part(tensors, "optimizer."))
    except (RuntimeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{folder} does not fit the run's recipe: {error}") from error
    if average is not None:
        average.values = {k: v.to(average.values[k].device) for k, v in _part(tensors, "average.").items()}
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(tensors["rng.cpu"])
    cuda = [tensors[key] for key in sorted(tensors) if key.startswith("rng.cuda.")]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    return state


def load_methods(run: Run, step: int, methods: nn.Module) -> None:
    """Restores only the adapters of a checkpoint.

    Raises:
        CheckpointError: the files do not match this recipe.
    """
    folder = run.checkpoint_path(step)
    _check(folder)
    try:
        methods.load_state_dict(_part(read_tensors(folder / TRAINER_TENSORS), "methods."))
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit the run's recipe: {error}") from error


def _check(folder: Path) -> None:
    """Checks the files of a checkpoint against the hashes in it.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    try:
        check_hashes(folder, f"Remove {folder} to go on from the checkpoint before it, or restore it from a copy.")
    except WorkbenchError as error:
        raise CheckpointError(str(error)) from error


def prune_checkpoints(run: Run, keep: set[int]) -> None:
    """Removes every complete checkpoint that is not in ``keep``; DONE goes first, so that no half-removed one looks complete."""
    for step in run.checkpoint_steps():
        if step not in keep:
            folder = run.checkpoint_path(step)
            (folder / "DONE").unlink()
            shutil.rmtree(folder)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": torch.as_tensor(value) for index, values in state.items() for key, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # fused optimisers walk weights and moments in memory order: a moment in another memory format would meet the wrong weight
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
