"""Measures the cost of a detector: parameters, FLOPs and time per image."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_WARM_UP = 3


@dataclass(frozen=True)
class Cost:
    """Cost of one model at one input size.

    Attributes:
        parameters: Number of weights.
        flops: Floating-point operations of one forward pass on one image. A multiply-add counts as two. Convolutions, matrix products and
            attention are counted; element-wise operations and grid sampling are not.
        ms_per_image: Median milliseconds of one forward pass with batch 1 on one thread, or on the device with CUDA.
        height: Input height in pixels.
        width: Input width in pixels.
    """

    parameters: int
    flops: int
    ms_per_image: float
    height: int
    width: int


def measure_cost(model: nn.Module, height: int, width: int, repeats: int = 20) -> Cost:
    """Measures a model that is called as ``model(images, padding)`` in eval mode, on one image without padding.

    Args:
        model: the model; its mode and gradient flags are restored afterwards, and so is torch's number of threads.
        height: input height in pixels.
        width: input width in pixels.
        repeats: number of timed passes, after three warm-up passes.
    """
    parameter = next(model.parameters())
    images = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
    padding = torch.zeros(1, height, width, dtype=torch.bool, device=parameter.device)
    training, threads = model.training, torch.get_num_threads()
    trained = [p for p in model.parameters() if p.requires_grad]
    # torch's module tracker hooks the gradient of every tensor that requires one, even where none is computed
    model.eval().requires_grad_(False)
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                model(images, padding)
            seconds = [_seconds(model, images, padding) for _ in range(_WARM_UP + repeats)][_WARM_UP:]
    finally:
        torch.set_num_threads(threads)
        model.train(training)
        for p in trained:
            p.requires_grad_(True)
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(parameters, counter.get_total_flops(), 1000 * statistics.median(seconds), height, width)


def _seconds(model: nn.Module, images: torch.Tensor, padding: torch.Tensor) -> float:
    start = time.perf_counter()
    model(images, padding)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
