"""Measures a dense detector: its step beside a bare loop with torchvision's loss, its suppression beside torchvision's, its cache.

The detector is the one of ``recipes/families/fcos.yaml`` on the embedded shapes, batch 16, on one thread.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList

from benchmarks.harness import Figure, Ratio, interleaved, median_ratio, temporary_runs
from workbench.datasets.batches import Batch
from workbench.datasets.variants import Variants
from workbench.detectors.dense_detector import pixel_boxes, relative_boxes
from workbench.detectors.detector import InputSpec
from workbench.detectors.fcos import Fcos, FcosModelConfig
from workbench.detectors.grid import flat
from workbench.detectors.output import DenseOutput, HeadMap
from workbench.methods.context import make_pairing
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import FrozenTeacher, Setup, build, input_spec
from workbench.store.run import Run
from workbench.teacher_cache.ask_teacher import RowMaker
from workbench.teacher_cache.fields import CacheFields
from workbench.training.evaluation import DETECTIONS
from workbench.training.loader import TrainLoader
from workbench.training.loop import Silent, Trainer

REPEATS, NMS_REPEATS = 40, 7
IMAGES = ["data.options.train=64", "data.options.val=16", "data.options.test=16"]
# images of which 1,000 (point, class) pairs are above the threshold, gathered around a few objects
NMS_IMAGES, NMS_BATCH, CANDIDATES, OBJECTS = 2_000, 16, 1_000, 8
NMS_SIZES = ((24, 32), (12, 16), (6, 8))
# fields of a cache, by what they are for
KEPT = {
    "feature maps": CacheFields(maps={"neck": (8, 16, 32)}),
    "logits and boxes": CacheFields(dense_logits=True, dense_boxes=True),
}


def figures() -> Iterator[Figure]:
    """Yields the figures of the step, of the suppression and of the cache."""
    torch.set_num_threads(1)
    with temporary_runs():
        recipe = fcos_recipe()
        yield from _step(recipe)
        yield from _suppression(recipe)
        yield from _cache(recipe)


def fcos_recipe() -> Recipe:
    """Returns the recipe of FCOS on the embedded shapes, with few images."""
    return load_recipe(recipe_path("families/fcos"), IMAGES)


def fcos_of(recipe: Recipe, spec: InputSpec) -> Fcos:
    """Returns the detector of that recipe with random weights."""
    torch.manual_seed(0)
    assert isinstance(recipe.student, FcosModelConfig)
    return Fcos.build(recipe.student, spec)


def _step(recipe: Recipe) -> Iterator[Figure]:
    ours, theirs = (build(recipe, None) for _ in range(2))
    trainer = Trainer(Run.create("bench", {}), ours, Silent(), "cpu")
    batch = TrainLoader(ours.train, ours.transform, recipe.train.batch_size, 0).batch(0)
    student, bare_student = ours.student, theirs.student
    assert isinstance(student, Fcos) and isinstance(bare_student, Fcos)
    bare_student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    functions: dict[str, Callable[[], object]] = {
        "ours": lambda: trainer._train_step(batch, 0, False), "bare": bare_step(bare_student, recipe, batch),
        "losses": losses_of(student, batch),
    }  # fmt: skip
    # process time of one thread, so that other processes do not count
    seconds = interleaved(functions, REPEATS, warmup=3, clock=time.process_time)
    names = {"ours": "student step", "bare": "bare loop with torchvision's loss", "losses": "assignment and losses, forward and backward"}
    for key, name in names.items():
        yield Figure(name, float(torch.tensor(seconds[key]).median()) * 1000, "ms", repeats=REPEATS)
    yield _ratio("assignment and losses / student step", median_ratio(seconds["losses"], seconds["ours"]), "<= 0.15", REPEATS)
    yield _ratio("student step / bare loop with torchvision's loss", median_ratio(seconds["ours"], seconds["bare"]), "<= 1.05", REPEATS)


def bare_step(student: Fcos, recipe: Recipe, batch: Batch) -> Callable[[], Tensor]:
    """Returns a training step that a user would write: the student's modules, torchvision's loss, AdamW. It returns the loss."""
    judge, anchors_of = torchvision_fcos(student)
    config = recipe.train
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    height, width = batch.images.shape[-2:]
    targets = [
        {"boxes": boxes[valid], "labels": labels[valid]}
        for boxes, labels, valid in zip(_pixel_boxes(batch), batch.targets.labels, batch.targets.valid, strict=True)
    ]
    weights = {"classification": 1.0, "bbox_regression": student.config.giou_weight, "bbox_ctrness": 1.0}

    def run() -> Tensor:
        student.train()
        optimizer.zero_grad()
        images = batch.images.contiguous(memory_format=torch.channels_last)
        levels = student.neck(student.backbone(images))
        maps = student.predict(levels)
        anchors = anchors_of(ImageList(images, [(height, width)] * len(images)), levels)
        terms = judge.compute_loss(targets, _rows(student, maps), anchors, [level[0, 0].numel() for level in levels])
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        total.backward()
        nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm or float("inf"))
        optimizer.step()
        return total.detach()

    return run


def torchvision_fcos(student: Fcos) -> tuple[FCOS, Callable[[ImageList, list[Tensor]], list[Tensor]]]:
    """Returns torchvision's FCOS with the student's settings, and its anchors, moved to where the student has its points."""
    config, classes = student.config, len(student.spec.classes)
    generator = AnchorGenerator(tuple((stride,) for stride in config.strides), ((1.0,),) * len(config.strides))
    stub: Any = nn.Identity()
    stub.out_channels = config.width
    detector = FCOS(
        stub, classes, anchor_generator=generator, head=FCOSHead(config.width, 1, classes, num_convs=1),
        score_thresh=config.score_threshold, nms_thresh=config.nms_threshold, center_sampling_radius=config.radius,
        detections_per_img=DETECTIONS, topk_candidates=config.candidates,
    )  # fmt: skip

    def anchors(images: ImageList, levels: list[Tensor]) -> list[Tensor]:
        found = generator(images, levels)
        return [own + (own[:, 2:3] - own[:, :1]) / 2 for own in found]

    return detector, anchors


def losses_of(student: Fcos, batch: Batch) -> Callable[[], None]:
    """Returns a function that assigns the targets of a batch and computes the losses of an output, and their gradients down to the head."""
    with torch.no_grad():
        said = student.train()(batch.images, batch.padding)
    progress = batch.targets.valid.sum().float()

    def run() -> None:
        leaves = replace(
            said, logits=_leaf(said.logits), quality=None if said.quality is None else _leaf(said.quality),
            maps=tuple(replace(level, boxes=_leaf(level.boxes)) for level in said.maps),
        )  # fmt: skip
        terms = student.losses(leaves, batch.targets, progress, student.assign(leaves, batch.targets))
        torch.stack([student.loss_weights[name] * value for name, value in terms.items()]).sum().backward()

    return run


def _suppression(recipe: Recipe) -> Iterator[Figure]:
    ours, theirs = suppressions(recipe, NMS_IMAGES)
    # process time of one thread, so that other processes do not count
    seconds = interleaved({"ours": ours, "theirs": theirs}, NMS_REPEATS, clock=time.process_time)
    what = f"detections of {NMS_IMAGES} images with {CANDIDATES} candidates"
    for key, name in (("ours", what), ("theirs", f"{what}, torchvision's post-processing")):
        yield Figure(name, float(torch.tensor(seconds[key]).median()), "s", repeats=NMS_REPEATS)
    yield _ratio(f"{what} / torchvision's post-processing", median_ratio(seconds["ours"], seconds["theirs"]), "<= 1.0", NMS_REPEATS)


def suppressions(recipe: Recipe, images: int) -> tuple[Callable[[], list[dict[str, Tensor]]], Callable[[], list[dict[str, Tensor]]]]:
    """Returns our and torchvision's function from the same head maps of that many images to their detections, in input pixels."""
    spec = InputSpec(tuple(f"class {index}" for index in range(4)), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    detector = fcos_of(recipe, spec)
    judge, anchors_of = torchvision_fcos(detector)
    sizes = [(height * 8, width * 8) for height, width in NMS_SIZES[:1]]
    batches = [_crowded(detector, seed, min(NMS_BATCH, images - first)) for seed, first in enumerate(range(0, images, NMS_BATCH))]
    grid = detector.grid(NMS_SIZES, torch.device("cpu"))
    canvas = torch.zeros(1, 3, *sizes[0])
    (anchors,) = anchors_of(ImageList(canvas, sizes), [torch.zeros(1, 1, *size) for size in NMS_SIZES])
    counts = [height * width for height, width in NMS_SIZES]

    @torch.no_grad()
    def ours() -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for maps in batches:
            count = len(maps[0].logits)
            sides = torch.tensor([sizes[0][::-1]]).expand(count, 2).float()
            boxes = relative_boxes(detector.decode_boxes(flat([level.boxes for level in maps], 4), grid), sides)
            quality = flat([level.quality for level in maps if level.quality is not None], 1)[..., 0]
            output = DenseOutput(
                logits=flat([level.logits for level in maps], len(spec.classes))[None], boxes=boxes[None], valid=grid.inside(sides),
                grid=grid, maps=maps, sides=sides, quality=quality[None],
            )  # fmt: skip
            said = detector.detections(output, torch.tensor(sizes).expand(count, 2), DETECTIONS)
            found += [{"boxes": own.boxes, "scores": own.scores, "labels": own.labels} for own in said]
        return found

    @torch.no_grad()
    def theirs() -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for maps in batches:
            count = len(maps[0].logits)
            rows = {name: list(value.split(counts, 1)) for name, value in _rows(detector, maps).items()}
            found += judge.postprocess_detections(rows, [list(anchors.split(counts))] * count, sizes * count)
        return found

    return ours, theirs


def _crowded(detector: Fcos, seed: int, images: int) -> tuple[HeadMap, ...]:
    """Returns head maps of images with a few objects. Points predict the box of the nearest one, more surely the nearer they are."""
    generator = torch.Generator().manual_seed(seed)
    classes = len(detector.spec.classes)
    grid = detector.grid(NMS_SIZES, torch.device("cpu"))
    extent = torch.tensor([NMS_SIZES[0][1], NMS_SIZES[0][0]]) * 8.0
    centres = torch.rand(images, OBJECTS, 2, generator=generator) * extent
    halves = 10 + 30 * torch.rand(images, OBJECTS, 2, generator=generator)
    distance, nearest = (grid.centres[:, None] - centres[:, None]).norm(dim=-1).min(-1)  # [B, N]
    own = nearest[..., None].expand(-1, -1, 2)
    offset = grid.centres - centres.gather(1, own)
    edges = torch.cat([halves.gather(1, own) + offset, halves.gather(1, own) - offset], -1).clamp(min=0)
    noise = 1 + 0.2 * torch.randn(edges.shape, generator=generator)
    numbers = edges * noise.clamp(min=0.1) / grid.stride[:, None]
    logits = 2 * torch.randn(images, len(grid.cell), classes, generator=generator) - 0.05 * distance[..., None]
    quality = torch.randn(images, len(grid.cell), 1, generator=generator)
    # scaled so that in every image as many scores as are wanted lie above the threshold
    score = (logits.sigmoid() * quality.sigmoid()).sqrt().flatten(1)
    threshold = detector.config.score_threshold
    lowest = score.topk(CANDIDATES + 1, dim=1).values[:, -1]
    logits = torch.logit((logits.sigmoid() * (threshold / lowest).square()[:, None, None]).clamp(max=0.99))

    def level(values: Tensor) -> list[Tensor]:
        parts = values.split([height * width for height, width in NMS_SIZES], 1)
        return [part.unflatten(1, size).permute(0, 3, 1, 2).contiguous() for part, size in zip(parts, NMS_SIZES, strict=True)]

    made = zip(detector.config.strides, level(logits), level(numbers), level(quality), strict=True)
    return tuple(HeadMap(stride, *parts) for stride, *parts in made)


def _cache(recipe: Recipe) -> Iterator[Figure]:
    setup = build(recipe, None)
    asked = FrozenTeacher(fcos_of(recipe, input_spec(recipe, setup.train)), setup.student.spec)
    variants = Variants(setup.train, setup.transform, 1)
    cached: Setup = replace(setup, teacher=asked, pairing=make_pairing(setup.student, asked.detector, None), variants=variants)
    for name, contents in KEPT.items():
        rows = RowMaker(cached, contents, torch.device("cpu")).rows(range(16)).tensors
        yield Figure(f"cache of an FCOS teacher, {name}: bytes of an image and variant", sum(v.nbytes for v in rows.values()) / 16, "B")


def _rows(detector: Fcos, maps: tuple[HeadMap, ...]) -> dict[str, Tensor]:
    """Returns head maps as torchvision's head gives them: ``[B, N, numbers]``."""

    def rows(values: list[Tensor]) -> Tensor:
        return torch.cat([value.permute(0, 2, 3, 1).flatten(1, 2) for value in values], 1)

    return {
        "cls_logits": rows([level.logits for level in maps]), "bbox_regression": rows([level.boxes for level in maps]),
        "bbox_ctrness": rows([level.quality for level in maps if level.quality is not None]),
    }  # fmt: skip


def _pixel_boxes(batch: Batch) -> Tensor:
    height, width = batch.images.shape[-2:]
    return pixel_boxes(batch.targets.boxes, torch.tensor([[width, height]]).expand(len(batch.images), 2).float())


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def _ratio(name: str, ratio: Ratio, target: str, repeats: int) -> Figure:
    return Figure(name, ratio.value, "x", target, (ratio.low, ratio.high), repeats)
