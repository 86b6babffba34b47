"""A student that starts from parts of its teacher: what is copied, what is named, and what is refused."""

import re
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.examples import SPEC
from tests.families import NAMES, QUERY_NAMES, tiny, tiny_config
from tests.flows import TINY, Silent
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.registry import FAMILIES, load_detector
from workbench.errors import ConfigError, IncompatibleError, Interrupted
from workbench.methods.context import make_pairing
from workbench.recipe.inherit import InheritConfig, architecture_of, folded, inherit_parts
from workbench.recipe.loading import parse_recipe, stored_recipe
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import build
from workbench.recipe.writing import recipe_yaml
from workbench.store.run import Run
from workbench.training import launch
from workbench.training.dry_run import dry_run
from workbench.training.launch import Launch, resume, start

SHAPES = InputSpec(("circle", "square", "triangle", "cross"), SPEC.mean, SPEC.std)


def unfolded(text: str) -> list[str]:
    """The names that a short form stands for: braces hold alternatives, and ranges of numbers."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text + ","):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    names: list[str] = []
    for part in parts:
        opening = part.find("{")
        if opening < 0:
            names.append(part)
            continue
        closing, depth = opening, 1
        while depth:
            closing += 1
            depth += (part[closing] == "{") - (part[closing] == "}")
        inside, rest = part[opening + 1 : closing], part[closing + 1 :]
        numbers = re.fullmatch(r"(\d+)-(\d+)", inside)
        choices = [str(n) for n in range(int(numbers[1]), int(numbers[2]) + 1)] if numbers else unfolded(inside)
        names += [part[:opening] + choice + end for choice in choices for end in (unfolded(rest) if rest else [""])]
    return names


def named(notes: Iterable[str], beginning: str) -> list[str]:
    """The tensors that the notes with this beginning name."""
    return [name for note in notes if note.startswith(beginning) for name in unfolded(note.split(": ", 2)[-1])]


def inherited(student: Detector, teacher: Detector, parts: list[str], layer_map: Any = None) -> list[str]:
    name = student.family
    config = InheritConfig.model_validate({"from": "teacher", "parts": parts})
    architecture = FAMILIES[name].config.model_validate(tiny_config(name))
    pairing = make_pairing(student, teacher, layer_map)
    return inherit_parts(config, student, teacher, pairing, lambda spec: FAMILIES[name].detector.build(architecture, spec))


def state(detector: Detector) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


@given(st.sets(st.lists(st.sampled_from(["a", "b", "0", "1", "2", "10", "w"]), min_size=1, max_size=4).map(".".join), min_size=1))
def test_a_short_form_stands_for_the_names_it_was_made_of(names: set[str]):
    assert sorted(unfolded(", ".join(folded(sorted(names))))) == sorted(names)


def test_the_short_form_is_short():
    assert folded(["a.0.w", "a.0.b", "a.1.w", "a.1.b", "a.2.w", "a.2.b", "c"]) == ["a.{0-2}.{b, w}", "c"]


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_the_parts_is_the_teachers_and_every_other_one_as_it_was(name: str):
    student, teacher = tiny(name, 1), tiny(name, 2)
    parts = ["neck", "head"] + ([part for part in ("encoder", "decoder") if part in type(student).parts] if name in QUERY_NAMES else [])
    parts = [part for part in parts if any(student.part_of(key) == part for key in student.state_dict())]
    before, notes = state(student), inherited(student, teacher, parts)
    for key, value in student.state_dict().items():
        wanted = teacher.state_dict()[key] if student.part_of(key) in parts else before[key]
        assert torch.equal(value, wanted), key
    for part in parts:
        assert sorted(named(notes, f"inherited from the teacher, {part}: ")) == sorted(k for k in before if student.part_of(k) == part)
    assert not any(note.startswith(("not inherited", "left over")) for note in notes)


@pytest.mark.parametrize("name", QUERY_NAMES)
def test_a_decoder_layer_starts_from_the_last_teacher_layer_of_its_group(name: str):
    student, teacher = tiny(name, 1), tiny(name, 2, decoder_layers=4)
    notes = inherited(student, teacher, ["decoder", "head"])
    assert notes[-1] == "inherited decoder layers, the student's from the teacher's: 0 from 1, 1 from 3"
    own, other, layers = student.state_dict(), teacher.state_dict(), 0
    left = named(notes, "not inherited, decoder")
    # the first layer alone has a weight of this kind
    assert all("query_pos_proj" in key or "q_pos_proj" in key for key in left)
    for key, value in own.items():
        found = re.search(student.decoder_layer, key)
        if student.part_of(key) not in ("decoder", "head") or found is None:
            continue
        source = {0: 1, 1: 3}.get(int(found[1]), int(found[1]) + 2)
        if key not in left:
            assert torch.equal(value, other[key[: found.start(1)] + str(source) + key[found.end(1) :]]), key
        layers += 1
    assert layers
    over = named(notes, "left over of the teacher's decoder")
    numbers = {int(found[1]) for key in over if (found := re.search(student.decoder_layer, key))}
    assert numbers == {0, 2}


def test_a_declared_layer_map_decides_which_layer_a_layer_starts_from():
    student, teacher = tiny("dino", 1), tiny("dino", 2, decoder_layers=4)
    inherited(student, teacher, ["decoder"], ((2,), (0, 1)))
    own, other = student.state_dict(), teacher.state_dict()
    for layer, source in ((0, 2), (1, 1)):
        assert torch.equal(own[f"decoder.{layer}.mlp.fc1.weight"], other[f"decoder.{source}.mlp.fc1.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_what_depends_on_the_classes_is_left_out_and_named_where_the_teacher_has_more_of_them(name: str):
    student, teacher = tiny(name, 1), tiny(name, 2, replace(SPEC, classes=("more", *SPEC.classes)))
    before, notes = state(student), inherited(student, teacher, ["head"])
    left = named(notes, "not inherited, head: ")
    assert left and all(teacher.state_dict()[key].shape != before[key].shape for key in left)
    assert all(torch.equal(student.state_dict()[key], before[key]) for key in left)
    copied = named(notes, "inherited from the teacher, head: ")
    assert sorted(copied + left) == sorted(key for key in before if student.part_of(key) == "head")


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn", "dino", "deformable_detr"])
def test_the_same_classes_in_another_order_leave_the_class_head_alone(name: str):
    student, teacher = tiny(name, 1), tiny(name, 2, replace(SPEC, classes=SPEC.classes[::-1]))
    before, random = state(student), torch.get_rng_state()
    notes = inherited(student, teacher, ["head"])
    assert torch.equal(torch.get_rng_state(), random)
    left = named(notes, "not inherited, head: ")
    assert all("of classes that the teacher has in another order" in note for note in notes if note.startswith("not inherited"))
    more = tiny(name, 1, replace(SPEC, classes=("more", *SPEC.classes))).state_dict()
    assert sorted(left) == sorted(key for key in before if student.part_of(key) == "head" and more[key].shape != before[key].shape)
    assert left and all(torch.equal(student.state_dict()[key], before[key]) for key in left)


def test_parts_that_do_not_fit_are_refused_by_name():
    wide = tiny("fcos", 2, width=32)
    with pytest.raises(IncompatibleError, match=r"nothing of the teacher's neck \(fcos\) fits.*10 of another shape in the teacher: neck\."):
        inherited(tiny("fcos", 1), wide, ["neck"])
    with pytest.raises(IncompatibleError, match=r"the student \(fcos\) has no encoder\. Its parts are backbone, neck, head\."):
        inherited(tiny("fcos", 1), tiny("fcos", 2), ["encoder"])
    with pytest.raises(IncompatibleError, match=r"student \(fcos\) is a dense detector and the teacher \(deformable_detr\) a query one"):
        inherited(tiny("fcos", 1), tiny("deformable_detr", 2), ["neck"])
    with pytest.raises(IncompatibleError, match=r"student \(faster_rcnn\) is a two-stage detector and the teacher \(fcos\) a dense one"):
        inherited(tiny("faster_rcnn", 1), tiny("fcos", 2), ["neck"])


def recipe_of(folder: Path, inherit: Any, family: str = "fcos", **changes: Any) -> Recipe:
    if not folder.exists():
        folder.mkdir()
        tiny(family, 3, SHAPES).save(folder)
    student = tiny_config(family) | ({} if inherit is None else {"inherit": inherit})
    return parse_recipe({**TINY, "student": student, "teacher": {"checkpoint": str(folder)}} | changes, "test")


NECK_AND_HEAD = {"from": "teacher", "parts": ["neck", "head"]}


def test_the_recipe_keeps_the_key_and_its_hash_follows_it(tmp_path: Path):
    recipe, plain = recipe_of(tmp_path / "t", NECK_AND_HEAD), recipe_of(tmp_path / "t", None)
    assert recipe.inherit is not None and recipe.inherit.parts == ("neck", "head") and plain.inherit is None
    assert architecture_of(recipe.student) == plain.student == architecture_of(plain.student)
    assert recipe.model_dump(mode="json")["student"]["inherit"] == NECK_AND_HEAD
    assert "inherit" not in plain.model_dump(mode="json")["student"]
    assert parse_recipe(recipe.model_dump(mode="json"), "again") == recipe
    assert "  inherit:\n    from: teacher\n    parts: [neck, head]\n" in recipe_yaml(recipe)
    arms = {"plain": {"student": {"inherit": None}}}
    assert recipe.hash() != plain.hash() == recipe_of(tmp_path / "t", None, arms=arms).hash()


@pytest.mark.parametrize(("inherit", "message"), [
    ({"from": "teacher"}, r"student\.inherit\.parts: Field required"),
    ({"parts": ["neck"]}, r"student\.inherit\.from: Field required"),
    ({"from": "teacher", "parts": []}, r"student\.inherit\.parts: "),
    ({"from": "teacher", "parts": ["nek"]}, r"student\.inherit\.parts\.0: .*'neck'.*got 'nek'"),
    ({"from": "teacher", "part": ["neck"]}, r"student\.inherit\.part: unknown key; did you mean 'parts'"),
])  # fmt: skip
def test_a_key_that_is_missing_or_wrong_is_named(inherit: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        recipe_of(tmp_path / "t", inherit)


def test_a_misspelt_key_beside_the_familys_own_is_recognised(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"student\.inherits: unknown key; did you mean 'inherit'"):
        parse_recipe({**TINY, "student": tiny_config("fcos") | {"inherits": NECK_AND_HEAD}}, "test")
    with pytest.raises(ConfigError, match=r"student\.inherit: unknown key; valid keys are checkpoint, head"):
        parse_recipe({**TINY, "student": {"checkpoint": "shapes_teacher", "inherit": NECK_AND_HEAD}}, "test")


def test_without_a_teacher_there_is_nothing_to_inherit(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"student\.inherit needs a teacher"):
        recipe_of(tmp_path / "t", NECK_AND_HEAD, teacher=None)


@pytest.mark.parametrize("family", ["fcos", "deformable_detr"])
def test_a_built_student_differs_from_a_new_one_in_the_parts_alone(family: str, tmp_path: Path):
    folder = tmp_path / "t"
    recipe = recipe_of(folder, NECK_AND_HEAD, family, methods=[])
    # even where the teacher is used for nothing else
    setup = build(recipe, str(folder), record_teacher=False)
    plain = build(recipe_of(folder, None, family, methods=[]), str(folder)).student.state_dict()
    assert setup.teacher is not None
    for key, value in setup.student.state_dict().items():
        wanted = setup.teacher.detector.state_dict()[key] if setup.student.part_of(key) in ("neck", "head") else plain[key]
        assert torch.equal(value, wanted), key
    assert [note.partition(":")[0] for note in setup.notes][:2] == [f"inherited from the teacher, {part}" for part in ("neck", "head")]


class StopsAtOnce(Silent):
    """Interrupts the run after its first step, as Ctrl-C does."""

    def on_step(self, step: int, steps: int, values: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)


def weights_after(run: Run, step: int) -> dict[str, Tensor]:
    return load_detector(run.checkpoint_path(step)).state_dict()


def test_a_run_says_what_it_inherited_and_is_resumed_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "check_teacher", lambda setup: 0.5)
    train = TINY["train"] | {"checkpoint_every": 1}
    recipe = recipe_of(tmp_path / "t", NECK_AND_HEAD, methods=[{"method": "fitnet"}], train=train)
    listener = Silent()
    run = start(recipe, Launch(name="heir"), listener)
    info = run.info()
    assert stored_recipe(info["recipe"], "stored") == recipe
    notes = [note for note in info["notes"] if note.startswith("inherited from the teacher")]
    assert len(notes) == 2 and set(notes) <= set(listener.messages)
    assert run.checkpoint_steps() == [2]
    first = weights_after(run, 2)
    with pytest.raises(Interrupted):
        start(recipe, Launch(name="stopped"), StopsAtOnce())
    stopped = Run.open("stopped")
    assert stopped.checkpoint_steps() == [1]
    again = weights_after(resume(stopped, Launch(), Silent()), 2)
    assert all(torch.equal(value, first[key]) for key, value in again.items())


def test_a_dry_run_refuses_what_the_run_would(tmp_path: Path):
    recipe = recipe_of(tmp_path / "t", {"from": "teacher", "parts": ["encoder"]})
    with pytest.raises(IncompatibleError, match="has no encoder"):
        dry_run(recipe)
    assert dry_run(recipe_of(tmp_path / "t", NECK_AND_HEAD)).terms
