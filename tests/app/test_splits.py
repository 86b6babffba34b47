"""A run whose queries were recorded on the test split too, looked at through every page."""

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.test_logic import page  # noqa: F401 - a fixture
from tests.flows import command
from workbench.analysis.report.summary import table
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run
from workbench.store.states import masked_images, read_masks

STEP = 30


@pytest.fixture(scope="module")
def recorded(runs_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the dashboard, two of them with the queries of the test split."""
    root = Path(shutil.copytree(runs_root, tmp_path_factory.mktemp("recorded") / "runs"))
    for name in ("distilled", "undistilled"):
        code, _, error = command("trace", name, "--split", "test", "--runs", str(root))
        assert code == 0, error
    return root


@pytest.fixture
def split_page(page, recorded: Path):  # noqa: F811 - the fixture
    """Opens a page on these runs."""
    return lambda name, **address: page(name, recorded, **address)


def said(test: AppTest) -> str:
    """Everything that a page says of its charts and tables; a note escapes its punctuation."""
    return " ".join(element.value for element in (*test.caption, *test.text)).replace("\\", "")


def choice(test: AppTest, label: str):
    return next(box for box in test.selectbox if box.label == label)


@pytest.mark.parametrize(
    ("name", "part"),
    [("overview", ""), ("diagnosis", ""), ("stability", ""), ("masks", ""), ("image", ""), ("value", "slots"), ("value", "gain"),
     ("value", "queries"), ("errors", "types"), ("errors", "classes"), ("errors", "images"), ("errors", "slices"),
     ("errors", "lost")],
)  # fmt: skip
def test_every_page_shows_the_split_of_its_address_and_says_so(split_page, name: str, part: str):
    test = split_page(name, run="distilled", split="test", **({"part": part} if part else {}))
    assert not test.exception and not test.error
    assert choice(test, "Split").value == "test" and test.query_params["split"] == "test"
    assert "split test" in said(test) and "split val" not in said(test)


def test_validation_is_shown_unless_another_split_is_asked_for(split_page):
    for name in ("image", "value", "errors", "masks", "stability", "diagnosis", "overview"):
        test = split_page(name, run="distilled")
        assert choice(test, "Split").options == ["val", "test"]
        assert choice(test, "Split").value == "val" and "split test" not in said(test)


def test_a_split_that_the_run_does_not_keep_is_not_offered(split_page):
    test = split_page("image", run="tiny-teacher", split="test")
    assert not test.exception
    assert choice(test, "Split").options == ["val"] and test.query_params["split"] == "val"


def test_the_rows_behind_a_page_are_those_of_its_split(split_page, recorded: Path):
    run = Run(recorded / "distilled")
    rows = {split: read_queries(run, split, [STEP], where="model = 'student' and layer = 1") for split in ("val", "test")}
    counts = {split: f"n = {len(own)} queries of split {split}." for split, own in rows.items()}
    for split, own in rows.items():
        assert counts[split] in said(split_page("value", run="distilled", split=split, part="queries"))
        slots = split_page("value", run="distilled", split=split, part="slots")
        slot = int(slots.query_params["query"])
        shown = slots.dataframe[0].value
        held = own[(own["query"] == slot) & (own["match"] >= 0)]
        assert sorted(shown["image_id"]) == sorted(held["image_id"])
        assert all(("&split=test&" in link) == (split == "test") for link in shown["open"])


def test_an_image_of_the_test_split_is_shown_with_its_own_targets_and_masks(split_page, recorded: Path):
    run = Run(recorded / "distilled")
    rows = read_queries(run, "test", [STEP], where="model = 'student' and layer = 1 and match >= 0")
    image = rows["image_id"].iloc[0]
    test = split_page("image", run="distilled", split="test", image=str(sorted(rows["image_id"].unique()).index(image) + 1))
    targets = next(frame.value for frame in test.dataframe if "student_query" in frame.value and "target" in frame.value)
    own = rows[rows["image_id"] == image].set_index("match")["query"]
    assert targets.set_index("target")["student_query"].dropna().astype(int).to_dict() == own.astype(int).to_dict()
    masks = read_masks(run, "test", TEACHER_STEP, masked_images(run, "test", TEACHER_STEP)[0])
    shown = choice(split_page("masks", run="distilled", split="test"), "Teacher layer")
    assert len(shown.options) == len({layer for layer, _ in masks})


def test_the_summary_is_of_the_queries_of_the_split(split_page, recorded: Path):
    run = Run(recorded / "distilled")
    wanted = table([run], "test").iloc[0]
    shown = split_page("overview", run="distilled", split="test").dataframe[0].value.set_index("run").loc["distilled"]
    assert shown["agreement"] == pytest.approx(100 * wanted["agreement"])
    assert shown["agreement_n"] == wanted["agreement_n"] != table([run], "val").iloc[0]["agreement_n"]


def test_a_report_takes_the_split(recorded: Path, tmp_path: Path):
    out = tmp_path / "report.html"
    code, _, error = command("report", "distilled", "undistilled", "--split", "test", "--runs", str(recorded), "--out", str(out))
    assert code == 0, error
    assert "distilled, test split" in out.read_text() and ", val split" not in out.read_text()
