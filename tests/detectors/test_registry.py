"""The list of families tells the truth."""

import pytest
import torch

from tests.families import DENSE_NAMES, NAMES, QUERY_NAMES, TWO_STAGE_NAMES, tiny, tiny_config
from workbench.detectors.registry import FAMILIES, family, parameter_count
from workbench.errors import ConfigError


def test_an_unknown_family_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"unknown detector family 'detrr'.*conditional_detr"):
        family("detrr")


def test_every_family_is_held_to_the_invariants_of_one_kind_of_detector():
    assert sorted(QUERY_NAMES + DENSE_NAMES + TWO_STAGE_NAMES) == sorted(NAMES)


# from the papers' tables and the released models' cards, in millions: DETR 41, Conditional DETR 44, DAB-DETR 44, Deformable DETR 40,
# DINO 47, AdaMixer 135, RT-DETR R50 42, RF-DETR base 32, FCOS R50 32, RetinaNet R50 38
@pytest.mark.parametrize(
    ("name", "millions"),
    [("detr", 41), ("conditional_detr", 44), ("dab_detr", 44), ("deformable_detr", 40), ("dino", 47), ("adamixer", 135), ("rt_detr", 42),
     ("rf_detr", 32), ("fcos", 32), ("retinanet", 38)],
)  # fmt: skip
def test_published_settings_have_the_published_number_of_parameters(name: str, millions: int):
    assert parameter_count(name) / 1e6 == pytest.approx(millions, abs=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_counted_parameters_are_those_of_a_built_model(name: str):
    row = FAMILIES[name]
    config = row.config.model_validate(tiny_config(name))
    spec = tiny(name).spec
    with torch.device("meta"):
        bare = row.detector.build(config, spec)
    assert sum(p.numel() for p in bare.parameters()) == sum(p.numel() for p in tiny(name).parameters())
    assert parameter_count(name) > 10e6
