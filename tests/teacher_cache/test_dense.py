"""A cache of a teacher without queries: it keeps what the methods read, and answers as the live teacher does."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from tests.families import DENSE_NAMES, TWO_STAGE_NAMES, tiny
from tests.teacher_cache.teachers import opened
from tests.teacher_cache.test_losses import ESTIMATE, VARIANTS, pictures, recipe_of
from workbench.datasets.batches import variant_batch
from workbench.datasets.transforms import Transform
from workbench.datasets.variants import Variants
from workbench.detectors.detector import Detector
from workbench.detectors.output import DenseOutput, DetectorOutput, HeadMap, Level, QueryOutput, TwoStageOutput
from workbench.errors import CacheError
from workbench.methods.context import MethodContext, Progress, make_pairing
from workbench.methods.method import BaseMethodConfig, Method
from workbench.methods.registry import build_method, find_method
from workbench.recipe.setup import FrozenTeacher, Setup
from workbench.teacher_cache.build import Builder
from workbench.teacher_cache.cached_outputs import CachedTeacherOutputs, names_of, pack
from workbench.teacher_cache.dense_outputs import dense_form, filled_up
from workbench.teacher_cache.fields import CacheFields
from workbench.teacher_cache.folders import list_caches
from workbench.teacher_cache.verify import check_cache

# largest difference of a number that was rounded to 11 bits, as a share of it
HALF = 2.0**-11
ON_MAPS = ("fitnet", "cwd", "pkd", "mgd")


class ReadsConfig(BaseMethodConfig, frozen=True):
    """Configures ``Reads``."""

    method: Literal["reads"] = "reads"
    of_teacher: tuple[str, ...] = ()
    all_classes: bool = True

    @property
    def term_names(self) -> tuple[str, ...]:
        return ("none",)

    @property
    def needs_teacher(self) -> frozenset[str]:
        return frozenset(self.of_teacher)

    @property
    def needs_all_classes(self) -> bool:
        return self.all_classes


class Reads(Method):
    """States needs and computes nothing."""

    name: ClassVar[str] = "reads"
    Config = ReadsConfig
    terms = "none"
    citation = "a test"

    def forward(self, student: Any, teacher: Any, targets: Any, context: Any) -> dict[str, Tensor]:
        return {}


def setup_of(student: Detector, teacher: Detector, *configs: dict[str, Any], precision: str = "fp16", **cache: Any) -> Setup:
    """A pair with methods, and the pictures, of which two are padded."""
    recipe = recipe_of(precision)
    recipe = recipe.model_copy(update={"cache": recipe.cache.model_copy(update=cache)}) if recipe.cache is not None else recipe
    pairing, data, drawn = make_pairing(student, teacher, None), pictures(), Transform(recipe.data.transform)
    methods: list[Method] = []
    for values in configs:
        torch.manual_seed(0)
        if values["method"] == "reads":
            methods.append(Reads(ReadsConfig.model_validate(values), student, teacher, pairing))
        else:
            methods.append(build_method(find_method(values["method"]).Config.model_validate(values), student, teacher, pairing).eval())
    asked = FrozenTeacher(teacher, student.spec)
    return Setup(recipe, data, data, None, drawn, drawn, student, asked, "hash", pairing, methods, [], Variants(data, drawn, VARIANTS))


def reading(*needs: str, **config: Any) -> dict[str, Any]:
    return {"method": "reads", "of_teacher": needs, **config}


def both(setup: Setup) -> Iterator[tuple[Any, CachedTeacherOutputs, DetectorOutput]]:
    """Builds the cache; of every variant the batch, what is read and what the live teacher says. No two images stand at their place."""
    Builder(setup).build(ESTIMATE, accept=True)
    cache, order = opened(setup), [2, 0, 1]
    assert setup.variants is not None and setup.teacher is not None
    for variant in range(VARIANTS):
        batch = variant_batch(setup.variants, order, [variant] * 3)
        yield batch, cache.read(order, variant, batch.ops), setup.teacher(batch.images, batch.padding)


def same(kept: Tensor, live: Tensor, share: float) -> None:
    """Compares up to the last bits of a sum beside the rounding: the cache was made of other batches, in another layout."""
    torch.testing.assert_close(kept, live, rtol=share, atol=1e-5 * max(1.0, float(live.abs().max())))


def same_maps(kept: tuple[HeadMap, ...], live: tuple[HeadMap, ...], share: float, names: tuple[str, ...]) -> None:
    assert len(kept) == len(live)
    for own, other in zip(kept, live, strict=True):
        assert own.stride == other.stride
        for name in names:
            found, wanted = getattr(own, name), getattr(other, name)
            assert (found is None) == (wanted is None)
            if wanted is not None:
                same(found, wanted, share)


@pytest.mark.parametrize("family", DENSE_NAMES)
@pytest.mark.parametrize(("precision", "share"), [("fp32", 1e-5), ("fp16", HALF)])
def test_every_field_that_is_kept_is_what_the_live_teacher_says(family: str, precision: str, share: float):
    teacher = tiny(family, 2)
    needs = {"dense_logits", "dense_boxes", "box_distribution", "neck", "backbone"} & teacher.provides
    setup = setup_of(tiny(family, 1), teacher, reading(*sorted(needs)), precision=precision)
    for batch, answers, live in both(setup):
        kept = answers.output()
        assert isinstance(kept, DenseOutput) and isinstance(live, DenseOutput)
        same(kept.logits, live.logits, share)
        same(kept.boxes, live.boxes, 1e-5)  # never halves
        for name, tolerance in (("quality", share), ("box_distribution", share), ("first", 1e-5)):
            found, wanted = getattr(kept, name), getattr(live, name)
            assert (found is None) == (wanted is None)
            if wanted is not None:
                same(found, wanted, tolerance)
        same_maps(kept.maps, live.maps, share, ("logits", "boxes", "quality", "first"))
        assert kept.valid is not None and live.valid is not None
        assert torch.equal(kept.valid, live.valid) and not live.valid.all() and batch.padding.any()
        assert torch.equal(kept.sides, live.sides) and kept.activation == live.activation
        for field in fields(kept.grid):
            found, wanted = getattr(kept.grid, field.name), getattr(live.grid, field.name)
            assert torch.equal(found, wanted) if isinstance(wanted, Tensor) else found == wanted
        for kind in ("neck", "backbone"):
            own: dict[int, Level] = {level.stride: level for level in getattr(kept, kind)}
            other: dict[int, Level] = {level.stride: level for level in getattr(live, kind)}
            assert own.keys() == other.keys() and own
            for stride, level in other.items():
                same(own[stride].features, level.features, share)
                assert torch.equal(own[stride].padding, level.padding)
        assert answers.answer().match is None


@pytest.mark.parametrize(("needs", "held"), [
    (("neck",), {"neck/4", "neck/8", "neck/16"}),
    (("memory|neck|head",), {"neck/4", "neck/8", "neck/16"}),
    (("head",), {"neck/4", "neck/8", "neck/16"}),
    (("queries|dense_logits",), {"dense/logits", "dense/map/quality"}),
    (("dense_boxes",), {"dense/boxes", "dense/map/boxes"}),
    (("dense_logits", "backbone"), {"dense/logits", "dense/map/quality", "backbone/4", "backbone/8"}),
])  # fmt: skip
def test_only_what_a_method_states_is_stored_and_the_rest_is_empty(needs: tuple[str, ...], held: set[str]):
    setup = setup_of(tiny("fcos", 1), tiny("fcos", 2), reading(*needs))
    _, answers, live = next(both(setup))
    shard = opened(setup).tensors("shard-00000.safetensors")
    assert set(shard) == held | {f"{name}/padding" for name in held if not name.startswith("dense")} | {"dense/sides"}
    kept = answers.output()
    assert isinstance(kept, DenseOutput) and isinstance(live, DenseOutput)
    assert kept.logits.shape[:3] == live.logits.shape[:3] and kept.grid.sizes == live.grid.sizes
    assert (kept.logits.shape[-1] > 0) == ("dense/logits" in held) and (kept.boxes.shape[-1] > 0) == ("dense/boxes" in held)
    for own, other in zip(kept.maps, live.maps, strict=True):
        assert own.logits.shape[-2:] == own.boxes.shape[-2:] == other.logits.shape[-2:]
        assert (own.logits.shape[1], own.boxes.shape[1]) == (3 * ("dense/logits" in held), 4 * ("dense/boxes" in held))


def test_a_cache_that_keeps_more_gives_no_more_than_a_recipe_reads():
    student, teacher = tiny("fcos", 1), tiny("fcos", 2)
    Builder(setup_of(student, teacher, reading("dense_logits", "dense_boxes", "neck"))).build(ESTIMATE, accept=True)
    few = setup_of(student, teacher, {"method": "fitnet"})
    assert few.variants is not None
    answers = opened(few).read([0], 0, [few.variants.ops(0, 0)])
    assert all(name.startswith(("neck/", "dense/sides")) for name in answers.rows)
    with pytest.raises(CacheError, match="dense_boxes not kept"):
        Builder(setup_of(student, teacher, {"method": "fitnet"}, name="less")).build(ESTIMATE, accept=True)
        opened(setup_of(student, teacher, reading("dense_boxes"), name="less"))


def test_the_best_classes_alone_can_be_kept():
    setup = setup_of(tiny("fcos", 1), tiny("fcos", 2), reading("dense_logits", all_classes=False), top_k=2)
    _, answers, live = next(both(setup))
    kept, best = answers.output().logits, live.logits.topk(2, dim=-1)
    same(kept.gather(-1, best.indices), best.values, HALF)
    assert int((kept > -1e4).sum()) == 2 * live.logits[..., 0].numel() and kept.shape == live.logits.shape


# teacher, student: kinds of the pair, and the level that the methods compare
PAIRS: dict[tuple[str, str], str] = {("fcos", "fcos"): "neck", ("detr", "fcos"): "memory", ("fcos", "detr"): "neck"}


@pytest.mark.parametrize("pair", list(PAIRS))
def test_losses_on_maps_are_those_of_the_live_teacher_whatever_the_kinds_of_the_pair(pair: tuple[str, str]):
    teacher, student = tiny(pair[0], 2), tiny(pair[1], 1)
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 2e-3)):
        setup = setup_of(student, teacher, *({"method": name} for name in ON_MAPS), precision=precision)
        for batch, answers, live in both(setup):
            assert {name for name in answers.rows if name.endswith("/padding")} == {
                f"{PAIRS[pair]}/{stride}/padding" for stride in (4, 8, 16) if stride == 8 or pair == ("fcos", "fcos")
            }
            with torch.no_grad():
                output = setup.student(batch.images, batch.padding)
                for method in setup.methods:
                    wanted, found = (term_values(setup, method, batch, output, said) for said in (live, answers.output()))
                    assert wanted.keys() == found.keys() and wanted
                    for term, value in wanted.items():
                        assert abs(found[term] - value) <= tolerance * max(1.0, abs(value)), (method.name, term)


def test_ld_from_the_cache_has_the_terms_of_the_live_teacher_and_needs_logits_and_distributions_alone():
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 2e-3)):
        setup = setup_of(tiny("gfl", 1), tiny("gfl", 2), {"method": "ld"}, precision=precision)
        (method,) = setup.methods
        for batch, answers, live in both(setup):
            assert set(answers.rows) == {"dense/sides", "dense/logits", "dense/distribution"}
            with torch.no_grad():
                output = setup.student(batch.images, batch.padding)
                wanted, found = (term_values(setup, method, batch, output, said) for said in (live, answers.output()))
            assert wanted.keys() == found.keys() == {"main", "valuable", "classes"}
            assert found == pytest.approx(wanted, rel=tolerance)


RESPONSES: dict[str, Any] = {
    "method": "detkds", "global_": None, "foreground": None, "logits": {"t3": "norm_HW", "distance": "kl"},
    "localization": {"distance": "giou"},
}  # fmt: skip


@pytest.mark.parametrize("family", [*DENSE_NAMES, *TWO_STAGE_NAMES])
def test_class_scores_and_boxes_of_detkds_are_those_of_the_live_teacher_and_of_its_first_stage(family: str):
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 2e-3)):
        setup = setup_of(tiny(family, 1), with_spread_scores(tiny(family, 2)), RESPONSES, precision=precision)
        (method,) = setup.methods
        for batch, answers, live in both(setup):
            assert {"dense/logits", "dense/boxes"} <= set(answers.rows)
            with torch.no_grad():
                output = setup.student(batch.images, batch.padding)
                wanted, found = (term_values(setup, method, batch, output, said) for said in (live, answers.output()))
            assert wanted.keys() == found.keys() == {"logits", "localization"}
            assert found == pytest.approx(wanted, rel=tolerance)


def with_spread_scores(detector: Detector) -> Detector:
    """Lets scores differ between cells as a trained detector's do: norm_HW multiplies the rounding of scores that are nearly equal."""
    with torch.no_grad():
        detector.get_parameter("class_head.weight").mul_(10)
    return detector


def term_values(setup: Setup, method: Method, batch: Any, student: DetectorOutput, teacher: DetectorOutput) -> dict[str, float]:
    assert setup.pairing is not None
    torch.manual_seed(0)  # MGD draws cells
    context = MethodContext(
        student=setup.student, pairing=setup.pairing, targets=batch.targets, progress=Progress(step=0, epoch=0, num_boxes=3.0)
    )
    return {term: float(value) for term, value in method(student, teacher, batch.targets, context).items()}


def test_a_teacher_with_queries_still_keeps_its_matching_for_a_student_without():
    setup = setup_of(tiny("fcos", 1), tiny("detr", 2), {"method": "fitnet"})
    _, answers, live = next(both(setup))
    assert isinstance(answers.output(), QueryOutput) and answers.teacher_match is not None
    assert answers.teacher_match.shape == live.logits.shape[:3]


def test_a_check_of_a_dense_cache_compares_what_is_there_and_matches_nothing():
    setup = setup_of(tiny("fcos", 1), tiny("fcos", 2), reading("dense_logits", "neck"))
    Builder(setup).build(ESTIMATE, accept=True)
    checked = check_cache(setup)
    assert (checked.flips, checked.queries, checked.rows, checked.damaged) == (None, 0, 3 * VARIANTS, ())
    found = {d.name: d for d in checked.differences}
    assert {"dense/logits", "neck/8"} <= found.keys() and "match" not in found
    assert all(d.largest <= 2e-3 * max(1.0, d.scale) for d in checked.differences)


def test_a_dense_cache_says_what_it_keeps_and_how_large_that_is():
    setup = setup_of(tiny("fcos", 1), tiny("fcos", 2), reading("dense_logits", "dense_boxes", "neck"))
    builder = Builder(setup)
    estimate = builder.estimate()
    assert estimate.large == ("neck maps", "dense logits", "dense boxes")
    # 96 x 64 pixels have 16 x 24, 8 x 12 and 4 x 6 cells of 16 channels; 3 classes, centreness, 4 distances in halves, 4 numbers of the box
    cells = 16 * 24 + 8 * 12 + 4 * 6
    assert estimate.row_bytes == cells * (2 * 16 + 1) + cells * (2 * (3 + 1 + 4) + 4 * 4) + 2 * 4
    assert estimate.large_bytes == estimate.row_bytes
    with pytest.raises(CacheError, match=r"neck maps and dense logits and dense boxes.*--accept"):
        builder.build(estimate)
    builder.build(estimate, accept=True)
    (row,) = list_caches()
    assert row["keeps"] == "dense logits, dense boxes, neck [4, 8, 16]"
    on_disk = sum(path.stat().st_size for path in builder.folder.glob("shard-*"))
    assert 6 * estimate.row_bytes == pytest.approx(on_disk, rel=0.02)


def test_a_manifest_of_a_teacher_with_queries_has_the_fields_that_it_always_had():
    contents = CacheFields(maps={"memory": (8,)}).model_dump(mode="json")
    assert set(contents) == {"precision", "top_k", "states", "maps", "queries", "attentions", "box_distribution", "prepared"}
    more = CacheFields(dense_boxes=True)
    assert CacheFields.model_validate(more.model_dump(mode="json")) == more
    assert CacheFields.model_validate(contents) == CacheFields(maps={"memory": (8,)})


def test_a_grid_is_written_once_for_all_images():
    setup = setup_of(tiny("fcos", 1), tiny("fcos", 2), {"method": "fitnet"})
    builder = Builder(setup)
    builder.build(ESTIMATE, accept=True)
    manifest = json.loads((builder.folder / "manifest.json").read_text())
    assert manifest["form"] == {
        "activation": "sigmoid", "columns": 3, "kind": "dense", "strides": [4, 8, 16], "sizes": [[16, 24], [8, 12], [4, 6]], "shapes": 1,
    }  # fmt: skip
    anchors = dict(opened(setup)._open("constants.safetensors").tensors)
    assert set(anchors) == {"grid/anchors"} and anchors["grid/anchors"].shape == (504, 4)


def test_a_part_of_a_batch_and_another_device_have_the_same_answers():
    setup = setup_of(tiny("fcos", 1), tiny("fcos", 2), reading("dense_logits"))
    _, answers, _ = next(both(setup))
    whole, part = answers.output(), answers[1:].to("cpu").output()
    assert isinstance(whole, DenseOutput) and isinstance(part, DenseOutput)
    assert torch.equal(part.logits, whole.logits[:, 1:]) and torch.equal(part.sides, whole.sides[1:])


def read_back(output: DetectorOutput, contents: CacheFields, columns: int = 3) -> DetectorOutput:
    """Packs an output and reads it as a cache would, without files."""
    packed = pack(output, contents)
    form = {"activation": output.activation, "columns": columns, **json.loads(json.dumps(dense_form(output)))}
    grid = output.first.grid if isinstance(output, TwoStageOutput) else output.grid if isinstance(output, DenseOutput) else None
    assert grid is not None
    rows = {name: packed[name] for name in names_of(contents, list(packed))}
    assert rows.keys() == packed.keys()
    return CachedTeacherOutputs(rows, {"grid/anchors": grid.anchors}, None, (), form).output()


@torch.no_grad()
def said_by(name: str, seed: int = 0, images: int = 2) -> DetectorOutput:
    torch.manual_seed(seed)
    padding = torch.zeros(images, 64, 96, dtype=torch.bool)
    padding[-1, :, 60:] = True
    return tiny(name, seed)(torch.randn(images, 3, 64, 96), padding)


def two_stage(proposals: int) -> TwoStageOutput:
    """An output of two stages that no model made: it proposes boxes, the last image one less."""
    first = said_by("fcos")
    assert isinstance(first, DenseOutput)
    generator = torch.Generator().manual_seed(proposals)
    valid = torch.ones(2, proposals, dtype=torch.bool)
    valid[1, -1] = False
    return TwoStageOutput(
        logits=torch.randn(1, 2, proposals, 4, generator=generator),
        boxes=torch.rand(1, 2, proposals, 4, generator=generator),
        activation="softmax", valid=valid, neck=first.neck, backbone=first.backbone, first=first,
        proposals=torch.rand(2, proposals, 4, generator=generator),
    )  # fmt: skip


def test_of_a_two_stage_teacher_the_pyramid_is_kept_and_proposals_only_where_a_method_reads_them():
    output = two_stage(5)
    maps = CacheFields(maps={"neck": (8, 16)})
    assert set(pack(output, maps)) == {"dense/sides", *(f"neck/{s}{e}" for s in (8, 16) for e in ("", "/padding"))}
    kept = read_back(output, maps, columns=4)
    assert isinstance(kept, TwoStageOutput) and kept.logits.shape == (1, 2, 0, 4) and kept.boxes.shape == (1, 2, 0, 4)
    assert kept.proposals.shape == (2, 0, 4) and [level.stride for level in kept.head] == [8, 16]
    assert kept.first.grid.sizes == output.first.grid.sizes

    kept = read_back(output, CacheFields(precision="fp32", rois=True), columns=4)
    assert isinstance(kept, TwoStageOutput) and kept.activation == "softmax"
    for name in ("logits", "boxes", "proposals", "valid"):
        assert torch.equal(getattr(kept, name), getattr(output, name)), name


@pytest.mark.parametrize("family", TWO_STAGE_NAMES)
def test_a_two_stage_teacher_answers_with_its_proposals_and_pyramid(family: str):
    student, teacher = tiny(family, 1), tiny(family, 2)
    for needs in (("rois", "neck"), ("neck",)):
        setup = setup_of(student, teacher, reading(*needs), precision="fp32", name="-".join(needs))
        for _, answers, live in both(setup):
            kept = answers.output()
            assert isinstance(kept, TwoStageOutput) and isinstance(live, TwoStageOutput)
            assert [level.stride for level in kept.neck] == [level.stride for level in live.neck]
            for own, other in zip(kept.neck, live.neck, strict=True):
                same(own.features, other.features, 1e-5)
            if "rois" not in needs:
                assert kept.proposals.shape[1] == 0 and not any(name.startswith("rois/") for name in answers.rows)
                continue
            assert kept.valid is not None and live.valid is not None and kept.activation == live.activation == "softmax"
            for image in range(3):
                # the batch that was stored may have been filled up further
                own, other = kept.valid[image], live.valid[image]
                assert int(own.sum()) == int(other.sum())
                for found, wanted in ((kept.logits[0], live.logits[0]), (kept.boxes[0], live.boxes[0]), (kept.proposals, live.proposals)):
                    same(found[image, own], wanted[image, other], 1e-4)


def test_a_cached_level_that_only_proposes_is_none_that_the_head_reads():
    output = two_stage(5)
    fine, *_, coarse = (level.stride for level in output.neck)
    output = replace(output, pooled=(fine,))
    kept = read_back(output, CacheFields(maps={"neck": (fine, coarse)}), columns=4)
    assert [level.stride for level in kept.neck] == [fine, coarse]
    assert [level.stride for level in kept.head] == [level.stride for level in output.head] == [fine]


def test_proposals_of_batches_with_different_numbers_are_filled_up_with_invalid_ones():
    packed = [pack(two_stage(count), CacheFields(rois=True)) for count in (3, 5)]
    joined: Mapping[str, Tensor] = {
        name: torch.cat(filled_up(name, [part[name] for part in packed], 1)) for name in packed[0] if name != "dense/sides"
    }
    assert {value.shape[:2] for value in joined.values()} == {(4, 5)}
    assert joined["rois/valid"].tolist() == [
        [True] * 3 + [False] * 2, [True] * 2 + [False] * 3, [True] * 5, [True] * 4 + [False],
    ]  # fmt: skip
    assert torch.equal(joined["rois/boxes"][0, :3], packed[0]["rois/boxes"][0])
    assert filled_up("dense/sides", [torch.zeros(1), torch.zeros(2)], 0)[0].shape == (1,)


def test_sizes_can_be_had_without_values(tmp_path: Path):
    output = said_by("fcos")
    contents = CacheFields(dense_logits=True, dense_boxes=True, maps={"neck": (8,)})
    real, sizes = pack(output, contents), pack(output, contents, "meta")
    assert {name: (value.shape, value.dtype) for name, value in real.items()} == {n: (v.shape, v.dtype) for n, v in sizes.items()}
    assert all(value.device.type == "meta" for value in sizes.values())
