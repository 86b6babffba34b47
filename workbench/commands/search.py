"""``workbench search``: searches for the best distiller, shows how far a search is, ends it, and writes what it found."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.commands.options import Device, Json, Plain, Verb, Verbs
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.methods.detkds.genotype import Input, Mode
    from workbench.search.space import Survey
    from workbench.search.study import SearchStudy


class _SearchVerbs(Verbs):
    """Takes ``search PLAN`` for ``search run PLAN``."""

    default = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and not args[0].startswith("-") and args[0] not in self.commands
        return super().parse_args(ctx, [self.default, *args] if named else args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["PLAN|COMMAND", "[OPTIONS]"]


search_app = typer.Typer(
    cls=_SearchVerbs,
    help="Search for the best distiller.\n\n'workbench search PLAN' begins a search, or continues it.",
    add_completion=False,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a search, or its folder.")]


@search_app.command("run", cls=Verb, hidden=True)
def search_run(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="File of a search, or the name of one that comes with the workbench.")],
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="How many processes train trials at a time.")] = 1,
    device: Device = "auto",
    other_code: Annotated[bool, typer.Option("--other-code", help="Continue a search that another commit of the code has begun.")] = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
    plain: Plain = False,
    json_path: Json = None,
) -> None:
    """Search for the best distiller of a pair of detectors.

    The same command continues a search that was interrupted; it can run several times at once. Ctrl-C ends it after the trials that run.

    Example: workbench search shapes_fcos --workers 2
    """
    from workbench.commands.console import console, print_rows
    from workbench.commands.search_progress import require_optuna, status_rows, train_here, train_there
    from workbench.device import resolve_device
    from workbench.search.plan import load_plan, plan_path
    from workbench.store.searches import searches_root

    resolve_device(device)
    require_optuna()
    path = plan_path(plan)
    loaded = load_plan(path)
    folder = searches_root() / loaded.name
    if not worker:
        (folder / "stop").unlink(missing_ok=True)
    if workers == 1:
        search = train_here(loaded, folder, device, other_code, plain or worker)
    else:
        search = train_there(loaded, path, folder, workers, device, other_code, plain)
    if not worker:
        print_rows(status_rows(search), json_path)
        console.print(f"'workbench search export {loaded.name}' writes what it found.")


@search_app.command("status", cls=Verb)
def search_status(name: Name, json_path: Json = None) -> None:
    """Show how far a search is, what is best so far, and what it has cost.

    Best is a mean over fresh seeds, with its interval of 95 %; the trial that was picked as the best does not count.

    Example: workbench search status shapes_fcos
    """
    from rich.text import Text

    from workbench.commands.console import console, print_rows
    from workbench.commands.search_progress import facts, facts_json, status_rows
    from workbench.files import write_json

    search = _opened(name)
    print_rows(status_rows(search))
    for line in facts(search):
        console.print(Text(line), soft_wrap=True)
    if json_path is not None:
        write_json(json_path, facts_json(search))


@search_app.command("stop", cls=Verb)
def search_stop(name: Name) -> None:
    """Let the workers of a search end after the trials that they train.

    Example: workbench search stop shapes_fcos
    """
    from workbench.commands.console import console
    from workbench.files import write_text

    search = _opened(name)
    write_text(search.stop_path, "")
    console.print(f"the workers of {search.name} end after their trials. The command that began the search continues it.", soft_wrap=True)


@search_app.command("export", cls=Verb)
def search_export(
    name: Name,
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="How many of the best candidates to write.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to write; by default where 'run found/NAME' finds them.")
    ] = None,
) -> None:
    """Write the best candidates of a search as recipes.

    Example: workbench search export shapes_fcos --top 3
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.search.found import export

    for path in export(_opened(name), top, out):
        console.print(Text(f"{path}: train it with 'workbench run {path if out else f'found/{path.stem}'}'"), soft_wrap=True)


def _opened(name: str) -> "SearchStudy":
    """Opens a search by name or folder to look at it."""
    from workbench.commands.search_progress import require_optuna

    require_optuna()
    from workbench.search.study import SearchStudy
    from workbench.store.run import is_path
    from workbench.store.searches import searches_root

    if not name:
        raise ConfigError("name a search.")
    return SearchStudy.read(Path(name) if is_path(name) else searches_root() / name)


@search_app.command("space", cls=Verb)
def search_space(
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="Images in a batch of one process.")] = 2,
    extra: Annotated[list[str] | None, typer.Option("--extra", metavar="ENTRY", help="Count an entry that a plan adds; repeat it.")] = None,
    json_path: Json = None,
) -> None:
    """Show the formulas at each position, and how many of them work.

    Every formula is computed on a small probe, in about half a minute: whether its loss is finite, has a gradient, and is smallest where
    student and teacher are equal. Formulas that differ by name alone count once.

    Example: workbench search space --images 16
    """
    from rich.text import Text

    from workbench.commands.console import console, print_rows
    from workbench.commands.progress import console_count
    from workbench.files import write_json
    from workbench.methods.detkds.genotype import EXTRA, INPUTS
    from workbench.search.space import MODES, positions, survey

    names = tuple(extra or ())
    known = sorted({name for one in EXTRA.values() for name in one})
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--extra has no {', '.join(unknown)}. Entries that a plan may add: {', '.join(known)}.")

    tables: dict[Input, tuple[Any, Any]] = {input: (positions(input, names), positions(input, True)) for input in INPUTS}
    for inputs in _alike(tables):
        console.print(Text(", ".join(inputs), style="bold"))
        counted, whole = tables[inputs[0]]
        for position, choices in counted.items():
            ours = [choice for choice in whole[position] if choice not in choices]
            also = f" (ours besides: {', '.join(ours)})" if ours else ""
            console.print(Text(f"  {position}: {', '.join(choices)}{also}"), soft_wrap=True)
    pairs: list[tuple[Input, Mode]] = [(input, mode) for input in INPUTS for mode in MODES]
    with console_count(console, "inputs") as count:
        surveys: list[Survey] = []
        for done, (input, mode) in enumerate(pairs):
            count(done, len(pairs))
            surveys.append(survey(input, mode, images, names))
        count(len(pairs), len(pairs))
    rows = [
        {
            "input": one.input, "mode": one.mode, "formulas": one.formulas, "different": one.different,
            "illegal": one.outcomes["illegal"], "at batch 1": one.alone, "not finite": one.outcomes["not finite"],
            "no gradient": one.outcomes["no gradient"], "not minimal": one.outcomes["not minimal"], "works": one.outcomes["works"],
            "different of these": one.canonical, "on the probe": one.distinct,
        }
        for one in surveys
    ]  # fmt: skip
    with_extra = f", with {', '.join(names)}" if names else ""
    console.print(Text(f"formulas of the released tables and of the paper's figure{with_extra}, with {images} images in a batch:"))
    print_rows(rows)
    if json_path is not None:
        choices = {input: {"released": counted, "with ours": whole} for input, (counted, whole) in tables.items()}
        write_json(json_path, {"images": images, "extra": names, "positions": choices, "formulas": rows})


def _alike(tables: "dict[Input, tuple[Any, Any]]") -> "list[list[Input]]":
    """Returns the inputs in groups that have the same choices."""
    groups: dict[str, list[Input]] = {}
    for input, table in tables.items():
        groups.setdefault(repr(table), []).append(input)
    return list(groups.values())
