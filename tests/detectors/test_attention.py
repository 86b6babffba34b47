"""Attention maps are what the attention computed, and asking for them changes nothing."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.examples import SMALL, images_of, small_detector
from workbench.detectors.attention import sampled_map

VARIANTS: dict[str, dict[str, Any]] = {
    "refined": {},
    "two levels, plain": {"levels": 2, "backbone": SMALL["backbone"] | {"levels": [1, 2]}, "box_refine": False},
}
SIZES = ((64, 96), (64, 80))


@pytest.mark.parametrize("variant", VARIANTS)
def test_asking_for_attention_leaves_the_output_as_it_is_and_not_asking_gives_none(variant: str):
    detector = small_detector(**VARIANTS[variant])
    before = detector(*images_of(*SIZES))
    with detector.collecting_attentions():
        output = detector(*images_of(*SIZES))
        again = detector.decode(output.queries, output.context)
    after = detector(*images_of(*SIZES))
    assert before.attentions is None and after.attentions is None
    torch.testing.assert_close(output.logits, before.logits)
    assert torch.equal(after.logits, before.logits)
    assert output.attentions is not None and again.attentions is not None
    torch.testing.assert_close(again.attentions.self_attention, output.attentions.self_attention)
    torch.testing.assert_close(again.attentions.cross_attention, output.attentions.cross_attention)


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_have_a_row_for_every_query_that_sums_to_one(variant: str):
    detector = small_detector(**VARIANTS[variant])
    with detector.collecting_attentions():
        output = detector(*images_of(*SIZES))
    maps, cells = output.attentions, sum(level.padding[0].numel() for level in output.memory)
    assert maps is not None
    assert maps.self_attention.shape == (2, 2, 4, 6, 6) and maps.cross_attention.shape == (2, 2, 1, 6, cells)
    torch.testing.assert_close(maps.self_attention.sum(-1), torch.ones(2, 2, 4, 6))
    assert (maps.cross_attention >= 0).all() and (maps.cross_attention.sum(-1) <= 1 + 1e-5).all()
    maps.cross_attention.square().sum().backward()
    offsets: Any = detector.model.model.decoder.layers[0].encoder_attn
    assert offsets.sampling_offsets.weight.grad.abs().sum() > 0


def test_the_recorded_self_attention_makes_the_output_of_its_layer():
    detector = small_detector()
    layer: Any = detector.model.model.decoder.layers[0].self_attn
    seen: dict[str, Any] = {}
    layer.register_forward_hook(lambda module, args, arguments, output: seen.update(arguments, output=output[0]), with_kwargs=True)
    with torch.no_grad(), detector.collecting_attentions():
        output = detector(*images_of((64, 96)))
        assert output.attentions is not None
        values = layer.v_proj(seen["hidden_states"]).view(1, 6, 4, 8).transpose(1, 2)
        mixed = (output.attentions.self_attention[0] @ values).transpose(1, 2).reshape(1, 6, 32)
    torch.testing.assert_close(layer.o_proj(mixed), seen["output"])


def test_a_sampled_map_reads_what_bilinear_sampling_reads():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (2, 3)]
    locations = torch.rand(2, 4, 3, 2, 2, 2, generator=generator) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 4, 3, 2, 2, generator=generator)
    cells = [torch.randn(2, 1, h, w, generator=generator) for h, w in shapes]
    wanted = torch.zeros(2, 4)
    for level, values in enumerate(cells):
        for head in range(3):
            grid = 2 * locations[:, :, head, level] - 1
            read = F.grid_sample(values, grid, align_corners=False)[:, 0]
            wanted += (read * weights[:, :, head, level]).sum(-1) / 3
    maps = sampled_map(locations, weights, shapes)
    assert maps.shape == (2, 1, 4, 21)
    read = (maps[:, 0] @ torch.cat([v.flatten(1) for v in cells], 1)[..., None])[..., 0]
    torch.testing.assert_close(read, wanted)


def test_a_sampled_map_counts_cells_exactly_in_mixed_precision():
    locations = torch.tensor([0.5 / 30, 0.5 / 40]).view(1, 1, 1, 1, 1, 2).repeat(1, 2, 1, 1, 1, 1)
    locations[:, 1] = torch.tensor([29.5 / 30, 39.5 / 40])
    maps = sampled_map(locations.bfloat16(), torch.ones(1, 2, 1, 1, 1).bfloat16(), [(40, 30)])
    assert maps.dtype == torch.float32 and maps.shape == (1, 1, 2, 1200)
    assert maps[0, 0].argmax(-1).tolist() == [0, 1199]
