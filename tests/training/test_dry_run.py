"""A dry run says what a run would do and cost, without its data and without a trace."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.examples import SMALL
from tests.flows import DISTILLED, command, tiny_recipe, write_recipe
from workbench.datasets.transforms import TransformConfig
from workbench.errors import ConfigError, IncompatibleError
from workbench.recipe.loading import parse_recipe
from workbench.store.run import runs_root
from workbench.training.dry_run import dry_run, kept_by_the_graph, largest_size


def without_data(**changes: Any) -> dict[str, Any]:
    """A recipe whose data is not there."""
    return {
        "name": "published",
        "data": {"format": "kitti", "transform": {"resize": {"height": 64, "width": 96}}},
        "student": {"family": "deformable_detr", **SMALL, "backbone": {**SMALL["backbone"], "weights": "imagenet"}},
        "train": {"steps": 100, "batch_size": 8, "accumulate": 2},
        **changes,
    }  # fmt: skip


def test_a_recipe_without_its_data_is_built_with_stand_ins_for_its_classes_and_random_weights():
    found = dry_run(parse_recipe(without_data(), "x"))
    assert (found.height, found.width, found.classes) == (64, 96, 8)
    assert (found.batch_size, found.images, found.teacher_parameters) == (8, 4, 0)
    assert set(found.terms) == {"class", "bbox", "giou"} and all(value > 0 for value in found.terms.values())
    assert found.hours == pytest.approx(found.seconds_per_step * 100 / 3600) and found.seconds_per_step > 0
    assert not runs_root().exists()


def test_the_teacher_of_another_recipe_is_built_for_the_same_classes_and_every_method_gives_its_terms(tmp_path: Path):
    write_recipe(tmp_path, {"name": "teacher", "student": {"decoder_layers": 4}})
    methods = [{"method": name} for name in ("detrdistill", "clockdistill", "d3etr")]
    values = without_data(teacher={"recipe": "teacher.yaml"}, methods=methods)
    found = dry_run(parse_recipe(values, "x"), tmp_path)
    assert found.teacher_parameters > found.student_parameters > 0
    names = {name for name in found.terms if "." in name}
    assert {"detrdistill.assignment", "detrdistill.logits_positive", "clockdistill.logits", "d3etr.fixed_self_attention"} <= names


def test_where_the_data_is_at_hand_its_classes_and_sizes_count():
    found = dry_run(tiny_recipe(DISTILLED))
    assert (found.height, found.width, found.classes) == (96, 96, 4)


def test_the_memory_counts_what_the_optimiser_keeps():
    found = {
        name: dry_run(parse_recipe(without_data(train={"steps": 1, "batch_size": 8, **changes}), "x"))
        for name, changes in {"adamw": {}, "sgd": {"optimizer": "sgd"}, "plain": {"optimizer": "sgd", "momentum": 0.0}}.items()
    }
    size = 4e-9 * found["adamw"].student_parameters
    assert found["adamw"].memory_gb - found["sgd"].memory_gb == pytest.approx(size)
    assert found["sgd"].memory_gb - found["plain"].memory_gb == pytest.approx(size)


def test_a_pair_that_no_method_serves_is_refused_as_the_run_would_be():
    values = without_data(teacher={"checkpoint": "shapes_teacher"}, methods=[{"method": "ld"}])
    with pytest.raises(IncompatibleError, match="needs box_distribution"):
        dry_run(parse_recipe(values, "x"))


def test_the_bytes_of_the_graph_are_those_of_the_tensors_that_the_backward_pass_needs_each_once():
    layer = nn.Linear(10, 20)
    value = torch.randn(5, 10)
    with kept_by_the_graph(layer) as kept:
        first = layer(value)
        out = first.sigmoid()
    # a linear layer keeps its input, the sigmoid its output; the weight is no activation
    assert kept[0] == 4 * (5 * 10 + 5 * 20)
    out.sum().backward()
    assert layer.weight.grad is not None


def test_images_of_no_stated_size_need_the_data():
    assert largest_size(TransformConfig.model_validate({"resize": {"shortest": [480, 800], "longest": 1333}}), None) == (800, 1333)
    with pytest.raises(ConfigError, match="needs the size of the images"):
        largest_size(TransformConfig(), None)


def test_the_command_prints_every_number_and_starts_no_run(tmp_path: Path):
    recipe = write_recipe(tmp_path, DISTILLED)
    code, out, err = command("run", str(recipe), "--dry-run", "--json", str(tmp_path / "t.json"))
    assert code == 0, err
    assert all(word in out for word in ("memory_gb", "seconds_per_step", "term detrdistill.features"))
    assert (tmp_path / "t.json").exists() and not runs_root().exists()
