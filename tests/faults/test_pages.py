"""Every page on runs of which one file each is damaged, and with odd values in its address: a banner, never a traceback."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT
from tests.faults.counting import tried
from tests.faults.damages import DAMAGES, LOGS, TABLES, make_run
from tests.patience import patience

PAGES = ("overview", "diagnosis", "training", "stability", "value", "masks", "image", "error_types", "caches_and_runs")
# what a page does not read is not damaged for it
READ = {
    "training": LOGS, "caches_and_runs": (*LOGS, TABLES[1]), "diagnosis": (*LOGS, *TABLES), "masks": TABLES[1:], "image": TABLES[1:],
    "error_types": TABLES[:1], "value": TABLES[:6], "stability": TABLES[:6], "overview": (*LOGS, *TABLES[:6]),
}  # fmt: skip
KEYS = (
    "run", "split", "step", "baseline", "compared", "lines", "layer", "first", "target", "image", "score", "mask", "opacity", "mask_layer",
    "level", "query", "slots", "resampled", "property", "box", "area", "part", "cell", "error", "model",
)  # fmt: skip
ODD = (
    "²-1",
    "-",
    "1-²",
    "٣-1",
    "9" * 400,
    "1e400",
    "nan",
    "\udcff".encode("utf-8", "surrogatepass").hex(),
    "\0",
    "1-1-1",
    "_",
    "a_b",
    "²_²",
)
Page = Callable[..., AppTest]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    """Runs one page on a folder of runs."""
    monkeypatch.syspath_prepend(str(ROOT / "app"))

    def run(name: str, root: Path, **address: str) -> AppTest:
        monkeypatch.setenv("WORKBENCH_RUNS", str(root))
        test = AppTest.from_file(str(ROOT / "app" / "screens" / f"{name}.py"), default_timeout=patience(60))
        for key, value in address.items():
            test.query_params[key] = value
        return test.run()

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("whole") / "good").path


@pytest.mark.parametrize("name", PAGES)
def test_a_page_about_a_damaged_run_has_a_banner_and_no_traceback(name: str, page: Page, whole: Path, tmp_path: Path):
    """Each file is damaged in another way, and the ways change from page to page."""
    root = tmp_path / "runs"
    shutil.copytree(whole, root / "good", ignore=shutil.ignore_patterns("checkpoints"))
    ways = list(DAMAGES.values())
    for number, file in enumerate(READ[name]):
        folder = root / f"run-{number}"
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("checkpoints"))
        ways[(number + PAGES.index(name)) % 4](folder / file)
    shown = page(name, root, run="good", compared="good")
    assert not shown.exception and not shown.error, [error.value for error in (*shown.exception, *shown.error)]
    banners = 0
    for number, file in enumerate(READ[name]):
        tried()
        shown = page(name, root, run=f"run-{number}", compared=f"run-{number}")
        assert not shown.exception, f"{file}: {shown.exception[0].value}"
        banners += bool([*shown.error, *shown.warning])
    assert banners or name == "caches_and_runs"


@pytest.mark.parametrize("name", PAGES)
def test_odd_values_in_an_address_are_text_that_is_not_found(name: str, page: Page, whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "runs" / "good", ignore=shutil.ignore_patterns("checkpoints"))
    for odd in ODD:
        tried()
        shown = page(name, tmp_path / "runs", **dict.fromkeys(KEYS, odd))
        assert not shown.exception, f"{odd!r}: {shown.exception[0].value}"
    for key in KEYS if name in ("stability", "error_types", "value") else ():
        tried()
        shown = page(name, tmp_path / "runs", run="good", **({key: "²-1"} if key != "run" else {}))
        assert not shown.exception, f"{key}: {shown.exception[0].value}"


def test_a_damaged_run_hides_no_other_on_any_page(page: Page, whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "good", ignore=shutil.ignore_patterns("checkpoints"))
    for number, content in enumerate(
        ("", "[]", "null", '{"a":' * 100_000, '{"format_version": 1e999}', '{"format_version": 1, "recipe": 3}')
    ):
        (tmp_path / f"bad-{number}").mkdir()
        (tmp_path / f"bad-{number}" / "run.json").write_text(content)
    for name in PAGES:
        shown = page(name, tmp_path)
        assert not shown.exception, name
        said = " ".join(text.value for text in shown.text)
        assert all(f"bad-{number}" in said for number in range(6)), name
        if name not in ("caches_and_runs", "overview", "stability"):
            assert "good" in shown.selectbox[0].options[0]
