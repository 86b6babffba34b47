"""``workbench compare``: trains arms times seeds of recipes."""

from typing import TYPE_CHECKING, Annotated

import typer

from workbench.commands.options import Data, Device, Json, Root, Set, use_root

if TYPE_CHECKING:
    from workbench.tasks.compare import Row


def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE", help="Recipe files, or names of recipes that come with the workbench."),
    ],
    arms: Annotated[
        str | None,
        typer.Option("--arms", metavar="A,B,...", help="Arms to train; by default each recipe as written and all its arms."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="How many seeds to train each arm with.")] = 3,
    first_seed: Annotated[int, typer.Option("--first-seed", metavar="N", help="The lowest of the seeds.")] = 0,
    equal_compute: Annotated[
        str | None,
        typer.Option(
            "--equal-compute",
            metavar="A,B,...",
            help="Arms to train once more in the time that the baseline takes; by default all but the baseline, '' for none.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", help="How many runs to train at a time.")] = 2,
    data: Data = None,
    overrides: Set = None,
    device: Device = "cpu",
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """Train arms of a recipe on several seeds and compare their AP.

    The table gives each arm's mean AP, its range, and its difference to the undistilled baseline, paired by seed. Runs that are
    finished already are kept, so a comparison that was stopped continues where it was.

    Example: workbench compare bccd --data ~/bccd --seeds 3
    """
    from workbench.commands.console import console, print_comparison
    from workbench.commands.progress import console_watch
    from workbench.device import resolve_device
    from workbench.recipe.loading import load_recipe, recipe_path
    from workbench.tasks.compare import compare_rows, distilled_arms, execute, plan

    use_root(runs)
    resolve_device(device)
    plans: list[list[Row]] = []
    for recipe in recipes:
        path = recipe_path(recipe)
        base = load_recipe(path)
        chosen = arms.split(",") if arms else list(dict.fromkeys([*base.arms, base.own_arm]))
        wanted = distilled_arms(chosen) if equal_compute is None else [arm for arm in equal_compute.split(",") if arm]
        plans.append(plan(path, chosen, range(first_seed, first_seed + seeds), wanted, data=data))
    with console_watch(console) as watch:
        execute([row for rows in plans for row in rows], jobs, overrides or (), data, device, watch)
    print_comparison([compare_rows(rows) for rows in plans], json_path)
