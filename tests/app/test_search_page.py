"""The page of searches, on a search that was made by the project's own loop with a trainer that trains nothing."""

import json
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from streamlit.testing.v1 import AppTest

from tests.app.conftest import serving, settle
from tests.app.test_structure import DRAWN, LOST, STRUCTURE
from tests.conftest import ROOT
from tests.patience import patience, wait_until
from tests.search.examples import opened
from tests.search.test_shown import Refusing, optuna_trials
from tests.shared_runs import shared_copy
from workbench.search.candidate import Outcome
from workbench.search.equation import equation
from workbench.search.found import candidate_of
from workbench.search.shown import space_table, trial_table
from workbench.search.study import SearchStudy
from workbench.search.workers import work
from workbench.views import search as views
from workbench.views.search_space import SpaceAxes
from workbench.views.style import plain

HOSTILE = "<img src=x onerror=alert(1)> **bold** $x$ :red[r] %{y}"
# place on the page, and number, of a trained trial that is not chosen
OTHER_MARK = """chosen => {
  const chart = document.querySelector('.js-plotly-plot'), {xaxis, yaxis} = chart._fullLayout, corner = chart.getBoundingClientRect();
  const marks = chart.data.find(trace => trace.name?.startsWith('trained'));
  const index = [...marks.customdata].findIndex(([number]) => number !== chosen), number = marks.customdata[index][0];
  return [corner.left + xaxis._offset + xaxis.l2p(marks.x[index]), corner.top + yaxis._offset + yaxis.l2p(marks.y[index]), number];
}"""
# corners of a box on the page that crosses the first axis at the place of its uppermost choice alone
BOX_AT_THE_TOP = """choices => {
  const chart = document.querySelector('.js-plotly-plot'), {xaxis, yaxis} = chart._fullLayout, corner = chart.getBoundingClientRect();
  const at = (x, y) => [corner.left + xaxis._offset + xaxis.l2p(x), corner.top + yaxis._offset + yaxis.l2p(y)];
  return [...at(-0.15, 1), ...at(0.15, 1 - 0.5 / choices)];
}"""
PARTS = ("trials", "best", "survivors", "space", "gates", "searches")


def make_search(root: Path) -> None:
    search = opened(root / "tried", inputs=["logits", "localization"], trials=14, repeated=3, unpruned=5, seeded=True)
    assert work(search, Refusing(noise=0.1))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_copy(tmp_path_factory, "searches", lambda folder: make_search(folder / "searches")) / "searches"


@pytest.fixture
def root(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "searches"))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Runs the page on a folder of searches."""
    monkeypatch.syspath_prepend(str(ROOT / "app"))

    def run(root: Path, **address: str) -> AppTest:
        monkeypatch.setenv("WORKBENCH_SEARCHES", str(root))
        test = AppTest.from_file(str(ROOT / "app" / "screens" / "search.py"), default_timeout=patience(60))
        for key, value in address.items():
            test.query_params[key] = value
        return test.run()

    return run


def figure(test: AppTest, key: str) -> dict[str, Any]:
    """The figure whose element has that name, as the browser gets it."""
    found = next(element for element in test.get("plotly_chart") if key in element.proto.id)
    return json.loads(found.proto.spec)


def metrics(test: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in test.metric}


def said(test: AppTest) -> str:
    return " ".join(str(e.value) for kind in (test.caption, test.text, test.error, test.info) for e in kind).replace("\\", "")


def test_without_a_search_the_page_says_what_to_run(page, tmp_path: Path):
    test = page(tmp_path / "none")
    assert not test.exception
    assert [heading.value for heading in test.subheader] == ["No searches yet"]
    assert test.code[0].value == f"WORKBENCH_SEARCHES={tmp_path / 'none'} workbench search shapes_fcos --workers 2"


def test_a_search_without_trials_says_so(page, tmp_path: Path):
    opened(tmp_path / "tried")
    test = page(tmp_path)
    assert not test.exception
    assert [info.value for info in test.info] == ["No trial yet"]


def test_the_headline_is_what_the_trials_say(page, root: Path):
    search = SearchStudy.read(root / "tried")
    shown = metrics(page(root, study="logits"))
    trials = [one for one in optuna_trials(search, "logits") if "repeat_of" not in one.user_attrs]
    trained = [one for one in trials if one.state.name == "COMPLETE" or one.user_attrs.get("gate") == "rung"]
    assert shown["Trials trained"] == f"{len(trained)} of {search.plan.trials}"
    fresh: dict[int, list[float]] = {}
    for one in optuna_trials(search, "logits"):
        if "repeat_of" in one.user_attrs and one.state.name == "COMPLETE":
            fresh.setdefault(one.user_attrs["repeat_of"], []).append(100 * one.value)
    best = max(np.mean(values) for values in fresh.values())
    assert shown["Best AP, fresh seeds"].startswith(f"{best:.1f} (")
    spread = np.sqrt(np.mean([np.var(values, ddof=1) for values in fresh.values()]))  # two values each
    assert shown["Spread between seeds"] == f"{spread:.2f} AP"
    seconds = sum(
        one.user_attrs.get("seconds", 0) for study in ("logits", "localization", "shares") for one in optuna_trials(search, study)
    )
    assert shown["Cost so far"] == (f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min")


def test_the_trials_of_the_journal_are_drawn(page, root: Path):
    drawn = {trace.get("name", ""): trace for trace in figure(page(root, study="logits", part="trials"), "search-trials")["data"]}
    trials = [one for one in optuna_trials(SearchStudy.read(root / "tried"), "logits") if "repeat_of" not in one.user_attrs]
    done = sorted(100 * one.value for one in trials if one.state.name == "COMPLETE")
    refused = [one for one in trials if one.user_attrs.get("gate") == "R1"]
    assert sorted(drawn[f"trained to its end ({len(done)})"]["y"]) == pytest.approx(done)
    assert f"refused by a gate ({len([t for t in trials if t.user_attrs.get('gate') in ('R0', 'R1')])})" in drawn
    assert refused


def test_a_chosen_trial_shows_its_equation_its_code_and_its_recipe(page, root: Path):
    search = SearchStudy.read(root / "tried")
    record = next(one for one in search.records("logits") if one.value is not None and not one.repeat)
    test = page(root, study="logits", trial=str(record.number))
    genotype = candidate_of(record).shares[0][0]
    assert [equation(genotype, "corrected") in block.value for block in test.latex] == [True]
    assert yaml.safe_load(test.code[0].value)["methods"][0] == candidate_of(record).method("corrected")
    table = test.dataframe[0].value
    assert table["choice"].tolist() == [genotype.t3, genotype.distance]
    for row in table.itertuples():
        assert (ROOT / row.file).read_text(encoding="utf-8").splitlines()[row.line - 1].startswith(f"def {row.function}(")


def test_of_many_trials_the_best_are_listed_with_the_chosen_one_and_any_other_is_chosen_by_its_number(
    page, root: Path, monkeypatch: pytest.MonkeyPatch
):
    everyone = page(root, study="logits", part="trials").selectbox(key="trial").options
    assert len(everyone) > 6
    monkeypatch.setattr(views, "OFFERED", 3)
    table = trial_table(SearchStudy.read(root / "tried").records("logits"))
    firsts = table[~table["repeat"]]
    best = set(firsts.nlargest(3, "ap")["number"].tolist())
    unlisted, other = [number for number in firsts["number"].tolist() if number not in best][:2]
    test = page(root, study="logits", part="trials", trial=str(unlisted))
    listed = {int(option.split(" ")[0]) for option in test.selectbox(key="trial").options}
    assert listed == best | {unlisted}
    test.number_input(key="trial_number").set_value(other).run()
    assert test.selectbox(key="trial").value == other
    assert test.query_params["trial"] in (str(other), [str(other)])


def test_another_trial_is_in_the_address_and_pointed_at(page, root: Path):
    test = page(root, study="logits", part="trials")
    numbers = [int(option.split(" ")[0]) for option in test.selectbox(key="trial").options]
    other = next(number for number in numbers if number != test.selectbox(key="trial").value)
    test.selectbox(key="trial").set_value(other).run()
    assert test.query_params["trial"] in (str(other), [str(other)])
    assert figure(test, "search-trials")["data"][-1]["marker"]["size"] == 16  # the ring around it


@pytest.mark.parametrize("study", ["logits", "localization", "shares"])
@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_drawn_for_every_study_and_is_in_the_address(page, root: Path, part: str, study: str):
    test = page(root, part=part, study=study)
    assert not test.exception and not test.error
    assert (test.query_params["part"], test.query_params["study"], test.query_params["search"]) == (part, study, "tried")


def test_tables_of_the_other_parts_are_those_of_the_journal(page, root: Path):
    trials = optuna_trials(SearchStudy.read(root / "tried"), "logits")
    gates = page(root, part="gates", study="logits")
    costs = gates.dataframe[0].value.set_index("what")
    rungs = [one for one in trials if one.user_attrs.get("gate") == "rung"]
    assert costs.loc["ended at a rung", "trials"] == len(rungs)
    assert costs["trials"].sum() == len(trials)
    bars = {trace["name"]: sum(trace["x"]) for trace in figure(gates, "search-rejections")["data"]}
    assert bars["rung"] == len(rungs)
    survivors = page(root, part="survivors", study="logits").dataframe[0].value
    assert survivors.groupby("position")["share"].sum().tolist() == pytest.approx([100, 100])
    listed = page(root, part="space", study="logits").dataframe[0].value
    done = [100 * one.value for one in trials if one.state.name == "COMPLETE" and "repeat_of" not in one.user_attrs]
    assert listed["ap"].tolist() == pytest.approx(sorted(done, reverse=True))
    means = figure(page(root, part="best", study="logits"), "search-means")["data"][1]
    repeats = [100 * one.value for one in trials if "repeat_of" in one.user_attrs and one.state.name == "COMPLETE"]
    assert sorted(means["x"]) == pytest.approx(sorted(repeats))


def test_lists_and_limits_keep_trials_and_are_in_the_address(page, root: Path):
    test = page(root, part="space", study="logits")
    whole = test.dataframe[0].value
    distance = whole["distance"].iloc[0]
    test.multiselect(key="keep_distance").set_value([distance]).run()
    kept = test.dataframe[0].value
    assert kept["number"].tolist() == whole.loc[whole["distance"] == distance, "number"].tolist() != whole["number"].tolist()
    assert f"n = {len(kept)} of {len(whole)} trials" in said(test)
    test.number_input(key="keep_low").set_value(float(kept["ap"].iloc[0]) - 0.005).run()
    assert test.dataframe[0].value["number"].tolist() == kept["number"].tolist()[:1]
    kept_distance, low = (test.query_params[name] for name in ("keep_distance", "keep_low"))
    assert kept_distance in (distance, [distance])
    assert float(low if isinstance(low, str) else low[0]) == pytest.approx(kept["ap"].iloc[0], abs=0.011)
    again = page(root, part="space", study="logits", keep_distance=distance)
    assert again.dataframe[0].value["number"].tolist() == kept["number"].tolist()


def test_a_trial_that_ends_while_the_page_is_open_appears(page, root: Path):
    test = page(root, study="logits")
    before = metrics(test)["Trials trained"].split()
    worker = opened(root / "tried", inputs=["logits", "localization"], trials=20, repeated=3, unpruned=5, seeded=True)
    asked = worker.ask("logits")
    running = test.run()
    assert "running" in running.metric[0].delta
    worker.tell(asked, Outcome(0.45, {50: 0.2, 100: 0.45}, seconds=2.0))
    after = metrics(test.run())["Trials trained"].split()
    assert (int(after[0]), after[2]) == (int(before[0]) + 1, "20")


def test_a_name_with_markup_is_text_and_a_reason_too(page, root: Path):
    (root / "tried").rename(root / HOSTILE.replace("/", ""))
    journal = root / HOSTILE / "journal.log"
    hostile = json.dumps(HOSTILE)[1:-1]
    journal.write_text(journal.read_text().replace("its gradient is too small", hostile))
    (root / HOSTILE / "locks" / "journal").unlink()
    for part in PARTS:
        test = page(root, part=part, study="logits")
        assert not test.exception and not test.error
        assert test.selectbox(key="search").options == [HOSTILE]
        shown = [str(e.value) for kind in (test.markdown, test.caption) for e in kind]
        assert not [text for text in shown if HOSTILE in text]  # a note escapes it
    gates = json.dumps(figure(page(root, part="gates", study="logits"), "search-rejections"))
    assert HOSTILE not in gates and json.dumps(plain(HOSTILE))[1:-1] in gates


def test_a_damaged_journal_is_a_banner(page, root: Path):
    (root / "tried" / "journal.log").write_text("no journal\n" * 3)
    test = page(root)
    assert not test.exception
    assert [error.value for error in test.error] == ["This search cannot be shown"]
    assert "journal.log" in said(test)


@pytest.fixture
def served(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("WORKBENCH_SEARCHES", str(root))
    with serving(tmp_path / "runs") as address:
        yield address


@pytest.mark.browser
def test_the_page_is_whole_in_both_themes_and_follows_the_journal(served: str, root: Path, open_page: Any):
    charts = {"trials": (1, 1), "best": (1, 0), "survivors": (1, 1), "space": (1, 1), "gates": (2, 1), "searches": (0, 1)}
    for part, counts in charts.items():
        page = open_page(f"{served}/search?study=logits&part={part}")
        page.wait_for_function(DRAWN, arg=list(counts))
        settle(page)
        found = page.evaluate(STRUCTURE)
        assert found["kinds"][:4] == [*counts, 0, 0]
        assert found["overflow"] <= 0
        assert page.locator(".katex-error").count() == 0
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            page.wait_for_function("dark => (getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
                                   ".match(/\\d+/g)[0] < 128) === dark", arg=theme == "dark")  # fmt: skip
            assert page.evaluate(LOST) == []
    page = open_page(f"{served}/search?study=logits&part=space")
    page.wait_for_function(DRAWN, arg=[1, 1])
    settle(page)
    axes = SpaceAxes(*space_table(SearchStudy.read(root / "tried").records("logits")))
    left, top, right, bottom = page.evaluate(BOX_AT_THE_TOP, len(axes.choices["t3"]))
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(right, bottom, steps=5)
    page.mouse.up()
    page.wait_for_url(re.compile("keep_t3="))
    kept = urllib.parse.parse_qs(urllib.parse.urlparse(page.url).query)["keep_t3"]
    assert kept == [axes.choices["t3"][-1]]
    page = open_page(f"{served}/search?study=logits&part=trials")
    page.wait_for_function(DRAWN, arg=[1, 1])
    worker = opened(root / "tried", inputs=["logits", "localization"], trials=20, repeated=3, unpruned=5, seeded=True)
    worker.tell(worker.ask("logits"), Outcome(0.45, {50: 0.2, 100: 0.45}, seconds=2.0))
    told = page.locator("[data-testid=stMetricValue]").first
    wait_until(lambda: told.text_content().strip() == "15 of 20", what=lambda: told.text_content())
    settle(page)
    chosen = urllib.parse.parse_qs(urllib.parse.urlparse(page.url).query)["trial"][0]
    x, y, number = page.evaluate(OTHER_MARK, int(chosen))
    page.mouse.click(x, y)
    page.wait_for_url(re.compile(rf"[?&]trial={number}(&|$)"))
    page.wait_for_function("number => [...document.querySelectorAll('.st-key-trial *')].some("
                           "element => (element.value || element.textContent).startsWith(`${number} · `))", arg=number)  # fmt: skip
