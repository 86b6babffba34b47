"""``workbench demo``: runs the main job on the embedded data, from training to dashboard."""

from typing import Annotated

import typer

from workbench.commands.options import Json, Root, use_root


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Use short schedules, about a minute. The numbers are not to be quoted.")] = False,
    serve: Annotated[bool, typer.Option("--app/--no-app", help="Open the dashboard at the end.")] = True,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the students.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", help="How many runs to train at a time.")] = 2,
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """Distil on the embedded data, compare, and open the dashboard.

    It trains three students of one seed: without a teacher, with one, and with one in the time that the first student took. The data
    and the teacher come with the workbench. Runs that are finished already are kept.

    Example: workbench demo --quick
    """
    from workbench.commands.console import console, print_summary
    from workbench.commands.dashboard import serve_dashboard
    from workbench.commands.progress import console_watch
    from workbench.tasks.demo import run_demo

    use_root(runs)
    with console_watch(console) as watch:
        table = run_demo(seed, quick, jobs, watch)
    print_summary(table, json_path)
    if quick:
        console.print("--quick: short schedules. These numbers are not to be quoted.")
    if serve:
        serve_dashboard(8501)
