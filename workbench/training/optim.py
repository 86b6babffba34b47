"""AdamW and SGD with parameter groups, the learning rate as a pure function of the step, and averaged weights."""

import math
import re

import torch
from torch import Tensor, nn

from workbench.recipe.schema import TrainConfig

# LW-DETR's projector is trained from random weights, although it lies inside what transformers calls the backbone
_BACKBONE = re.compile(r"\.(backbone\.(?!projector\.)|conv_encoder\.model\.)")
_SAMPLING = ("sampling_offsets", "reference_points")


def parameter_groups(student: nn.Module, methods: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Returns groups with a ``factor`` on the learning rate: backbone, sampling offsets and reference points, and the rest.

    AdamW does not decay biases and norms, though DETRDistill's released recipe decays them as well; SGD decays all parameters.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in [*student.named_parameters(), *methods.named_parameters()]:
        if not parameter.requires_grad:
            continue
        factor = 1.0
        if _BACKBONE.search(f".{name}"):
            factor = config.backbone_factor
        elif any(word in name for word in _SAMPLING):
            factor = config.sampling_factor
        decay = 0.0 if parameter.ndim <= 1 and config.optimizer == "adamw" else config.weight_decay
        groups.setdefault((factor, decay), []).append(parameter)
    return [{"params": p, "factor": factor, "weight_decay": decay} for (factor, decay), p in sorted(groups.items(), key=lambda g: g[0])]


def make_optimizer(student: nn.Module, methods: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns the recipe's optimiser over ``parameter_groups``."""
    groups = parameter_groups(student, methods, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def optimizer_copies(config: TrainConfig) -> int:
    """Returns how many numbers the recipe's optimiser keeps for each parameter: AdamW's two moments, SGD's momentum."""
    return 2 if config.optimizer == "adamw" else int(config.momentum > 0)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Returns the rate of the step with 0-based index ``step``: linear warm-up, then the schedule over the remaining steps."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** sum(step >= drop * config.steps for drop in config.drops)
    return config.learning_rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets every group's rate to ``rate`` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


class Average:
    """Exponential moving average of a module's floating-point state, kept in float32."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.values: dict[str, Tensor] = {k: v.detach().clone().float() for k, v in _floats(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Adds one step to the average; the decay ramps up as (1 + step) / (10 + step), so that early weights are forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in _floats(module).items():
            self.values[name].lerp_(value.float(), 1 - decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchanges the module's weights with the averaged ones; a second call reverses it."""
        for name, value in _floats(module).items():
            kept = value.detach().clone()
            value.copy_(self.values[name])
            self.values[name] = kept.float()


def _floats(module: nn.Module) -> dict[str, Tensor]:
    """Returns each floating-point tensor of the state once, even if several names share it."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if value.is_floating_point() and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            result[name] = value
    return result
