"""AdaMixer's released checkpoints load whole and answer as the released code does."""

from typing import Any

import torch

from tests.detectors.conversion.layouts import BACKBONE, COUNTER, adamixer, filled, images, pseudo_random
from workbench.detectors.adamixer import AdaMixer, AdaMixerModelConfig
from workbench.detectors.conversion.adamixer import convert
from workbench.detectors.detector import InputSpec

SPEC = InputSpec(("a", "b", "c"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SHAPES: dict[str, Any] = {"classes": 3, "queries": 5, "layers": 3, "width": 32, "heads": 4, "ffn": 24, "groups": 2, "points": (4, 6)}
CONFIG = AdaMixerModelConfig.model_validate({
    "backbone": BACKBONE | {"levels": [1, 2, 3, 4]}, "width": 32, "heads": 4, "ffn": 24, "decoder_layers": 3, "queries": 5, "groups": 2,
    "in_points": 4, "out_points": 6,
})  # fmt: skip

# What the released modules (github.com/MCG-NJU/AdaMixer at a50e33d, attention and FFN of mmcv 1.3.3) answer for query 3 to these
# weights and images: layers 0 to 2, two images each.
LOGITS = [
    [[-0.16195, 1.13323, -0.30998], [-0.23256, 0.75959, -0.48216]],
    [[0.81498, 0.2364, 0.57631], [0.98388, 0.1469, 0.38539]],
    [[-0.29324, 0.01656, 0.46463], [-0.56967, 0.00991, 0.44113]],
]
BOXES = [
    [[0.3899, 0.79353, 1.8378, 0.47725], [0.31065, 0.805, 1.15165, 0.48284]],
    [[0.62532, 0.93566, 1.20567, 0.26006], [0.35713, 1.1014, 0.91503, 0.36465]],
    [[0.40666, 1.33718, 1.03146, 0.18602], [0.12285, 0.9752, 0.88908, 0.36649]],
]
STATES = [[1.00124, 0.84881], [-0.46583, -0.44221], [-1.14351, -0.79694]]  # channel 7


def released() -> dict[str, torch.Tensor]:
    state = filled(adamixer(**SHAPES))
    # places that differ, unlike those of a trained checkpoint
    state["rpn_head.init_proposal_bboxes.weight"] = 0.5 + 0.3 * pseudo_random(20, 3).reshape(5, 4)
    return state


def test_every_tensor_of_a_released_checkpoint_finds_its_place():
    detector = AdaMixer.build(CONFIG, SPEC)
    own = {name: value.shape for name, value in detector.state_dict().items() if not name.endswith(COUNTER)}
    state = released()
    converted = convert(state)
    assert {name: value.shape for name, value in converted.items()} == own
    assert len(converted) == sum(not name.endswith(COUNTER) for name in state)


def test_the_answers_are_those_of_the_released_code():
    detector = AdaMixer.build(CONFIG, SPEC).eval()
    detector.load_state_dict(convert(released()), strict=False)  # only BatchNorm's counters are missing, see above
    with torch.no_grad():
        output = detector(*images())
    torch.testing.assert_close(output.logits[:, :, 3], torch.tensor(LOGITS), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.boxes[:, :, 3], torch.tensor(BOXES), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.states[:, :, 3, 7], torch.tensor(STATES), atol=1e-4, rtol=0)


def test_a_name_that_is_no_part_of_the_model_is_kept():
    converted = convert({"roi_head.mask_head.0.weight": torch.ones(1), "neck.extra.weight": torch.ones(1)})
    assert set(converted) == {"roi_head.mask_head.0.weight", "neck.extra.weight"}
