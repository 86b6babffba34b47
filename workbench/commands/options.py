"""Options and arguments that several verbs share; imports nothing that takes long."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, or the name of a recipe that comes with the workbench.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its path.")]
Detector = Annotated[
    str,
    typer.Argument(metavar="DETECTOR", help="Name or path of a run, a detector folder, or a detector that comes with the workbench."),
]
Arm = Annotated[str | None, typer.Option("--arm", metavar="ARM", help="Use this arm, one of the named changes in the recipe.")]
Data = Annotated[str | None, typer.Option("--data", metavar="FOLDER", help="Dataset to use instead of the recipe's.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting of the recipe, such as train.steps=500. Repeat it for more."),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, or cuda:N for one GPU of several.")]
Split = Annotated[str, typer.Option("--split", metavar="SPLIT", help="Split whose queries are looked at: val or test.")]
Against = Annotated[str | None, typer.Option("--against", metavar="RUN", help="Run to compare with, usually the undistilled one.")]
Plain = Annotated[bool, typer.Option("--plain", help="Print lines instead of a progress bar.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to this file as JSON.")]
Root = Annotated[
    str | None,
    typer.Option("--runs", metavar="FOLDER", help="Folder that holds the runs; by default $WORKBENCH_RUNS, else ./runs."),
]


class Verb(TyperCommand):
    """A verb whose help names its arguments as people write them: ``RUN...``."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [_written(param) if param.required else f"[{_written(param)}]" for param in self._arguments(ctx)]
        return [self.options_metavar or "", *arguments]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows = [(_written(param), param.help or "") for param in self._arguments(ctx)]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        records = [param.get_help_record(ctx) for param in self.get_params(ctx) if param.param_type_name == "option"]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record is not None])

    def _arguments(self, ctx: Any) -> list[Any]:
        return [param for param in self.get_params(ctx) if param.param_type_name == "argument"]


def _written(argument: Any) -> str:
    return argument.display_name_raw + ("" if argument.nargs == 1 else "...")


class Verbs(TyperGroup):
    """A verb that has verbs of its own; called without one, it shows its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


def sub_app(summary: str) -> typer.Typer:
    """Makes the application of a verb that has verbs of its own."""
    return typer.Typer(cls=Verbs, help=summary, add_completion=False, rich_markup_mode=None)


def use_root(runs: str | None) -> None:
    """Makes ``--runs`` the folder of runs for this process and for those that it starts."""
    if runs:
        os.environ["WORKBENCH_RUNS"] = runs if "://" in runs else str(Path(runs).absolute())
