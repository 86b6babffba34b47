"""A tiny detector of every family, for what must hold whatever the family."""

from typing import Any

import torch

from tests.examples import SMALL, SPEC
from workbench.detectors import FAMILIES, Detector, InputSpec

# what a family needs besides, or in place of, the fields of SMALL that its configuration has
SPECIAL: dict[str, dict[str, Any]] = {}
NAMES = list(FAMILIES)


def tiny_config(name: str, **changes: Any) -> dict[str, Any]:
    """The family's configuration, as in a recipe: the fields of SMALL that it has."""
    fields = FAMILIES[name].config.model_fields
    return {"family": name} | {k: v for k, v in SMALL.items() if k in fields} | SPECIAL.get(name, {}) | changes


def tiny(name: str, seed: int = 0, spec: InputSpec = SPEC, **changes: Any) -> Detector:
    """A tiny detector in eval mode whose every weight and statistic is random: fresh ones have box heads that answer 0."""
    torch.manual_seed(seed)
    family = FAMILIES[name]
    detector = family.detector.build(family.config.model_validate(tiny_config(name, **changes)), spec).eval()
    with torch.no_grad():
        for key, value in detector.named_buffers():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
        for value in detector.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return detector
