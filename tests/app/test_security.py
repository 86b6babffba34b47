"""Only files below the folders of runs and data are shown: climbing paths, absolute paths and links that lead out are refused."""

import http.client
import shutil
import urllib.parse
from pathlib import Path

import pytest

from tests.app.test_logic import copied, page  # noqa: F401 - a fixture
from tests.app.test_pages import OpenPage, exceptions
from tests.patience import patience
from workbench.datasets.coco import write_coco
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.store.run import Run

SECRET = "root:x:0:0"


def get(address: str, path: str) -> bytes:
    """The answer to a path as it is, which no client has tidied."""
    place = urllib.parse.urlparse(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=patience(20))
    connection.putrequest("GET", path, skip_host=False)
    connection.endheaders()
    return connection.getresponse().read()


@pytest.mark.browser
def test_no_path_reaches_a_file_outside(address: str, runs_root: Path):
    secret = runs_root.parent / "secret.txt"
    secret.write_text(SECRET)
    climbs = ("../" * 12, "..%2f" * 12, "%2e%2e/" * 12, "....//" * 12, "..\\" * 12, "/", "file:///")
    for folder in ("", "static/", "app/static/", "media/", "component/", "_stcore/", "vendor/"):
        for climb in climbs:
            for wanted in (secret, runs_root / "distilled" / "run.json", Path("/etc/passwd")):
                answer = get(address, "/" + folder + climb + urllib.parse.quote(str(wanted).lstrip("/")))
                assert SECRET.encode() not in answer
                assert b"format_version" not in answer


def test_names_in_a_link_are_no_paths(page, runs_root: Path):  # noqa: F811
    (runs_root.parent / "outside").mkdir(exist_ok=True)
    for name in ("../outside", str(runs_root / "distilled"), "distilled/../distilled", "/etc", "..\\outside"):
        test = page("training", run=name)
        assert not test.exception
        assert test.query_params["run"] in ("undistilled", "distilled", "tiny-teacher")


def test_a_run_or_a_file_of_it_that_is_a_link_to_elsewhere_is_named_and_not_shown(page, runs_root: Path, tmp_path: Path):  # noqa: F811
    root, outside = copied(runs_root, tmp_path / "runs"), tmp_path / "outside"
    shutil.move(root / "undistilled", outside)
    (root / "undistilled").symlink_to(outside)
    (root / "distilled" / "metrics.jsonl").unlink()
    (root / "distilled" / "metrics.jsonl").symlink_to("/etc/passwd")
    test = page("training", root)
    assert not test.exception
    assert test.selectbox[0].options == ["tiny-teacher"]
    said = " ".join(text.value for text in test.text)
    assert "undistilled is a link that leads out of the folder of runs" in said
    assert "distilled/metrics.jsonl is a link that leads out of the folder of runs" in said


def test_an_image_that_is_a_link_to_elsewhere_is_a_banner(page, runs_root: Path, tmp_path: Path):  # noqa: F811
    file = write_coco(generate_shapes(ShapesConfig(val=6), "val"), tmp_path / "data")
    first = next(iter(sorted(path for path in (tmp_path / "data").rglob("*.png"))))
    shutil.move(first, tmp_path / "outside.png")
    first.symlink_to(tmp_path / "outside.png")
    assert file.is_file()
    root = copied(runs_root, tmp_path / "runs")
    run = Run(root / "distilled")
    recipe = run.info()["recipe"]
    recipe["data"] |= {"path": str(tmp_path / "data"), "format": "coco", "options": {}}
    run.update_info(recipe=recipe, dataset_hash="with a link")
    test = page("image", root, run="distilled", image="1")
    assert not test.exception
    assert [error.value for error in test.error] == ["This image cannot be shown"]
    assert any("is a link that leads out of" in text.value for text in test.text)
    assert not page("image", root, run="distilled", image="2").error


@pytest.mark.browser
def test_a_hostile_name_in_every_part_of_the_link_is_text_or_nothing(hostile_address: str, open_page: OpenPage):
    name = urllib.parse.quote("<img src=x onerror=alert(4)>**bold**$x^2$")
    for path in ("masks", "training", "value", "errors", "stability"):
        keys = ("run", "baseline", "step", "layer", "target", "cell", "query", "box", "area", "error", "slots", "mask", "found", "slice",
                "least", "cause", "class", "size", "rank", "tiles")  # fmt: skip
        opened = open_page(f"{hostile_address}/{path}?" + "&".join(f"{key}={name}" for key in keys))
        assert exceptions(opened) == 0
        assert opened.locator("img[src=x], .katex").count() == 0
