"""``workbench predict``: detections on images of your own."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.commands.options import Detector, Device, Root, use_root


def predict(
    detector: Detector,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="An image, or a folder of images.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for results.json and the drawn images.")] = Path(
        "predictions"
    ),
    threshold: Annotated[
        float, typer.Option("--threshold", metavar="SCORE", help="Draw detections with at least this score; results.json holds all.")
    ] = 0.3,
    device: Device = "auto",
    runs: Root = None,
) -> None:
    """Detect objects in your images, as COCO results and as pictures.

    A folder that holds predictions already is refused.

    Example: workbench predict bccd-distilled-seed0 photos/ --out found
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.tasks.predict import predict as predict_images

    use_root(runs)
    found = predict_images(detector, images, out, threshold, device)
    console.print(Text(f"{found.images} images, {found.detections} detections: {out}/results.json and {out}/drawn/"), soft_wrap=True)
    for line in found.skipped:
        console.print(Text(f"skipped {line}"))
