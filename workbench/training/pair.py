"""Builds teacher and student of a recipe with random weights: do they fit, before either of them is trained?"""

from dataclasses import dataclass
from typing import Any

import torch

from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.registry import family, load_detector
from workbench.methods.context import Pairing, make_pairing
from workbench.methods.method import Method
from workbench.methods.registry import build_method
from workbench.recipe.inherit import architecture_of, bare
from workbench.recipe.schema import CheckpointConfig, Recipe
from workbench.recipe.setup import find_detector, in_data_words, inherited, input_spec, open_split


@dataclass(frozen=True)
class BuiltPair:
    """Models and methods of a recipe.

    Attributes:
        student: The student.
        teacher: The teacher; None if the recipe has none.
        pairing: Layers and classes of both; None without a teacher.
        methods: Methods with their adapters, in the order of the recipe.
    """

    student: Detector
    teacher: Detector | None
    pairing: Pairing | None
    methods: list[Method]


def build_pair(recipe: Recipe, teacher: Recipe | CheckpointConfig | None, spec: InputSpec) -> BuiltPair:
    """Builds the pair with random weights, whatever weights the recipe names.

    Args:
        recipe: recipe of the student.
        teacher: the recipe that makes the teacher, or the checkpoint, whose head is fitted to the classes.
        spec: classes and normalisation.

    Raises:
        ConfigError: layers do not fit, or a setting is wrong.
        IncompatibleError: a method cannot serve the pair, or a part cannot be inherited.
    """
    student = _detector(recipe.student, spec)
    if teacher is None:
        return BuiltPair(student, None, None, [])
    taught = _detector(teacher.student if isinstance(teacher, Recipe) else teacher, spec)
    pairing = make_pairing(student, taught, recipe.layer_map)
    inherited(recipe, student, taught, pairing)
    return BuiltPair(student, taught, pairing, [build_method(config, student, taught, pairing) for config in recipe.methods])


def check_pair(recipe: Recipe, teacher: Recipe | None) -> None:
    """Refuses a pair that could not be trained: layers, widths, classes, parts to inherit, needs of the methods.

    Args:
        recipe: recipe of the student; its data must be there.
        teacher: the recipe that makes the teacher; None if it is a checkpoint, which must know the classes of the data.

    Raises:
        WorkbenchError: see ``build_pair``; or a checkpoint does not know a class of the data.
    """
    with torch.random.fork_rng([]):
        data = open_split(recipe, recipe.data.train)
        spec = input_spec(recipe, data)
        config = recipe.teacher if isinstance(recipe.teacher, CheckpointConfig) else None
        built = build_pair(recipe, teacher or config, spec)
        if config is not None:
            detector = load_detector(find_detector(config.checkpoint).folder)
            detector.spec = in_data_words(detector.spec, recipe.class_map, spec.classes)
            make_pairing(built.student, detector, recipe.layer_map)


def _detector(config: Any, spec: InputSpec) -> Detector:
    """Returns a detector with random weights whatever weights the recipe names, or a checkpoint with its head fitted to the data."""
    if isinstance(config, CheckpointConfig):
        detector = load_detector(find_detector(config.checkpoint).folder)
        if detector.spec.classes != spec.classes:
            detector.reset_classes(spec)
        return detector
    config = bare(architecture_of(config))
    return family(config.family).detector.build(config, spec)
