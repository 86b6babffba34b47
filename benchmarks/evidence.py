"""Trains the runs behind every published table and writes ``docs/results/`` (``make evidence``). Finished runs are reused.

Each table is a JSON file (rows, recipe hashes, commits, seeds, commands, machine) and the Markdown made from it; docs/results.md
(docs/search.md for the search) holds that Markdown between markers, and a test compares them.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from benchmarks import converged, detkds_search, detkds_table
from benchmarks.harness import machine
from workbench.analysis.detection.bootstrap import bootstrap_ap
from workbench.analysis.report.summary import TEACHER
from workbench.commands.progress import console_watch
from workbench.errors import ConfigError, WorkbenchError
from workbench.files import read_json, write_json, write_text
from workbench.recipe.loading import load_recipe, merge, recipe_path, stored_recipe
from workbench.recipe.setup import open_split
from workbench.store.detections import read_detections
from workbench.store.groups import DISTILLED, UNDISTILLED
from workbench.store.run import Run
from workbench.tasks.compare import Row, compare_rows, execute, notes_on, plan, seed_table
from workbench.views.static_figure import static_svg

RESAMPLES = 500
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
SEARCH_PAGE = ROOT / "docs" / "search.md"
FIGURES = ROOT / "docs" / "images"
SIMULATED, SEARCHED = "detkds_table", "detkds_search"  # no runs stand behind them
CONVERGED = "converged"  # its runs differ in their lengths
OTHERS = (SIMULATED, SEARCHED, CONVERGED)


@dataclass(frozen=True)
class EvidenceTable:
    """One table: every arm of its recipes at every seed.

    Attributes:
        recipes: names of shipped recipes.
        arms: arms of each recipe that run at equal steps.
        equal_compute: arms that also run at the baseline's compute.
        seeds: seeds that are reported; settings were chosen on other seeds.
        needs_data: True if the dataset's folder must be given.
        own_arms: arms that one recipe has alone, at equal steps and at equal compute.
    """

    recipes: tuple[str, ...]
    arms: tuple[str, ...]
    equal_compute: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    needs_data: bool = False
    own_arms: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def arms_of(self, recipe: str) -> tuple[str, ...]:
        """Returns the arms of a recipe at equal steps."""
        return (*self.arms, *self.own_arms.get(recipe, ()))

    def equal_compute_of(self, recipe: str) -> tuple[str, ...]:
        """Returns the arms of a recipe at equal compute."""
        return (*self.equal_compute, *self.own_arms.get(recipe, ()))


WITHOUT_QUERIES = ("retinanet", "fcos", "gfl", "reppoints", "faster_rcnn")
# the recipe of the embedded teacher covers Deformable DETR
FAMILY_RECIPES = (
    *(f"families/{name}" for name in ("detr", "conditional_detr", "dab_detr")), "shapes_teacher",
    *(f"families/{name}" for name in ("dino", "adamixer", "rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr")),
    *(f"families/{name}" for name in WITHOUT_QUERIES),
)  # fmt: skip
METHODS = ("detrdistill", "clockdistill", "fitnet", "fgd", "mgd", "fkd", "fgfi", "cwd", "pkd", "kd_detr", "d3etr")
DENSE_METHODS = ("fitnet", "fgd", "mgd", "fkd", "fgfi", "cwd", "pkd", "ld", "detkds")
UNLIKE_PAIRS = tuple(
    f"compare/{name}" for name in ("deformable_detr_of_retinanet", "fcos_of_deformable_detr", "retinanet_of_faster_rcnn", "d_fine_of_gfl")
)
FOUND_PAIRS = tuple(
    f"compare/{name}" for name in ("gfl", "deformable_detr_cached", "fcos_of_deformable_detr", "deformable_detr_of_retinanet")
)
FOUND_RIVALS = ("cwd", "pkd", "detkds")
SECOND_FAMILY = ("detrdistill", "clockdistill", "cwd", "kd_detr", "ld")
TABLES = {
    "families": EvidenceTable(FAMILY_RECIPES, (UNDISTILLED,), (), (0,)),
    "small_students": EvidenceTable(tuple(f"families/{name}" for name in WITHOUT_QUERIES), (UNDISTILLED, "small"), (), (0,)),
    "shapes_teacher": EvidenceTable(("shapes_teacher",), (UNDISTILLED,), (), (0, 1)),
    "shapes": EvidenceTable(("shapes",), (UNDISTILLED, DISTILLED, "uniform"), (DISTILLED,)),
    "shapes_components": EvidenceTable(("shapes",), (UNDISTILLED, "features", "logits"), ()),
    "shapes_parts": EvidenceTable(("shapes",), (UNDISTILLED, "logits", "assignment", "no_negatives", "last_layer"), ()),
    "shapes_longer": EvidenceTable(("shapes",), ("longer",), (), (0,)),
    "shapes_cached": EvidenceTable(("shapes_cached",), (UNDISTILLED, DISTILLED, "unlimited", "live"), (DISTILLED,)),
    "methods": EvidenceTable(("compare/deformable_detr",), (UNDISTILLED, *METHODS), METHODS),
    "clockdistill_parts": EvidenceTable(("compare/deformable_detr",), (UNDISTILLED, "clockdistill", "clock_memory", "clock_queries"), ()),
    "methods_second_family": EvidenceTable(("compare/d_fine",), (UNDISTILLED, *SECOND_FAMILY), ("detrdistill", "cwd")),
    "dense": EvidenceTable(("compare/gfl",), (UNDISTILLED, *DENSE_METHODS), DENSE_METHODS),
    "unlike_pairs": EvidenceTable(UNLIKE_PAIRS, (UNDISTILLED, "fgd", "cwd", "pkd"), ()),
    "detkds_found": EvidenceTable(
        FOUND_PAIRS,
        (UNDISTILLED, *FOUND_RIVALS, "found"),
        (*FOUND_RIVALS, "found"),
        own_arms={
            "compare/gfl": ("found_global",),
            "compare/deformable_detr_cached": ("fgfi", "found_gfl"),
            "compare/fcos_of_deformable_detr": ("found_gfl",),
            "compare/deformable_detr_of_retinanet": ("pkd_3", "found_gfl"),
        },
    ),
    "decoder_layers": EvidenceTable(("compare/one_decoder_layer", "compare/three_decoder_layers"), (UNDISTILLED, DISTILLED), ()),
    "bccd_teacher": EvidenceTable(("bccd_teacher",), (UNDISTILLED,), (), needs_data=True),
    "bccd": EvidenceTable(("bccd", "bccd_fcos"), (UNDISTILLED, DISTILLED), (DISTILLED,), needs_data=True),
}


def main() -> None:
    """Runs the command line: ``python -m benchmarks.evidence [TABLE ...] [--only RECIPE ...] [--bccd PATH] [--jobs N]``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, *OTHERS, []], help="tables to make; default: all whose data is available")
    parser.add_argument("--bccd", default=None, help="folder of the BCCD dataset")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=None, metavar="RECIPE", help="make the rows of these recipes; keep the others")
    arguments = parser.parse_args()
    if arguments.only and len(arguments.tables) != 1:
        parser.error("--only needs one table")
    console = Console()
    for name in arguments.tables or [*TABLES, *OTHERS]:
        if name == CONVERGED:
            console.print(_converged(arguments.jobs, console))
            continue
        if name == SIMULATED:
            _write(name, detkds_table.record(), SEARCH_PAGE)
            continue
        if name == SEARCHED:
            console.print(_searched(arguments.jobs, console))
            continue
        table = TABLES[name]
        if table.needs_data and arguments.bccd is None:
            console.print(f"{name}: skipped, because it needs --bccd PATH")
            continue
        rows = rows_of(table, arguments.only)
        kept = kept_rows(load(name), table, arguments.only) if arguments.only else []
        _build_caches(table)
        with console_watch(console) as watch:
            execute(rows, arguments.jobs, data=arguments.bccd if table.needs_data else None, watch=watch)
        console.print(_write(name, _record(name, table, rows, arguments.bccd, kept), PAGE))


def _converged(jobs: int, console: Console) -> str:
    """Trains and writes the table of schedules and its figure; returns the Markdown."""
    _build_cache(converged.RECIPE)
    with console_watch(console) as watch:
        converged.train(jobs, watch)
    record = converged.record()
    write_text(FIGURES / f"{CONVERGED}.svg", static_svg(converged.figure(pd.DataFrame(record["rows"])), "AP over compute"))
    return _write(CONVERGED, record, PAGE)


def _searched(jobs: int, console: Console) -> str:
    """Runs the searches of the comparison of samplers, and writes its table after each; returns the Markdown."""
    kept = detkds_search.kept_rows(load(SEARCHED)) if (RESULTS / f"{SEARCHED}.json").is_file() else []
    for name in detkds_search.train(jobs, kept):
        _write(SEARCHED, detkds_search.record(kept), SEARCH_PAGE)
        console.print(f"{name} is finished and written")
    return _write(SEARCHED, detkds_search.record(kept), SEARCH_PAGE)


def _write(name: str, record: dict[str, Any], page: Path) -> str:
    """Writes a table to ``docs/results/`` and its Markdown into a page; returns the Markdown."""
    write_json(RESULTS / f"{name}.json", record)
    write_text(page, with_table(page.read_text(encoding="utf-8"), name, record["markdown"]))
    return record["markdown"]


def _build_caches(table: EvidenceTable) -> None:
    """Builds the teacher caches of a table's recipes before several runs read them at once."""
    for name in table.recipes:
        recipe = load_recipe(recipe_path(name))
        if recipe.cache is not None and recipe.methods:
            _build_cache(name)


def _build_cache(recipe: str) -> None:
    subprocess.run([sys.executable, "-P", "-m", "workbench", "cache", "build", recipe, "--accept", "--device", "cpu"], check=True)


def cache_line(build_seconds: float, students: tuple[int, ...] = (1, 3, 10)) -> str:
    """Returns the sentence that says what building a cache costs per student; the rows of the table do not include this cost."""
    shares = ", ".join(f"{build_seconds / count:.0f} s of {count}" for count in students)
    return f"Building the teacher cache took {build_seconds:.0f} s of the processor, once. To each student that is {shares}."


def rows_of(table: EvidenceTable, only: Sequence[str] | None = None) -> list[Row]:
    """Returns the runs of a table, or those of some of its recipes.

    Raises:
        ConfigError: a recipe is not one of the table's.
    """
    if unknown := sorted(set(only or ()) - set(table.recipes)):
        raise ConfigError(f"the table has no recipe {', '.join(unknown)}; its recipes are {', '.join(table.recipes)}.")
    return [
        row
        for recipe in only or table.recipes
        for row in plan(recipe_path(recipe), table.arms_of(recipe), table.seeds, table.equal_compute_of(recipe))
    ]


def recipe_hashes(table: EvidenceTable) -> dict[str, str]:
    """Returns the hash of each arm's current recipe; a committed table with other hashes is out of date.

    A key names the recipe, the arm or both: whichever the table has more than one of. It names the arm if it has one of each.
    """
    arms = {recipe: dict.fromkeys([*table.arms_of(recipe), *table.equal_compute_of(recipe)]) for recipe in table.recipes}

    def key(recipe: str, arm: str) -> str:
        return arm if len(table.recipes) == 1 else recipe if len(arms[recipe]) == 1 else f"{recipe} {arm}"

    return {key(recipe, arm): load_recipe(recipe_path(recipe), arm=arm).hash() for recipe in table.recipes for arm in arms[recipe]}


def family_table(frame: pd.DataFrame) -> str:
    """Returns a Markdown table with one line per run, from a frame with a column ``family``; the time per step is process time."""
    lines = ["| family | parameters | test AP | AP50 | steps | ms per step | CPU seconds | commit |", "|---|---|---|---|---|---|---|---|"]
    for row in frame[frame["arm"] != TEACHER].to_dict("records"):
        seconds, steps = float(row["compute_seconds"]), int(row["steps"])
        ap, low, high = (f"{100 * row[key]:.1f}" for key in ("ap", "ap_low", "ap_high"))
        cells = [
            row["family"], f"{row['parameters'] / 1e6:.2f} M", f"{ap} [{low}, {high}]", f"{100 * row['ap50']:.1f}", steps,
            f"{1000 * seconds / steps:.0f}", f"{seconds:.0f}", row["commit"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def seed_tables(frame: pd.DataFrame, table: EvidenceTable) -> str:
    """Returns one Markdown table per recipe; if there are several, each is headed by the recipe's name."""
    recipes = {load_recipe(recipe_path(name)).name: name for name in table.recipes}
    texts: dict[str, str] = {}
    for name, part in frame.groupby("recipe", sort=False):
        recipe = recipes[str(name)]
        loaded = [
            load_recipe(recipe_path(recipe), arm=arm) for arm in dict.fromkeys([*table.arms_of(recipe), *table.equal_compute_of(recipe)])
        ]
        methods = notes_on(config.method for recipe in loaded for config in recipe.methods)
        texts[str(name)] = "\n\n".join([seed_table(part), *methods])
    return "\n\n".join(text if len(texts) == 1 else f"`{name}`\n\n{text}" for name, text in texts.items())


def with_table(text: str, name: str, markdown: str) -> str:
    """Returns ``text`` with ``markdown`` between the markers of table ``name``."""
    pattern = re.compile(rf"(<!-- table:{re.escape(name)} -->\n).*?(<!-- /table:{re.escape(name)} -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{markdown}\n{found[2]}", text)


def with_intervals(frame: pd.DataFrame, data: str | None) -> pd.DataFrame:
    """Adds ``ap_low`` and ``ap_high``, the 95 % interval of the AP of these weights over resampled test images."""
    truths: dict[str, dict[str, Any]] = {}
    low: list[float | None] = []
    high: list[float | None] = []
    for row in frame.to_dict("records"):
        if row["arm"] == TEACHER:
            low.append(None)
            high.append(None)
            continue
        run = Run.open(str(row["run"]))
        recipe = stored_recipe(merge(run.info()["recipe"], {"data": {"path": data}} if data else {}), str(run.info_path))
        split = recipe.data.test or recipe.data.val
        if split not in truths:
            truths[split] = open_split(recipe, split).coco()
        interval = bootstrap_ap(truths[split], read_detections(run, str(row["split"]), int(row["step"])), samples=RESAMPLES)
        low.append(interval.low)
        high.append(interval.high)
    return frame.assign(ap_low=pd.Series(low, dtype=object), ap_high=pd.Series(high, dtype=object))


def kept_rows(record: dict[str, Any], table: EvidenceTable, only: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the rows of a committed table that are not made anew: those of its other recipes."""
    names = {load_recipe(recipe_path(recipe)).name for recipe in set(table.recipes) - set(only)}
    return [row for row in record["rows"] if row["recipe"] in names]


def in_order(rows: Iterable[dict[str, Any]], table: EvidenceTable) -> list[dict[str, Any]]:
    """Returns the rows in the order of the table's recipes."""
    order = [load_recipe(recipe_path(recipe)).name for recipe in table.recipes]
    return sorted(rows, key=lambda row: order.index(row["recipe"]))


def _record(name: str, table: EvidenceTable, rows: list[Row], bccd: str | None, kept: list[dict[str, Any]]) -> dict[str, Any]:
    frame = with_intervals(compare_rows(rows), bccd if table.needs_data else None)
    if name == "families":
        students = [Run.open(str(run)).info()["recipe"]["student"] for run in frame["run"]]
        frame = frame.assign(family=[student["family"] for student in students])
    values = in_order([*kept, *json.loads(frame.to_json(orient="records"))], table)
    frame = pd.DataFrame(values, dtype=object)
    data = " --bccd PATH" if table.needs_data else ""
    markdown = family_table(frame) if name == "families" else seed_tables(frame, table)
    caches = [info["cache"] for row in rows if (info := Run.open(row.name).info()).get("cache")]
    builds = dict.fromkeys((cache["name"], cache["build_seconds"]["cpu"]) for cache in caches)
    if len(builds) == 1:
        markdown += "\n\n" + cache_line(caches[0]["build_seconds"]["cpu"])
    elif builds:
        seconds = sorted(seconds for _, seconds in builds)
        markdown += f"\n\nBuilding the teacher caches took {seconds[0]:.0f} to {seconds[-1]:.0f} s of the processor each, once."
    return {
        "table": name,
        "command": f"python -m benchmarks.evidence {name}{data}",
        "recipe_hashes": recipe_hashes(table),
        "seeds": list(table.seeds),
        "commits": sorted({value["commit"] for value in values if value.get("commit")}),
        "machine": machine(),
        "rows": values,
        "markdown": markdown,
    }


def load(name: str) -> dict[str, Any]:
    """Returns a committed table."""
    return read_json(RESULTS / f"{name}.json")


if __name__ == "__main__":
    try:
        main()
    except WorkbenchError as error:
        sys.exit(f"evidence: {error}")
