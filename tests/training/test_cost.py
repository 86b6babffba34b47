"""FLOPs and parameters against numbers worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.training.cost import measure_cost


class Tiny(nn.Module):
    """Convolution, attention and a linear head of known cost."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.modes: list[bool] = []

    def forward(self, images: Tensor, padding: Tensor) -> Tensor:
        assert padding.shape == (images.shape[0], *images.shape[2:]) and not padding.any()
        self.modes.append(self.training)
        cells = self.norm(self.conv(images)).flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(cells[:, None], cells[:, None], cells[:, None])[:, 0]
        return self.head(mixed)


def test_flops_are_two_per_multiply_add_of_convolution_attention_and_linear():
    cost = measure_cost(Tiny(), 16, 24, repeats=1)
    cells = 8 * 12
    convolution = 2 * cells * 8 * 3 * 3 * 3
    attention = 2 * (cells * cells * 8) * 2
    head = 2 * cells * 8 * 5
    assert cost.flops == convolution + attention + head
    assert cost.parameters == (8 * 3 * 9 + 8) + (8 + 8) + (8 * 5 + 5)
    assert (cost.height, cost.width) == (16, 24) and cost.ms_per_image > 0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_measured_in_eval_mode_and_left_as_it_was(training: bool):
    model = Tiny().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    threads = torch.get_num_threads()
    measure_cost(model, 8, 8, repeats=2)
    assert model.training is training and set(model.modes) == {False} and torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
