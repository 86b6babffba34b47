"""The command line ``workbench``: one thin function per verb over the library."""

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from workbench.commands.cache import cache_app
from workbench.commands.console import (
    Data,
    Device,
    Json,
    Plain,
    Root,
    Set,
    console,
    errors,
    print_comparison,
    print_rows,
    print_summary,
    show_runs,
    use_root,
)
from workbench.commands.diagnose import diagnose
from workbench.commands.export import export
from workbench.commands.inspect import inspect
from workbench.commands.recipe import recipe_app
from workbench.commands.record import trace
from workbench.commands.report import report
from workbench.errors import ConfigError, WorkbenchError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Distil DETR-family detectors, and see why it did or did not work.",
                  pretty_exceptions_enable=False)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Datasets: check one, write the embedded one out.")
runs_app = typer.Typer(no_args_is_help=True, help="Runs: list, show, remove.")
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.add_typer(cache_app, name="cache")
app.add_typer(recipe_app, name="recipe")
app.command()(trace)
app.command()(diagnose)
app.command()(report)
app.command()(export)
app.command()(inspect)


def main() -> None:
    """Runs the command line; a ``WorkbenchError`` becomes one message and its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # being asked to end runs the same clean-up as an error: a comparison takes its runs with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = app(standalone_mode=False)  # click hands the code of typer.Exit back instead of raising it
        if isinstance(code, int) and code:
            sys.exit(code)
    except WorkbenchError as error:
        errors.print(Text(f"workbench: {error}"), soft_wrap=True)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        # usage errors of the command line carry their own message and code
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            errors.print(Text(f"workbench: {error.format_message()}"), soft_wrap=True)  # pyright: ignore[reportAttributeAccessIssue]
            sys.exit(int(error.exit_code))  # pyright: ignore[reportAttributeAccessIssue]
        raise


@app.command()
def run(
    recipe: Annotated[str | None, typer.Argument(help="A recipe file, or the name of a shipped one.")] = None,
    resume: Annotated[str | None, typer.Option("--resume", help="Name of a run to go on with.")] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Named change below 'arms:' of the recipe.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of initialisation and data order.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the run.")] = None,
    data: Data = None,
    overrides: Set = None,
    device: Device = "auto",
    log: Annotated[list[str] | None, typer.Option("--log", help="tensorboard, mlflow or wandb.")] = None,
    group: Annotated[str, typer.Option("--group", hidden=True)] = "equal steps",
    dry: Annotated[bool, typer.Option("--dry-run", help="One step on generated images; no data needed, nothing written.")] = False,
    plain: Plain = False,
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """Train a recipe, distilled or not."""
    from workbench.commands.progress import console_listener
    from workbench.recipe.loading import load_recipe
    from workbench.training.launch import Launch, recipe_path, start
    from workbench.training.launch import resume as resume_run

    use_root(runs)
    given = {"a recipe": recipe, "--arm": arm, "--seed": seed, "--name": name, "--data": data, "--set": overrides}
    ignored = [what for what, value in given.items() if value is not None]
    if resume is not None and ignored:
        raise ConfigError(f"--resume goes on with the run as it was started; leave out {', '.join(ignored)}, or start a new run.")
    changes = [*(overrides or []), *([f"seed={seed}"] if seed is not None else []), *([f"data.path={data}"] if data else [])]
    if dry and recipe is not None:
        from workbench.training.dry_run import dry_run

        path = recipe_path(recipe)
        fields = dry_run(load_recipe(path, changes, arm), path.parent).row()
        terms = {f"term {name}": value for name, value in fields.pop("terms").items()}
        print_rows([{"what": name, "value": value} for name, value in (fields | terms).items()], json_path)
        return
    launch = Launch(name, arm, group, device, tuple(log or ()))
    with console_listener(console, plain) as listener:
        if resume is not None:
            finished = resume_run(resume, launch, listener)
        elif recipe is None:
            raise ConfigError("give a recipe, or --resume NAME.")
        else:
            path = recipe_path(recipe)
            finished = start(load_recipe(path, changes, arm), launch, listener, path.parent)
    show_runs([finished.name], json_path)


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Short schedules; its numbers are not to be quoted.")] = False,
    serve: Annotated[bool, typer.Option("--app/--no-app", help="Serve the dashboard at the end.")] = True,
    seed: Annotated[int, typer.Option("--seed", help="Of the students.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes at a time.")] = 2,
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """The main job on the embedded data: distil, measure, show."""
    from workbench.commands.progress import console_watch
    from workbench.tasks.demo import run_demo

    use_root(runs)
    with console_watch(console) as watch:
        table = run_demo(seed, quick, jobs, watch)
    print_summary(table, json_path)
    if quick:
        console.print("--quick: short schedules. These numbers are not to be quoted.")
    if serve:
        _serve(8501)


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files, or names of shipped ones.")],
    arms: Annotated[str | None, typer.Option("--arms", help="Comma-separated; default: each recipe as written and all its arms.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds, from --first-seed on.")] = 3,
    first_seed: Annotated[int, typer.Option("--first-seed")] = 0,
    equal_compute: Annotated[
        str | None,
        typer.Option("--equal-compute", help="Arms also run at the baseline's compute; default: all but the baseline; '' for none."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes at a time.")] = 2,
    data: Data = None,
    overrides: Set = None,
    device: Device = "cpu",
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """Train arms times seeds of recipes; print each arm's AP with mean, range and difference to the baseline. Finished runs are kept."""
    from workbench.commands.progress import console_watch
    from workbench.recipe.loading import load_recipe
    from workbench.tasks.compare import Row, compare_rows, distilled_arms, execute, plan
    from workbench.training.launch import recipe_path

    use_root(runs)
    plans: list[list[Row]] = []
    for recipe in recipes:
        path = recipe_path(recipe)
        base = load_recipe(path)
        chosen = arms.split(",") if arms else list(dict.fromkeys([*base.arms, base.own_arm]))
        wanted = distilled_arms(chosen) if equal_compute is None else [arm for arm in equal_compute.split(",") if arm]
        plans.append(plan(path, chosen, range(first_seed, first_seed + seeds), wanted))
    with console_watch(console) as watch:
        execute([row for rows in plans for row in rows], jobs, overrides or (), data, device, watch)
    print_comparison([compare_rows(rows) for rows in plans], json_path)


@app.command()
def evaluate(
    detector: Annotated[str, typer.Argument(help="A run, a detector folder, or an embedded detector.")],
    data: Annotated[str | None, typer.Option("--data", help="Dataset folder, or shapes; default: the run's own data, else shapes.")] = None,
    split: Annotated[str, typer.Option("--split")] = "val",
    step: Annotated[int | None, typer.Option("--step", help="Checkpoint of a run; default: its result.")] = None,
    device: Device = "auto",
    json_path: Json = None,
) -> None:
    """COCO AP of a detector on a split with intervals, what its errors cost, and on KITTI data KITTI's own AP."""
    from workbench.tasks.evaluate import evaluate as evaluate_detector

    print_rows(evaluate_detector(detector, data, split, step, device).rows(), json_path)


@app.command()
def predict(
    detector: Annotated[str, typer.Argument(help="A run, a detector folder, or an embedded detector.")],
    images: Annotated[Path, typer.Argument(help="An image or a folder of images.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results.json and the drawn images.")] = Path("predictions"),
    threshold: Annotated[float, typer.Option("--threshold", help="Least score drawn; results.json holds all.")] = 0.3,
    device: Device = "auto",
) -> None:
    """Write COCO results and drawn images."""
    from workbench.tasks.predict import predict as predict_images

    found = predict_images(detector, images, out, threshold, device)
    console.print(f"{found.images} images, {found.detections} detections: {out}/results.json and {out}/drawn/")
    for line in found.skipped:
        console.print(Text(f"skipped {line}"))


@data_app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(help="Dataset folder.")],
    split: Annotated[str | None, typer.Option("--split")] = None,
    form: Annotated[str, typer.Option("--format", help="auto, coco, voc, kitti or yolo.")] = "auto",
    json_path: Json = None,
) -> None:
    """Report what is wrong with a dataset; exits with 1 on errors."""
    from workbench.commands.progress import console_count
    from workbench.datasets.check import check
    from workbench.files import write_json

    with console_count(console, "images") as progress:
        report = check(path, split, form, progress=progress)
    found = report.to_dict()
    console.print(Text(f"{report.path}: {report.format}"))
    print_rows([{"split": name, **counts} for name, counts in report.splits.items()], None)
    for issue in report.issues:
        console.print(Text(f"{issue.severity}: {issue}"), soft_wrap=True)
    if json_path is not None:
        write_json(json_path, found)
    console.print("nothing is lost" if report.ok else "annotations or images would be lost: see the errors above")
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("shapes")
def data_shapes(
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not hold a dataset yet.")],
    seed: Annotated[int, typer.Option("--seed", help="Other seeds give other images.")] = 0,
) -> None:
    """Write the embedded dataset out as a COCO folder."""
    from workbench.datasets.coco import write_coco
    from workbench.datasets.opening import open_dataset

    for split in ("train", "val", "test"):
        dataset = open_dataset("shapes", split, seed=seed)
        write_coco(dataset, out)
        console.print(Text(f"{split}: {len(dataset)} images"))


@runs_app.command("list")
def runs_list(runs: Root = None, json_path: Json = None) -> None:
    """All runs with their state and AP."""
    from workbench.store.run import list_runs

    use_root(runs)
    print_rows([_status(run) for run in list_runs()], json_path)


@runs_app.command("show")
def runs_show(name: str, runs: Root = None, json_path: Json = None) -> None:
    """Everything known of one run."""
    use_root(runs)
    show_runs([name], json_path)


@runs_app.command("rm")
def runs_rm(names: list[str], runs: Root = None) -> None:
    """Remove runs."""
    from workbench.store.run import Run

    use_root(runs)
    for found in [Run.open(name) for name in names]:
        found.remove()
        console.print(Text(f"removed {found.name}"))


@app.command()
def detectors(json_path: Json = None) -> None:
    """Families: what each provides, its parameters at published settings (R50, 80 classes), and the methods that can use it."""
    from workbench.detectors.registry import FAMILIES, parameter_count
    from workbench.methods.registry import method_matrix

    columns = list(zip(*method_matrix(), strict=True))
    names = columns[0][1:]
    rows: list[dict[str, Any]] = []
    for family, *served in columns[1:]:
        able = [name for name, lacks in zip(names, served, strict=True) if lacks == "yes"]
        rows.append({
            "family": family,
            "parameters": f"{parameter_count(family) / 1e6:.1f} M",
            "provides": ", ".join(sorted(FAMILIES[family].detector.provides)),
            "methods": "all" if len(able) == len(served) else ", ".join(able),
        })  # fmt: skip
    print_rows(rows, json_path)


@app.command()
def methods(json_path: Json = None) -> None:
    """Methods with their terms, what they need of both detectors, the families that provide it, and their sources."""
    from workbench.methods.registry import find_method, method_matrix

    families, *matrix = method_matrix()
    rows: list[dict[str, Any]] = []
    for name, *served in matrix:
        method = find_method(name)
        able = [family for family, lacks in zip(families[1:], served, strict=True) if lacks == "yes"]
        everywhere = "all" if len(able) == len(served) else ", ".join(able) or "none"
        rows.append({"method": name, "terms": method.terms, "needs": method.needs_text(), "families": everywhere, "source": method.source})
    print_rows(rows, json_path)


@app.command("app")
def serve_app(port: Annotated[int, typer.Option("--port")] = 8501, runs: Root = None) -> None:
    """Serve the dashboard on 127.0.0.1."""
    use_root(runs)
    _serve(port)


@app.command()
def doctor(json_path: Json = None) -> None:
    """Versions, devices, and what is missing for which feature."""
    from workbench.services.doctor import report

    print_rows(report().rows(), json_path)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .pth or .bin of tensors; with --layout a .safetensors as well.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write (model.safetensors), with --layout a folder.")] = None,
    layout: Annotated[str | None, typer.Option("--layout", help="Whose checkpoint it is; makes a detector folder of it.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Its model and classes: a YAML file or a shipped name.")] = None,
) -> None:
    """Turn a .pth into safetensors, or a public checkpoint into a detector; the only verb that reads a .pth, with weights_only."""
    from workbench.tasks.convert import convert as convert_file
    from workbench.tasks.convert import convert_detector

    if layout is None:
        if config is not None:
            raise ConfigError("--config goes with --layout.")
        file = out or Path("model.safetensors")
        console.print(Text(f"{convert_file(source, file)} tensors written to {file}"))
        return
    if config is None or out is None:
        raise ConfigError("--layout needs --config FILE, the model and classes of the checkpoint, and --out FOLDER.")
    console.print(Text(f"{convert_detector(source, layout, config, out):,} parameters written to {out}"))


def _status(run: Any) -> dict[str, Any]:
    try:
        last = (run.evaluations() or [{}])[-1]
        run.info()
    except WorkbenchError as error:
        # one damaged run hides no other
        return {"run": run.name, "state": f"unreadable: {error}", "split": None, "step": None, "AP": None}
    state = "running" if run.is_running() else run.info().get("state")
    return {"run": run.name, "state": state, "split": last.get("split"), "step": last.get("step"), "AP": last.get("coco", {}).get("ap")}


def _serve(port: int) -> None:
    from workbench.services.dashboard import serve

    serve(port, lambda address: console.print(Text(f"dashboard: {address}  (Ctrl-C stops it)")))
