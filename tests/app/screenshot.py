"""Pictures of the dashboard for the README: python -m tests.app.screenshot RUNS [FOLDER], by default into docs/images."""

import argparse
import urllib.parse
from pathlib import Path
from typing import Any

from tests.app.conftest import serving, settle
from tests.patience import patient, wait_until
from workbench.services.doctor import HOW_TO_GET_A_BROWSER, find_browser
from workbench.store.queries import TEACHER_STEP
from workbench.store.states import masked_images, read_masks
from workbench.views.catalog import VALIDATION, catalog

WIDTH = 1400
HEIGHTS = {"overview": 1070, "image": 740}


def take(browser: Any, root: Path, folder: Path, image: int = 1) -> list[Path]:
    """Takes both pages; the image page of the distilled run of the first comparison in ``root``, with its teacher's selection mask.

    Args:
        browser: of playwright.
        root: of the runs.
        folder: for the pictures.
        image: position in the validation split.
    """
    usable = [entry for entry in catalog(root) if not entry.problem and masked_images(entry.run, VALIDATION, TEACHER_STEP)]
    distilled = next((entry for entry in usable if entry.arm == "distilled"), usable[-1])
    some_image = masked_images(distilled.run, VALIDATION, TEACHER_STEP)[0]
    layer, level = max(read_masks(distilled.run, VALIDATION, TEACHER_STEP, some_image))
    state = {"run": distilled.run.name, "image": image, "mask": f"layer {layer}, level {level}"}
    compared = [("run", entry.run.name) for entry in usable if (entry.recipe, entry.seed) == (distilled.recipe, distilled.seed)]
    paths = {"overview": f"/?{urllib.parse.urlencode(compared)}", "image": f"/image?{urllib.parse.urlencode(state)}"}
    folder.mkdir(parents=True, exist_ok=True)
    with serving(root) as address:
        for name, path in paths.items():
            page = patient(browser.new_page(viewport={"width": WIDTH, "height": HEIGHTS[name]}, color_scheme="light"))
            page.goto(address + path)
            settle(page)
            page.wait_for_selector(".js-plotly-plot .main-svg")
            (folder / f"{name}.png").write_bytes(still(page))
            page.close()
    return [folder / f"{name}.png" for name in paths]


def still(page: Any) -> bytes:
    """Takes pictures of a page until two in a row are the same: its charts are drawn and its animations have ended."""
    taken = [b"", page.screenshot()]

    def same() -> bool:
        taken[:] = [taken[1], page.screenshot()]
        return taken[0] == taken[1]

    wait_until(same, what=lambda: "a picture that stands still")
    return taken[1]


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/images"))
    parser.add_argument("--image", type=int, default=1, help="Position in the validation split.")
    arguments = parser.parse_args()
    executable = find_browser()
    if executable is None:
        raise SystemExit(HOW_TO_GET_A_BROWSER)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(executable), args=["--no-sandbox"])
        take(browser, arguments.runs, arguments.folder, arguments.image)


if __name__ == "__main__":
    main()
