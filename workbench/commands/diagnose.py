"""``workbench diagnose``: why distillation did nothing, or harm."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from workbench.errors import WorkbenchError


def diagnose(
    run: Annotated[str, typer.Argument(help="Name of a run.")],
    against: Annotated[str | None, typer.Option("--against", help="Run it is compared with, usually the undistilled one.")] = None,
    split: Annotated[str, typer.Option("--split", help="Whose queries are looked at: val or test.")] = "val",
    runs: Annotated[Path | None, typer.Option("--runs", help="Folder of the runs (default $WORKBENCH_RUNS or ./runs).")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write all of it to this file as JSON.")] = None,
) -> None:
    """Name the causes why distillation did nothing, or harm, each with its evidence; a doubtful teacher is tried again on the data."""
    from workbench.analysis.diagnosis.diagnose import diagnose as find_causes
    from workbench.analysis.diagnosis.teacher_input import doubtful
    from workbench.commands.console import console, use_root
    from workbench.files import write_json
    from workbench.store.run import Run

    use_root(runs)
    found, baseline = Run.open(run), Run.open(against) if against is not None else None
    if doubtful(found):
        from workbench.training.sanity import keep_readings

        try:
            keep_readings(found)
        except WorkbenchError as error:
            console.print(Text(f"the teacher could not be tried again: {error}"), soft_wrap=True)
    diagnosis = find_causes(found, baseline, split)
    for finding in diagnosis.findings:
        console.print(Text.assemble((f"{finding.severity}: {finding.cause}", "bold"), f". {finding.statement}"), soft_wrap=True)
        for evidence in finding.evidence:
            console.print(Text(f"    {evidence}"), soft_wrap=True)
        console.print(Text(f"    What to do: {finding.advice}"), soft_wrap=True)
    clear = [check.cause for check in diagnosis.checks if check.outcome == "clear"]
    console.print(Text(f"looked for and not found: {', '.join(clear) or 'nothing'}"), soft_wrap=True)
    for check in diagnosis.checks:
        if check.outcome == "not judged":
            console.print(Text(f"not judged: {check.cause}, because {check.why}"), soft_wrap=True)
    if json_path is not None:
        write_json(json_path, diagnosis.to_json())
