"""``workbench run``: trains one recipe."""

from typing import Annotated

import typer

from workbench.commands.options import Arm, Data, Device, Json, Plain, Root, Set, use_root
from workbench.errors import ConfigError


def run(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Recipe file, or the name of a recipe that comes with the workbench."),
    ] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="RUN", help="Continue this interrupted run instead.")] = None,
    arm: Arm = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the initial weights and the order of the data.")] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the run; by default RECIPE-DATA-ARM-seedN.")] = None,
    data: Data = None,
    overrides: Set = None,
    device: Device = "auto",
    log: Annotated[
        list[str] | None,
        typer.Option("--log", metavar="TRACKER", help="Also log to tensorboard, mlflow or wandb. Repeat it for more."),
    ] = None,
    group: Annotated[str, typer.Option("--group", hidden=True)] = "equal steps",
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Take one step on made-up images on the CPU, to see that the recipe works. Writes nothing.")
    ] = False,
    plain: Plain = False,
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """Train a recipe, with or without a teacher.

    A recipe that says how its teacher is made trains the teacher first, unless that run already exists. Ctrl-C saves the run;
    --resume continues it.

    Example: workbench run bccd --data ~/bccd --set train.steps=500
    """
    from rich.text import Text

    from workbench.commands.console import console, print_rows, show_runs
    from workbench.store.run import Run

    use_root(runs)
    given = {"a recipe": recipe, "--arm": arm, "--seed": seed, "--name": name, "--data": data, "--set": overrides}
    ignored = [what for what, value in given.items() if value is not None]
    if resume is not None and ignored:
        raise ConfigError(f"--resume continues a run as it was started. Leave out {', '.join(ignored)}, or start a new run.")
    if resume is not None and (found := Run.open(resume)).info().get("state") == "done":
        console.print(Text(f"run '{found.name}' is finished, so there is nothing to resume."), soft_wrap=True)
        show_runs([found], json_path)
        return
    # they load torch, which a run that is finished does not need
    from workbench.commands.progress import console_listener
    from workbench.device import resolve_device
    from workbench.recipe.loading import load_recipe, recipe_path
    from workbench.training.launch import Launch, start
    from workbench.training.launch import resume as resume_run

    resolve_device(device)
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
            finished = resume_run(Run.open(resume), launch, listener)
        elif recipe is None:
            raise ConfigError("name a recipe, or give --resume RUN.")
        else:
            path = recipe_path(recipe)
            finished = start(load_recipe(path, changes, arm), launch, listener, path.parent)
    show_runs([finished], json_path)
