"""``workbench inspect``: single errors of a comparison in FiftyOne."""

from typing import Annotated

import typer

from workbench.commands.options import Against, Root, Split, use_root
from workbench.errors import ConfigError, WorkbenchError

OPEN = "The address is yours alone: whoever has it can do in the App what you can (docs/fiftyone.md says what remains open)."


def inspect(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Name of a run, or its path.")] = None,
    against: Against = None,
    split: Split = "val",
    umap: Annotated[bool, typer.Option("--umap", help="Lay out decoder states by UMAP instead of PCA; takes minutes.")] = False,
    app: Annotated[bool, typer.Option("--app/--no-app", help="Serve FiftyOne's App, or only make or update the dataset.")] = True,
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port of the App, or the next free one after it.")] = 5151,
    setup: Annotated[bool, typer.Option("--setup", help="Fetch the MongoDB that FiftyOne needs, unless there is one.")] = False,
    runs: Root = None,
) -> None:
    """Browse single errors in FiftyOne.

    Shows the targets and the boxes of teacher, student and baseline on every image, with saved views such as the objects that the
    student lost.

    Example: workbench inspect bccd-distilled-seed0 --against bccd-undistilled-seed0
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.services import mongo
    from workbench.services.servers import first_to_end, stopped_by_signals
    from workbench.store.run import Run
    from workbench.views.fiftyone.connection import connected

    if setup:
        console.print(Text(f"MongoDB: {mongo.set_up()}"), soft_wrap=True)
    if run is None:
        if not setup:
            raise ConfigError("name a run, or give --setup.")
        return
    use_root(runs)
    opened, baseline = Run.open(run), Run.open(against) if against is not None else None
    with stopped_by_signals(), connected() as database:
        stored = mongo.processes(database)
        # fiftyone reads its settings when it is first imported
        from workbench.views.fiftyone.app import address, serving
        from workbench.views.fiftyone.dataset import INFO, open_comparison

        dataset = open_comparison(opened, baseline, split, "umap" if umap else "pca")
        console.print(Text(f"{dataset.name}: {len(dataset)} images, {len(dataset.list_saved_views())} saved views"), soft_wrap=True)
        for sentence in dataset.info[INFO]["not_defined"]:
            console.print(Text(sentence), soft_wrap=True)
        if app:
            with serving(dataset, database, port) as served:
                console.print(Text(f"FiftyOne: {address(served)}\n{OPEN}\nCtrl-C stops it."), soft_wrap=True)
                try:
                    # the App may have ended because its database did; the message then names the database
                    ended = first_to_end({**stored, "FiftyOne's App (its output is above)": served.process})
                except KeyboardInterrupt:
                    return
                raise WorkbenchError(f"{ended} has ended. Run 'workbench inspect' again.")
