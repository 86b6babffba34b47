"""``workbench cache build|check|list|prune``: stores the teacher's outputs on disk."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.commands.options import Arm, Data, Device, Recipe, Set, Verb, sub_app
from workbench.duration import duration

if TYPE_CHECKING:
    from workbench.recipe.setup import Setup
    from workbench.teacher_cache.build import Estimate
    from workbench.training.loop import Listener

cache_app = sub_app("Store a teacher's outputs, so that training need not run it.")
# seconds between lines if the output is not a terminal
SAY_EVERY = 30.0


@cache_app.command("build", cls=Verb)
def cache_build(
    recipe: Recipe,
    arm: Arm = None,
    data: Data = None,
    overrides: Set = None,
    device: Device = "auto",
    accept: Annotated[bool, typer.Option("--accept", help="Write feature and attention maps too, at the size that is printed.")] = False,
) -> None:
    """Run the teacher on every variant of every training image.

    A recipe that says how its teacher is made trains the teacher first, unless that run already exists. The size and the time are
    printed before anything is written. A build that was stopped continues where it was, and damaged files are made again.

    Example: workbench cache build shapes_cached
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.commands.progress import console_count, console_listener
    from workbench.device import resolve_device
    from workbench.teacher_cache.build import Builder

    place = resolve_device(device)
    with console_listener(console, plain=False) as listener:
        setup = _setup(recipe, arm, data, overrides, device, listener)
    builder = Builder(setup, place)
    estimate = builder.estimate()
    for line in _estimate_lines(estimate):
        console.print(Text(line), soft_wrap=True)
    with console_count(console, "outputs") as count:
        said = start = time.monotonic()
        first: int | None = None

        def progress(done: int, total: int) -> None:
            nonlocal said, first
            count(done, total)
            first = done if first is None else first
            if not console.is_terminal and time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                left = (said - start) / max(done - first, 1) * (total - done)
                console.print(f"{done} of {total} outputs, {duration(left)} left", soft_wrap=True)

        built = builder.build(estimate, accept, progress)
    for name in built.damaged:
        console.print(Text(f"{name} was damaged and has been made again"))
    summary = f"cache '{builder.folder.name}': {built.rows} outputs computed, {built.kept} reused ({builder.folder})"
    console.print(Text(summary), soft_wrap=True)


@cache_app.command("check", cls=Verb)
def cache_check(
    recipe: Recipe,
    arm: Arm = None,
    data: Data = None,
    overrides: Set = None,
    device: Device = "auto",
    answers: Annotated[int, typer.Option("--answers", metavar="N", help="How many outputs to compare with the teacher.")] = 64,
) -> None:
    """Check the files of a cache, and a sample of its outputs.

    Files are compared with their hashes, and the sample with the teacher's outputs now. The exit status is 1 if a file is damaged.

    Example: workbench cache check shapes_cached
    """
    from rich.text import Text

    from workbench.commands.console import console, print_rows
    from workbench.device import resolve_device
    from workbench.teacher_cache.verify import check_cache

    place = resolve_device(device)
    checked = check_cache(_setup(recipe, arm, data, overrides), place, answers)
    console.print(f"{checked.rows} outputs computed again; largest differences:")
    print_rows([
        {"tensor": d.name, "largest difference": f"{d.largest:.2e}", "largest value": f"{d.scale:.3g}", "entries that differ": d.flips}
        for d in checked.differences
    ])  # fmt: skip
    if checked.flips is not None:
        console.print(f"matchings that rounding would change: {checked.flips} of {checked.queries} queries (training uses the stored ones)")
    for name in checked.damaged:
        console.print(Text(f"damaged: {name}. Run 'workbench cache build {recipe}' to make it again."), soft_wrap=True)
    if checked.damaged:
        raise typer.Exit(1)
    console.print("every file is intact")


@cache_app.command("list", cls=Verb)
def cache_list() -> None:
    """List all caches with their contents and sizes.

    Example: workbench cache list
    """
    from workbench.commands.console import print_rows
    from workbench.teacher_cache.folders import list_caches

    print_rows(list_caches())


@cache_app.command("prune", cls=Verb)
def cache_prune(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="CACHE", help="Names of caches; by default those that cannot be read any more.")
    ] = None,
) -> None:
    """Remove caches.

    Example: workbench cache prune shapes_cached
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.teacher_cache.folders import prune_caches

    removed = prune_caches(names or ())
    for name in removed:
        console.print(Text(f"removed {name}"))
    if not removed:
        console.print("every cache can be read, so nothing was removed. Name the caches to remove.")


def _setup(
    name: str, arm: str | None, data: str | None, overrides: list[str] | None, device: str = "auto", listener: "Listener | None" = None
) -> "Setup":
    """Builds teacher, methods and variants of a recipe.

    Args:
        name: the recipe.
        arm: its arm.
        data: dataset to use instead of the recipe's.
        overrides: settings to change.
        device: where a teacher is trained.
        listener: receives the progress of a teacher that has to be trained first; without one its run must exist already.
    """
    from workbench.recipe.loading import load_recipe, recipe_path
    from workbench.recipe.setup import build
    from workbench.training.launch import Launch, ready_teacher, teacher_name

    path = recipe_path(name)
    recipe = load_recipe(path, [*(overrides or []), *([f"data.path={data}"] if data else [])], arm)
    if listener is None:
        teacher = teacher_name(recipe, path.parent)
    else:
        teacher = ready_teacher(recipe, Launch(device=device), listener, path.parent)
    return build(recipe, teacher, record_teacher=False)


def _estimate_lines(estimate: "Estimate") -> list[str]:
    large = f", including {', '.join(estimate.large)}" if estimate.large else ""
    there = f", {100 * estimate.done:.0f} % of it done" if estimate.done else ""
    return [
        f"cache '{estimate.name}': {estimate.images} images x {estimate.variants} variants, {estimate.row_bytes / 1e3:.1f} kB each{large}",
        f"{estimate.bytes / 1e9:.3f} GB in all{there}; {estimate.free_bytes / 1e9:.1f} GB free",
        f"about {duration(estimate.seconds_left)} at {1e3 * estimate.row_seconds:.0f} ms per output",
    ]
