"""What holds for every method that compares feature maps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.examples import batch_of, random_output
from tests.methods.pairs import build_for, run, stub
from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import Level, QueryOutput
from workbench.errors import IncompatibleError
from workbench.methods.context import make_pairing
from workbench.methods.levels import Compared
from workbench.methods.maps import MapMethod, boxes_in_cells
from workbench.methods.registry import METHODS, build_method, find_method

MAPS = [name for name in METHODS if issubclass(find_method(name), MapMethod)]
LEVELS = ((8, 6, 8), (16, 3, 4))
# masks of MGD are drawn per place in the batch; what follows is about the rest
SETTINGS: dict[str, dict[str, Any]] = {"mgd": {"mask_ratio": 0.0}}
every_method = pytest.mark.parametrize("name", MAPS)


def outputs(images: int = 3, width: int = 4, student_width: int | None = None) -> tuple[QueryOutput, QueryOutput]:
    own = random_output(1, (images, 4), width=student_width or width, levels=LEVELS)
    return own, random_output(1, (images, 4), width=width, levels=LEVELS, seed=1)


def changed(output: QueryOutput, change: Any) -> QueryOutput:
    return replace(output, memory=tuple(change(level) for level in output.memory))


def test_the_seven_methods_on_maps_are_all_here():
    assert MAPS == ["fitnet", "fgd", "mgd", "fkd", "fgfi", "cwd", "pkd"]


@every_method
def test_the_terms_that_are_announced_come_finite_and_not_negative(name: str):
    student, teacher = outputs()
    method = build_for(name, student, teacher)
    terms = run(method, student, teacher, batch_of([2, 0, 1], 3))
    assert tuple(terms) == method.term_names
    assert all(torch.isfinite(value) and value >= 0 and value.shape == () for value in terms.values())


@every_method
@pytest.mark.parametrize("student_width", [4, 6])
def test_gradients_reach_every_real_cell_of_the_student_and_every_adapter_and_nothing_of_the_teacher(name: str, student_width: int):
    student, teacher = outputs(student_width=student_width)
    for output in (student, teacher):
        for level in output.memory:
            level.features.requires_grad_()
    method = build_for(name, student, teacher)
    with torch.no_grad():  # blocks that start as the identity pass no gradient to what lies behind their last layer
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.stack(list(run(method, student, teacher, batch_of([2, 2, 2], 3)).values())).sum().backward()
    for own, other in zip(student.memory, teacher.memory, strict=True):
        assert own.features.grad is not None
        size = own.features.grad.abs().sum(1)
        assert (size[own.padding] == 0).all()
        assert (size[~own.padding] > 0).float().mean() > (0.1 if name in ("fgfi", "mgd") else 0.99)
        assert other.features.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in method.named_parameters() if not silent(name, n))


def silent(method: str, parameter: str) -> bool:
    """Biases that nothing can depend on: before a softmax over cells, before a norm that takes means away."""
    ends = {"fgd": ("weigh.bias",), "fkd": ("out.bias",)}
    return method in ends and parameter.endswith(ends[method])


@every_method
@given(order=st.permutations([0, 1, 2]))
def test_the_order_of_images_does_not_matter(name: str, order: list[int]):
    student, teacher = outputs()
    targets = batch_of([2, 0, 3], 3, torch.Generator().manual_seed(0))
    method = build_for(name, student, teacher, **SETTINGS.get(name, {}))
    wanted = run(method, student, teacher, targets)

    def shuffled(level: Level) -> Level:
        return replace(level, features=level.features[order], padding=level.padding[order])

    moved = TargetBatch(targets.boxes[order], targets.labels[order], targets.valid[order])
    for term, value in run(method, changed(student, shuffled), changed(teacher, shuffled), moved).items():
        torch.testing.assert_close(value, wanted[term], rtol=1e-4, atol=1e-6)


@every_method
@given(content=st.sampled_from([0.0, 77.0, -1e6, float("nan"), float("inf")]))
def test_what_padded_cells_hold_does_not_matter(name: str, content: float):
    student, teacher = outputs()
    method = build_for(name, student, teacher)
    targets = batch_of([2, 0, 3], 3, torch.Generator().manual_seed(0))
    wanted = run(method, student, teacher, targets)

    def dirty(level: Level) -> Level:
        return replace(level, features=level.features.masked_fill(level.padding[:, None], content))

    for pair in ((changed(student, dirty), teacher), (student, changed(teacher, dirty))):
        for term, value in run(method, *pair, targets).items():
            torch.testing.assert_close(value, wanted[term])


@every_method
@pytest.mark.parametrize("counts", [[0, 0, 0], [0, 2, 0]])
def test_images_without_targets_work_in_every_term(name: str, counts: list[int]):
    student, teacher = outputs()
    method = build_for(name, student, teacher)
    terms = run(method, student, teacher, batch_of(counts, 3))
    assert all(torch.isfinite(value) for value in terms.values())
    # a term without eligible targets is left out
    of_targets = {"fgd": {"foreground"}, "fgfi": {"features"}}.get(name, set())
    assert set(method.term_names) - set(terms) == (of_targets if not any(counts) else set())


@every_method
def test_ignored_and_crowd_targets_count_as_none(name: str):
    student, teacher = outputs()
    method = build_for(name, student, teacher)
    targets = batch_of([2, 1, 1], 3)
    more = TargetBatch.of_nothing(3, torch.device("cpu"))
    with_ignored = TargetBatch(
        torch.cat([targets.boxes, more.boxes], 1), torch.cat([targets.labels, more.labels], 1), torch.cat([targets.valid, more.valid], 1)
    )
    wanted = run(method, student, teacher, targets)
    for term, value in run(method, student, teacher, with_ignored).items():
        torch.testing.assert_close(value, wanted[term])


@pytest.mark.parametrize("name", ["fitnet", "fgd", "cwd", "pkd"])
def test_a_student_with_its_teachers_maps_has_nothing_to_learn(name: str):
    _, teacher = outputs()
    method = build_for(name, teacher, teacher)
    for value in run(method, teacher, teacher, batch_of([2, 0, 1], 3)).values():
        assert abs(value.item()) < 1e-5


@every_method
def test_the_kind_of_feature_can_be_chosen(name: str):
    student, teacher = outputs()
    results: dict[str, dict[str, Tensor]] = {}
    for feature in ("auto", "memory", "neck"):
        method = build_for(name, student, teacher, feature=feature)
        assert isinstance(method, MapMethod)
        assert method.compared.feature == {"auto": "memory"}.get(feature, feature)
        results[feature] = run(method, student, teacher, batch_of([2, 1, 1], 3, torch.Generator().manual_seed(0)))
    assert results["auto"] == results["memory"] != results["neck"]


def test_a_method_on_maps_says_which_levels_it_compares_and_how_their_widths_meet():
    student, teacher = outputs(student_width=6)
    assert build_for("fgd", student, teacher).notes == (
        "fgd compares memory levels of strides 8, 16 (student 6 channels to the teacher's 4 by a 1x1 convolution each)",
    )
    assert build_for("fgfi", teacher, teacher).notes == (
        "fgfi compares memory levels of strides 8, 16 (4 channels on both sides and a 3x3 convolution each)",
    )
    widths = Compared("head", {8: 64, 16: 64, 32: 64}, {4: 32, 16: 64, 32: 128, 64: 128})
    assert widths.strides == (16, 32)
    assert widths.text() == (
        "head levels of strides 16, 32 (student 64 channels to the teacher's 64, 128 by a 1x1 convolution each; "
        "stride 8 of the student alone; strides 4, 64 of the teacher alone)"
    )
    assert Compared("neck", {8: 4}, {8: 4}).text() == "neck level of stride 8 (4 channels on both sides)"


@every_method
def test_a_pair_without_a_common_stride_is_refused_before_training(name: str):
    student = random_output(1, (1, 4), levels=((8, 4, 6),))
    teacher = random_output(1, (1, 4), levels=((32, 1, 2),), seed=1)
    with pytest.raises(IncompatibleError, match=rf"'{name}'.*strides \[8\].*\[32\]\. Levels pair by stride, and these share none"):
        build_for(name, student, teacher)


def test_a_detector_without_any_of_the_feature_maps_is_refused_by_name():
    student, teacher = outputs()
    bare = stub(student, provides=frozenset({"backbone"}))
    with pytest.raises(IncompatibleError, match=r"needs memory or neck or head, which the student \(stub\) does not provide"):
        build_method(find_method("fgd").Config(), bare, stub(teacher), make_pairing(bare, stub(teacher), None))  # pyright: ignore


def test_boxes_are_measured_in_cells_of_the_image_without_its_padding():
    inside = torch.zeros(2, 1, 4, 10, dtype=torch.bool)
    inside[0] = True
    inside[1, :, :2, :5] = True
    box = torch.tensor([[[0.5, 0.5, 1.0, 0.5]]]).repeat(2, 1, 1)
    targets = TargetBatch(box, torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1, dtype=torch.bool))
    assert boxes_in_cells(targets, inside)[:, 0].tolist() == [[0.0, 1.0, 10.0, 3.0], [0.0, 0.5, 5.0, 1.5]]


DEFAULTS = {
    # pppppM/mmdetection-distiller@7a8a130 configs/distillers/cwd/cwd_retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco.py
    "cwd": ({"channels": 5.0}, {"temperature": 1.0}),
    # yzd-v/FGD@c03a6cf configs/distillers/fgd/fgd_retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco.py
    "fgd": ({"foreground": 0.001, "background": 0.0005, "attention": 0.0005, "relation": 0.000005}, {"temperature": 0.5}),
    # twangnh/Distilling-Object-Detectors@c6583f3 trainval_net_sup.py, lib/model/utils/config.py, lib/model/rpn/anchor_target_layer.py
    "fgfi": ({"features": 0.01}, {"scales": (8, 16, 32), "ratios": (0.5, 1, 2), "threshold": 0.5}),
    # LutingWang/HEAD@1179b78 configs/kd/fitnet.py
    "fitnet": ({"features": 1.0}, {}),
    # supplementary code of the paper, mmdet/models/detectors/single_stage.py
    "fkd": ({"features": 7e-5 * 6, "channel": 4e-3 * 6, "spatial": 4e-3 * 6, "non_local": 7e-5 * 6}, {"temperature": 0.1}),
    # yzd-v/MGD@2c9da0b det/configs/distillers/mgd/retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco.py
    "mgd": ({"features": 0.00002}, {"mask_ratio": 0.65}),
    # open-mmlab/mmrazor@90c7af1 configs/distill/mmdet/pkd/pkd_fpn_retina_x101_retina_r50_2x_coco.py
    "pkd": ({"features": 10.0}, {}),
}


@every_method
def test_weights_and_switches_are_those_of_the_released_configuration(name: str):
    weights, switches = DEFAULTS[name]
    student, teacher = outputs()
    method = build_for(name, student, teacher)
    assert {term: method.weight_of(term) for term in method.term_names} == pytest.approx(weights)
    common = {"method", "weight", "weights", "balance", "feature"}
    assert method.config.model_dump(exclude=common) == switches


GOLDEN = {
    "fitnet": {"features": 4.29909},
    "fgd": {"foreground": 20.094681, "background": 19.051086, "attention": 43.517761, "relation": 483.981171},
    "mgd": {"features": 241.521973},
    "fkd": {"features": 59.638428, "channel": 2.608306, "spatial": 10.133249, "non_local": 42.770729},
    "fgfi": {"features": 5.189525},
    "cwd": {"channels": 1.82049},
    "pkd": {"features": 1.954573},
}


@every_method
def test_a_seeded_case_keeps_its_numbers(name: str):
    student, teacher = outputs()
    targets = batch_of([3, 0, 1], 3, torch.Generator().manual_seed(12))
    terms = run(build_for(name, student, teacher), student, teacher, targets)
    assert {term: value.item() for term, value in terms.items()} == pytest.approx(GOLDEN[name], rel=1e-4)
