"""Checks that a teacher which is still to be trained fits its student, with models that are built and not trained."""

from typing import Any

import torch

from workbench.datasets.base import Dataset
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.registry import family, load_detector
from workbench.methods.context import make_pairing
from workbench.methods.registry import build_method
from workbench.recipe.inherit import architecture_of, bare
from workbench.recipe.schema import CheckpointConfig, Recipe
from workbench.recipe.setup import check_sizes, find_detector, in_data_words, inherited, input_spec


def untrained(config: Any, spec: InputSpec) -> Detector:
    """Returns a detector with random weights whatever weights the recipe names, or a checkpoint with its head fitted to the data.

    Args:
        config: ``student`` of a recipe, or a checkpoint.
        spec: classes and normalisation.
    """
    if isinstance(config, CheckpointConfig):
        detector = load_detector(find_detector(config.checkpoint).folder)
        if detector.spec.classes != spec.classes:
            detector.reset_classes(spec)
        return detector
    config = bare(architecture_of(config))
    return family(config.family).detector.build(config, spec)


def check_pair(recipe: Recipe, teacher: Recipe | None, data: Dataset) -> None:
    """Builds student and teacher and everything between them, so that a mismatch shows before the teacher is trained.

    Args:
        recipe: recipe of the student.
        teacher: recipe that will train the teacher, on the same data; None if the teacher is a checkpoint.
        data: a split, for the classes and the sizes of its images.

    Raises:
        IncompatibleError: a method lacks what it needs from one of the two, or a checkpoint does not know a class of the data.
        ConfigError: layers, sizes or classes do not fit; the message says what to set.
        CheckpointError: there is no such checkpoint.
    """
    with torch.random.fork_rng(devices=[]):
        student = untrained(recipe.student, input_spec(recipe, data))
        check_sizes(student, "student", recipe, [data])
        if teacher is not None:
            other = untrained(teacher.student, input_spec(teacher, data))
        elif isinstance(recipe.teacher, CheckpointConfig):
            other = load_detector(find_detector(recipe.teacher.checkpoint).folder)
            other.spec = in_data_words(other.spec, recipe.class_map, student.spec.classes)
        else:
            return
        check_sizes(other, "teacher", recipe, [data])
        pairing = make_pairing(student, other, recipe.layer_map)
        inherited(recipe, student, other, pairing)
        for config in recipe.methods:
            build_method(config, student, other, pairing)
