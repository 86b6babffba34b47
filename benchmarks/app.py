"""Measures the dashboard in a browser at the size of COCO's validation split, with the server on two cores.

The size is 5,000 images with 9 million query rows per step. Set `WORKBENCH_BENCHMARK_IMAGES` to a smaller number for a trial.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

from benchmarks.harness import Figure
from benchmarks.store_rows import IMAGES, QUERIES, query_chunks
from workbench.errors import WorkbenchError
from workbench.services.doctor import HOW_TO_GET_A_BROWSER, find_browser
from workbench.store.detections import DETECTION_SCHEMA, write_detections
from workbench.store.queries import TEACHER_STEP, query_writer
from workbench.store.run import Run, append_line

PARTS = {"value": ("slots", "gain", "queries"), "errors": ("types", "classes", "images", "slices")}
PAGES = ("", "diagnosis", "training", "stability", *(f"value?part={part}" for part in PARTS["value"]), "masks", "image",
         *(f"errors?part={part}" for part in PARTS["errors"]), "storage")  # fmt: skip
QUERY = "run=distilled&compared=undistilled&compared=distilled&baseline=undistilled"
STEPS = (100, 200)
CROWD, CROWD_SEEDS, CROWD_IMAGES = 100, 5, 60
CROWD_ARMS = ("undistilled", "distilled", "features", "logits", "masks")
REPEATS = 20
MARKS = "() => document.querySelectorAll('.js-plotly-plot .point, .js-plotly-plot .js-line').length"
PAINTED = "[data-testid=stMain] [data-testid=stElementContainer]"
SETTLED = "[data-testid=stApp][data-test-script-state=notRunning]"
DRAWN = """() => !document.querySelector('[data-stale=true], [data-testid=stSkeleton]')
  && [...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(
    chart => chart.querySelector('.js-plotly-plot')?._fullLayout?._replotting === false)"""
# Records the time of the choice, and the time at which the frame after the page's last change was painted, both on the page's clock.
# A table is a canvas. The text inside its element is for screen readers, comes some time later, and is not painted
WATCH = """() => {
  for (const kind of ['pointerdown', 'keydown']) addEventListener(kind, () => { window.chosenAt = performance.now(); }, true);
  const seen = changes => changes.some(({target}) => !(target.closest ? target : target.parentElement)?.closest('canvas'));
  const painted = () => requestAnimationFrame(() => requestAnimationFrame(() => { window.paintedAt = performance.now(); }));
  new MutationObserver(changes => seen(changes) && painted()).observe(
    document.querySelector('[data-testid=stMain]'), {subtree: true, childList: true, attributes: true, characterData: true});
}"""
QUIET = "() => performance.now() - window.paintedAt > 400"
_CLASSES, _DETECTIONS = 80, 100


def figures() -> Iterator[Figure]:
    """Makes two runs in a temporary folder, measures every page, and removes the folder."""
    from playwright.sync_api import sync_playwright

    executable = find_browser()
    if executable is None:
        raise WorkbenchError(HOW_TO_GET_A_BROWSER)
    folder = Path(tempfile.mkdtemp(prefix="workbench-app-"))
    try:
        make_runs(folder, int(os.environ.get("WORKBENCH_BENCHMARK_IMAGES", IMAGES)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(executable), args=["--no-sandbox"])
            page: Any = browser.new_page(viewport={"width": 1900, "height": 1000})
            page.set_default_timeout(600_000)
            with serving(folder / "runs") as (address, process):
                yield from visits(page, address, "the first time")
                yield from paints(page, address)
                yield from changes(page, address)
                yield from scatter(page, address)
                family = [process, *process.children(recursive=True)]
                yield Figure("memory of the server, at most", sum(_peak(one.pid) for one in family) / 1e9, "GB", "<= 1.5")
            with serving(folder / "runs") as (address, _):
                yield from visits(page, address, "to a server started anew")
            yield from crowd(page)
            browser.close()
    finally:
        shutil.rmtree(folder)


def crowd(page: Any) -> Iterator[Figure]:
    """Yields the times of Overview and of the page of runs in a folder of a hundred runs; ``page`` belongs to a browser."""
    with tempfile.TemporaryDirectory(prefix="workbench-crowd-") as name:
        make_crowd(Path(name))
        with serving(Path(name) / "runs") as (address, _):
            for path in ("", "runs"):
                start = time.perf_counter()
                page.goto(f"{address}/{path}")
                page.wait_for_selector(PAINTED)
                shown = f"'{path or 'overview'}' among {CROWD} runs"
                yield Figure(f"first paint of {shown} on a server just started", time.perf_counter() - start, "s")
                settle(page)
                yield Figure(f"visit of {shown} on a server just started, everything drawn", time.perf_counter() - start, "s")
            for path in ("", "runs"):
                yield Figure(
                    f"first paint of '{path or 'overview'}' among {CROWD} runs",
                    _first_paint(page, f"{address}/{path}"),
                    "s",
                    "<= 1",
                    repeats=5,
                )
            yield from crowd_changes(page, address)


def _first_paint(page: Any, address: str) -> float:
    """Returns the median seconds until the first element of a page is painted, on a warm server."""
    seconds: list[float] = []
    for _ in range(5):
        page.goto("about:blank")
        start = time.perf_counter()
        page.goto(address, wait_until="commit")
        page.wait_for_selector(PAINTED)
        seconds.append(time.perf_counter() - start)
    settle(page)
    return float(np.median(seconds))


def crowd_changes(page: Any, address: str) -> Iterator[Figure]:
    """Yields the seconds from a choice on the page of runs, or of the columns of Overview, until its result is painted."""
    for name, label, key, options in (
        ("runs", "Order", "order", ("newest", "AP", "name")), ("runs", "Group by", "group", ("arm", "recipe", "seed")),
        ("", "Columns", "columns", ("all", "main")), ("training", "Smoothing", "smoothing", ("5", "10", "20")),
    ):  # fmt: skip
        page.goto(f"{address}/{name}")
        settle(page)
        page.evaluate(WATCH)
        seconds = [_change(page, label, key, options[number % len(options)]) for number in range(REPEATS // 2)]
        what = f"change of {key} on '{name or 'overview'}' among {CROWD} runs"
        yield Figure(what, float(np.median(seconds)), "s", "<= 0.5", repeats=REPEATS // 2)


def make_crowd(folder: Path) -> None:
    """Makes a hundred small runs of four recipes, each with five arms of five seeds: two runs, and copies of them under other names."""
    make_runs(folder, CROWD_IMAGES)
    sources = {arm: folder / "runs" / arm for arm in ("undistilled", "distilled")}
    for number in range(CROWD):
        arm, seed = CROWD_ARMS[number % len(CROWD_ARMS)], number // len(CROWD_ARMS) % CROWD_SEEDS
        recipe = f"recipe-{number // (CROWD_SEEDS * len(CROWD_ARMS))}"
        source = "undistilled" if arm == "undistilled" else "distilled"
        target = folder / "runs" / f"{recipe}-{arm}-seed{seed}"
        shutil.copytree(sources[source], target, copy_function=os.link)
        group = {"recipe": recipe, "arm": arm, "seed": seed, "schedule": "equal steps"}
        created = f"2026-11-{1 + number // 10:02d}T10:{number % 10:02d}:00"
        # the other files are the same ones; this one is replaced by another, with a hash of its own
        Run(target).update_info(group=group, seed=seed, created=created)
    for path in sources.values():
        shutil.rmtree(path)


def _peak(pid: int) -> int:
    """Returns the largest resident size of a process so far, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def link(address: str, name: str) -> str:
    """Returns the address of a page, or of a part of one, that shows the runs."""
    return f"{address}/{name}{'&' if '?' in name else '?'}{QUERY}"


def visits(page: Any, address: str, when: str) -> Iterator[Figure]:
    """Yields the seconds until a page that was not opened before is complete: it reads files and computes results that are not stored."""
    for name in PAGES:
        start = time.perf_counter()
        page.goto(link(address, name))
        settle(page)
        yield Figure(f"visit of '{name or 'overview'}' {when}, everything drawn", time.perf_counter() - start, "s")


def paints(page: Any, address: str) -> Iterator[Figure]:
    """Yields the time to first paint of every page on a warm server, and its number of marks."""
    for name in PAGES:
        yield Figure(f"first paint of '{name or 'overview'}'", _first_paint(page, link(address, name)), "s", "<= 2", repeats=5)
        yield Figure(f"marks on '{name or 'overview'}'", page.evaluate(MARKS), "marks", "<= 20000")


def changes(page: Any, address: str) -> Iterator[Figure]:
    """Yields the seconds from a choice until the page shows its result, on every page that offers a choice."""
    layers, steps, images = tuple("012345"), tuple(map(str, STEPS)), tuple(str(number) for number in range(2, 2 + REPEATS))
    slots, kinds = tuple(str(number) for number in range(REPEATS)), ("background", "both", "missed", "localisation", "classification")
    for name, label, key, options in (
        ("image", "Layer", "layer", layers), ("image", "Step", "step", steps), ("image", "Image", "image", images),
        ("stability", "Layer", "layer", layers), ("value?part=slots", "Slot", "query", slots),
        ("errors?part=images", "Error type", "error", kinds),
        *((f"{path}?part={part}", "Step", "step", steps) for path, parts in PARTS.items() for part in parts),
    ):  # fmt: skip
        page.goto(link(address, name))
        settle(page)
        page.evaluate(WATCH)
        for option in options[: len(STEPS)] if key == "step" else ():
            _change(page, label, key, option)  # the first visit to a step reads its files
        seconds = [_change(page, label, key, options[number % len(options)]) for number in range(REPEATS)]
        yield Figure(f"change of {key} on '{name}'", float(np.median(seconds)), "s", "<= 0.5", repeats=REPEATS)


def scatter(page: Any, address: str) -> Iterator[Figure]:
    """Yields the seconds until the plot of all queries of a model is complete."""
    page.goto(link(address, "value?part=queries"))
    settle(page)
    page.evaluate(WATCH)
    first = _change(page, "Model", "model", "teacher")
    yield Figure(f"scatter of {IMAGES * QUERIES:,} queries, the first time", first, "s", "<= 6")
    seconds = [_change(page, "Model", "model", ("student", "teacher")[number % 2]) for number in range(REPEATS)]
    yield Figure("scatter of all queries, again", float(np.median(seconds)), "s", "<= 0.5", repeats=REPEATS)


def settle(page: Any) -> None:
    """Waits until the script of a page has ended and all its charts are drawn."""
    page.wait_for_selector(SETTLED)
    page.wait_for_function(DRAWN)


def _change(page: Any, label: str, key: str, option: str) -> float:
    """Returns the seconds from the press on an option until the page has painted its last change."""
    from playwright.sync_api import TimeoutError

    if label == "Image":  # a number field
        field = page.get_by_label(re.compile(r"^Image of"))
        field.fill(option)
        field.press("Enter")
    else:
        box = page.get_by_role("combobox", name=label, exact=True)
        choice = page.get_by_role("option", name=option, exact=True)
        while not choice.count():  # charts that are still being drawn move the box, which closes its list
            page.keyboard.press("Escape")
            box.click()
            box.fill(option)  # a long list holds only the options in view
            with suppress(TimeoutError):
                choice.wait_for(timeout=3_000)
        choice.click()
    return painted(page, key, option)


def painted(page: Any, key: str, option: str) -> float:
    """Returns the seconds from the last press until the page, whose address then has an option, has painted its last change."""
    page.wait_for_url(re.compile(rf"[?&]{key}={option}(&|$)"))
    settle(page)
    page.wait_for_function(QUIET)
    return page.evaluate("() => window.paintedAt - window.chosenAt") / 1000


@contextmanager
def serving(runs: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Runs the dashboard on two cores; yields its address and process."""
    command = [sys.executable, "-P", "-m", "workbench", "app", "--port", "8650", "--runs", str(runs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        psutil.Process(process.pid).cpu_affinity(sorted(os.sched_getaffinity(0))[:2])
        line = next((line for line in process.stdout if line.startswith("dashboard: ")), None)
        if line is None:
            raise WorkbenchError("the dashboard did not start.")
        yield line.split()[1], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def make_runs(folder: Path, images: int) -> None:
    """Makes an undistilled run and a distilled run with its teacher, on data whose images are one small file under many names."""
    ids = 113 * np.arange(images) + 139  # the same ids as in ``query_chunks``
    counts = np.minimum(np.random.default_rng(0).geometric(1 / 8.3, images) - 1, 63)
    data = folder / "data"
    classes = [f"class {number}" for number in range(_CLASSES)]
    targets = _write_data(data, ids, counts, classes)
    for seed, arm in enumerate(("undistilled", "distilled")):
        info = {
            "recipe": {"data": {"path": str(data), "format": "coco", "train": "val", "val": "val", "test": None},
                       "train": {"steps": STEPS[-1]}, "methods": [{"method": "m"}] if arm == "distilled" else []},
            "group": {"recipe": "scale", "arm": arm, "seed": 0, "schedule": "equal steps"}, "classes": classes, "state": "done",
            "dataset_hash": "scale", "best_step": STEPS[-1], **({"teacher": "teacher"} if arm == "distilled" else {}),
        }  # fmt: skip
        run = Run.create(arm, info, folder / "runs")
        for step, model in ((TEACHER_STEP, "teacher"), *((step, "student") for step in STEPS)):
            if model == "student" or arm == "distilled":
                with query_writer(run, "val", step) as writer:
                    for rows in query_chunks(1000 * seed + step + 2, images, model):
                        writer.write(rows)
        for step in STEPS:
            write_detections(run, "val", step, _detections(np.random.default_rng([seed, step]), ids, targets))
            append_line(run.evaluations_path, {"step": step, "split": "val", "coco": {"ap": 0.3, "ap50": 0.5}, "per_class": {}})
        _write_log(run, "abcd" if arm == "distilled" else "")


def _write_log(run: Run, terms: str) -> None:
    for step in range(10, 20_001, 10):
        values = {f"{kind}/m.{term}": 1.0 / step for kind in ("raw", "weighted") for term in terms}
        append_line(run.metrics_path, {"step": step, "loss": 1.0, "learning_rate": 1e-4, "gradient_norm": 1.0, **values})
        append_line(run.timings_path, {"step": step, "cpu": step / 10, "wall": step / 10})


def _write_data(data: Path, ids: np.ndarray, counts: np.ndarray, classes: list[str]) -> np.ndarray:
    """Writes the images and targets of the split. Returns the targets, ``[G, 6]``: position of the image, x, y, width, height, category."""
    rng = np.random.default_rng(2)
    (data / "annotations").mkdir(parents=True)
    (data / "val").mkdir()
    first = data / "val" / f"{ids[0]}.jpg"
    # The file has as many bytes as a photograph of COCO (160,000), and shrinks like one when it is downsized
    coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    Image.fromarray((np.asarray(coarse) + rng.normal(0, 12, (480, 640, 3))).clip(0, 255).astype(np.uint8)).save(first, quality=92)
    for image in ids[1:]:
        os.link(first, data / "val" / f"{image}.jpg")
    x, y, w, h = rng.random((4, counts.sum()))
    targets = np.stack([np.repeat(np.arange(len(ids)), counts), 500 * x, 400 * y, 10 + 120 * w, 10 + 60 * h,
                        rng.integers(1, _CLASSES + 1, len(x))], axis=1)  # fmt: skip
    annotations = [
        {"id": number, "image_id": int(ids[int(image)]), "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category_id": int(category)}
        for number, (image, *box, category) in enumerate(targets.tolist(), 1)
    ]
    images = [{"id": int(image), "file_name": f"{image}.jpg", "width": 640, "height": 480} for image in ids]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (data / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return targets


def _detections(rng: np.random.Generator, ids: np.ndarray, targets: np.ndarray) -> pa.Table:
    """Returns a hundred detections per image at random places; some lie near a target, with its class or another, and score higher."""
    rows = len(ids) * _DETECTIONS
    x, y, w, h = rng.random((4, rows))
    boxes = np.stack([500 * x, 400 * y, 10 + 120 * w, 10 + 60 * h], axis=1)
    category, score = rng.integers(1, _CLASSES + 1, rows), 0.5 * rng.random(rows)
    image = targets[:, 0].astype(int)
    place = image * _DETECTIONS + np.arange(len(image)) - np.searchsorted(image, image)
    found = rng.random(len(image)) < 0.8
    own, place = targets[found], place[found]
    boxes[place] = own[:, 1:5] + own[:, [3, 4, 3, 4]] * rng.normal(0, 0.1, (len(own), 4))
    boxes[:, 2:] = boxes[:, 2:].clip(1)
    category[place] = np.where(rng.random(len(own)) < 0.85, own[:, 5], category[place])
    score[place] = 0.2 + 0.8 * rng.random(len(own))
    query = np.argsort(rng.random((len(ids), 300), dtype=np.float32))[:, :_DETECTIONS].ravel()
    columns = [np.repeat(ids, _DETECTIONS), query, category, score, *boxes[:, :2].T, *(boxes[:, :2] + boxes[:, 2:]).T]
    return pa.table({field.name: pa.array(column, field.type) for field, column in zip(DETECTION_SCHEMA, columns, strict=True)})
