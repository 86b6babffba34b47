"""Each weight of each family belongs to one part, and that of a decoder layer says of which."""

import re

import pytest
import torch

from tests.detectors.test_families import TWO_STAGE
from tests.families import NAMES, QUERY_NAMES, tiny
from workbench.detectors.adamixer import AdaMixer
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, Level
from workbench.detectors.registry import FAMILIES

VIT = {
    "name": "transformers/dinov3_vit", "levels": [2, 3, 4],
    "options": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32, "patch_size": 16},
}  # fmt: skip
FORMS = {name: (name, {}) for name in NAMES} | {
    "two-stage deformable_detr": ("deformable_detr", TWO_STAGE),
    "deimv2 on a ViT": ("deimv2", {"backbone": VIT, "points": [2, 3, 2]}),
}  # fmt: skip
every_form = pytest.mark.parametrize("form", FORMS)


def detector_of(form: str) -> Detector:
    name, changes = FORMS[form]
    return tiny(name, **changes)


@every_form
def test_every_weight_belongs_to_one_part_of_those_that_the_family_has(form: str):
    detector = detector_of(form)
    found = {detector.part_of(name) for name in detector.state_dict()}
    kind = {"decoder", "queries"} if "queries" in detector.provides else set()
    encoder = {"encoder"} if "memory" in detector.provides else set()
    assert found == {"backbone", "neck", "head"} | kind | encoder


@every_form
def test_the_parts_are_what_the_output_is_made_of(form: str):
    """Each part is changed in turn: what comes before it stays as it was, and its own result does not."""
    images, padding = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 64, 64, dtype=torch.bool)
    detector = detector_of(form)
    with torch.no_grad():
        before = detector(images, padding)
        order = [part for part in ("backbone", "neck", "encoder") if any(detector.part_of(n) == part for n in detector.state_dict())]
        for index, part in reversed(list(enumerate(order))):
            for name, value in detector.named_parameters():
                if detector.part_of(name) == part:
                    value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
            after = detector(images, padding)
            for earlier in order[:index]:
                levels = zip(levels_of(before, earlier), levels_of(after, earlier), strict=True)
                assert all(torch.equal(a.features, b.features) for a, b in levels), (part, earlier)
            levels = zip(levels_of(before, part), levels_of(after, part), strict=True)
            assert any(not torch.equal(a.features, b.features) for a, b in levels), part


def levels_of(output: DetectorOutput, part: str) -> tuple[Level, ...]:
    return {"backbone": output.backbone, "neck": output.neck, "encoder": output.memory}[part]


@pytest.mark.parametrize("name", QUERY_NAMES)
def test_the_layers_of_a_decoder_are_numbered_as_the_output_has_them(name: str):
    detector = tiny(name)
    layers = {int(found[1]) for key in detector.state_dict() if (found := re.search(detector.decoder_layer, key))}
    assert set(range(detector.num_stages)) <= layers
    with torch.no_grad():
        images, padding = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
        before = detector(images, padding)
        for key, value in detector.named_parameters():
            found = re.search(detector.decoder_layer, key)
            if found and int(found[1]) == detector.num_stages - 1 and detector.part_of(key) == "decoder":
                value.add_(0.3 * torch.randn_like(value))
        after = detector(images, padding)
    assert torch.equal(before.states[:-1], after.states[:-1]) and not torch.equal(before.states[-1], after.states[-1])


def test_a_name_that_fits_no_part_or_two_is_a_mistake_that_is_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="weight 'surprise' of family 'adamixer' belongs to 0 parts: none"):
        AdaMixer.part_of("surprise")
    monkeypatch.setattr(AdaMixer, "parts", {"neck": "a", "head": "ab"})
    with pytest.raises(ValueError, match="'abc' of family 'adamixer' belongs to 2 parts: neck, head"):
        AdaMixer.part_of("abc")
    assert all(family.detector.parts for family in FAMILIES.values())
