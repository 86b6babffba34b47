"""The table of runs behind the button "Table" of Match stability, in a browser."""

import re
from pathlib import Path

import pytest

from tests.app.conftest import settle
from tests.app.test_pages import OpenPage
from tests.patience import wait_until
from workbench.store.run import Run

pytestmark = pytest.mark.browser


def test_the_table_of_match_stability_opens_with_every_run_of_the_split_and_the_number_chosen(
    address: str, runs_root: Path, open_page: OpenPage
):
    page = open_page(f"{address}/stability?run=distilled&compared=distilled&split=val")
    said = re.compile(r"(\d+) of (\d+) runs listed, (\d+) chosen\.")
    assert not said.search(page.locator("body").inner_text())
    page.locator(".st-key-compared-popover button").first.click()
    settle(page)
    wait_until(lambda: said.search(page.locator("body").inner_text()), 20, what=lambda: "the number of runs in the table,")
    found = said.search(page.locator("body").inner_text())
    there = [folder.name for folder in runs_root.iterdir() if (folder / "run.json").is_file() and Run(folder).query_steps("val")]
    assert found and list(map(int, found.groups())) == [len(there), len(there), 1]
