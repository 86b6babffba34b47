import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.ap import DETECTIONS, IMAGES, generated
from benchmarks.harness import Figure, interleaved, median_ratio
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("value", "target", "holds"),
    [
        (50.0, ">= 50", True),
        (49.9, ">= 50", False),
        (1.1, "<= 1.1", True),
        (float("nan"), "<= 1.1", False),
        (float("inf"), ">= 50", False),
        (3.0, None, None),
    ],
)
def test_a_figure_holds_when_its_value_meets_its_target(value, target, holds):
    assert Figure("name", value, "x", target).holds is holds


def test_functions_take_turns_and_the_warm_up_does_not_count():
    calls: list[str] = []
    ticks = itertools.count()
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warmup=1, clock=lambda: float(next(ticks)))
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert {name: list(values) for name, values in seconds.items()} == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_a_ratio_is_taken_within_a_round_so_that_a_slow_round_cancels():
    load = np.array([1.0, 5.0, 2.0, 9.0, 1.0, 3.0, 4.0])
    ratio = median_ratio(1.5 * load, load)
    assert ratio.value == pytest.approx(1.5) and ratio.low == pytest.approx(1.5) and ratio.high == pytest.approx(1.5)


def test_the_interval_of_a_ratio_covers_its_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        ratio = median_ratio(np.exp(rng.normal(np.log(1.2), 0.1, 31)), np.ones(31), seed=trial)
        covered += ratio.low <= 1.2 <= ratio.high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_line_holds_the_figure_and_the_machine_as_json():
    line = json.loads(json.dumps(Figure("step", 1.05, "x", "<= 1.1", (1.0, 1.1), 30).line()))
    assert {key: line[key] for key in ("name", "value", "unit", "target", "holds")} == {
        "name": "step", "value": 1.05, "unit": "x", "target": "<= 1.1", "holds": True,
    }  # fmt: skip
    assert line["machine"]["cpu"] and line["machine"]["cores"] >= 1 and line["machine"]["torch"] and line["machine"]["commit"]


def test_a_name_that_is_not_there_is_refused_with_those_that_are():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "no-such"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and all(name in done.stderr for name in command.NAMES)


def test_every_module_of_the_folder_with_figures_is_registered():
    found = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def figures(" in path.read_text()}
    assert found == {*command.NAMES, *command.APART}


def test_a_missed_target_shows_in_the_exit_status(monkeypatch, capsys):
    module = type(sys)("benchmarks.made_up")
    found = [Figure("good", 1.0, "x", "<= 2"), Figure("bad", 3.0, "x", "<= 2"), Figure("plain", 3.0, "x")]
    module.__dict__["figures"] = lambda: iter(found)
    monkeypatch.setitem(sys.modules, "benchmarks.made_up", module)
    assert command.run_one("made_up") == 1
    assert [json.loads(line)["holds"] for line in capsys.readouterr().out.splitlines()] == [True, False, None]


def test_the_generated_detections_of_the_ap_benchmark_are_as_many_as_it_says_and_the_same_each_time():
    truth, detections = generated()
    assert (len(truth["images"]), len(detections)) == (IMAGES, IMAGES * DETECTIONS) == (2_000, 200_000)
    assert detections.equals(generated()[1])
    assert set(detections.image_id) == {image["id"] for image in truth["images"]}
