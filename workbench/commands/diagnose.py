"""``workbench diagnose``: why distillation did nothing, or did harm."""

from workbench.commands.options import Against, Json, Root, RunName, Split, use_root
from workbench.errors import WorkbenchError


def diagnose(
    run: RunName,
    against: Against = None,
    split: Split = "val",
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """Find out why distillation did nothing, or did harm.

    Every cause that is found comes with its evidence and what to do; causes that were ruled out are listed too. A
    teacher that is doubtful on this data is evaluated on it again.

    Example: workbench diagnose bccd-distilled-seed0 --against bccd-undistilled-seed0
    """
    from rich.text import Text

    from workbench.analysis.diagnosis.diagnose import diagnose as find_causes
    from workbench.analysis.diagnosis.length import too_short
    from workbench.analysis.diagnosis.teacher_input import doubtful
    from workbench.commands.console import console
    from workbench.files import write_json
    from workbench.store.run import Run

    use_root(runs)
    found, baseline = Run.open(run), Run.open(against) if against is not None else None
    if doubtful(found):
        from workbench.training.sanity import keep_readings

        try:
            keep_readings(found)
        except WorkbenchError as error:
            console.print(Text(f"the teacher could not be evaluated again: {error}"), soft_wrap=True)
    diagnosis = find_causes(found, baseline, split)
    for finding in diagnosis.findings:
        console.print(Text.assemble((f"{finding.severity}: {finding.cause}", "bold"), f". {finding.statement}"), soft_wrap=True)
        for evidence in finding.evidence:
            console.print(Text(f"    {evidence}"), soft_wrap=True)
        console.print(Text(f"    What to do: {finding.advice}"), soft_wrap=True)
    clear = [check.cause for check in diagnosis.checks if check.outcome == "clear"]
    console.print(Text(f"ruled out: {', '.join(clear) or 'nothing'}"), soft_wrap=True)
    for check in diagnosis.checks:
        if check.outcome == "not judged":
            console.print(Text(f"not judged: {check.cause}, because {check.why}"), soft_wrap=True)
    if any(check.outcome == "not judged" for check in diagnosis.checks) and (short := too_short(found)):
        console.print(Text(short), soft_wrap=True)
    if json_path is not None:
        write_json(json_path, diagnosis.to_json())
