import stat
import sys
from pathlib import Path

import psutil
import pytest
import torch
from packaging.requirements import Requirement

from tests.conftest import ROOT
from workbench.services import doctor, mongo


def program(path: Path, status: int) -> Path:
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def feature(name: str) -> doctor.Feature:
    return next(feature for feature in doctor.report().features if feature.name == name)


def test_the_report_holds_versions_devices_and_sizes_of_this_machine(tmp_path):
    report = doctor.report(tmp_path / "not" / "made" / "yet")
    assert report.versions["torch"] is not None and torch.__version__.startswith(report.versions["torch"].split("+")[0])
    assert report.devices[-1].name == "cpu"
    assert sum(device.name.startswith("cuda") for device in report.devices) == torch.cuda.device_count()
    assert report.cores == psutil.cpu_count()
    assert 0 < report.free_disk <= psutil.disk_usage(str(tmp_path)).total
    assert report.python == ".".join(map(str, sys.version_info[:3]))


def test_the_table_shows_every_version_device_and_feature_and_a_remedy_for_each_gap(monkeypatch):
    installed = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name in ("torch", "optuna") else installed(name))
    monkeypatch.setattr(doctor, "find_conflict", lambda: None)
    report = doctor.report()
    rows = {row["what"]: row for row in report.rows()}
    assert len(rows) == len(report.rows())
    assert {*report.versions, *doctor.FEATURES, *(device.name for device in report.devices)} <= rows.keys()
    assert rows["torch"]["value"] == "not installed"
    assert rows["search"] == {
        "what": "search",
        "value": "missing: optuna is not installed",
        "remedy": "pip install 'distillation-workbench[search]'",
    }
    assert all((row["remedy"] is not None) == str(row["value"]).startswith("missing") for row in report.rows())


def fake_distribution(folder: Path, script: str, version: str = "0.8") -> None:
    """What an installer leaves of a distribution called workbench."""
    kept = folder / f"workbench-{version}.dist-info"
    kept.mkdir()
    (kept / "METADATA").write_text(f"Metadata-Version: 2.4\nName: workbench\nVersion: {version}\n")
    (kept / "entry_points.txt").write_text(f"[console_scripts]\nworkbench = {script}\n")


def test_another_product_called_workbench_is_told_with_how_to_be_rid_of_it(tmp_path, monkeypatch):
    fake_distribution(tmp_path, "workbench.repl.shell:main")
    monkeypatch.syspath_prepend(tmp_path)
    rows = {row["what"]: row for row in doctor.report().rows()}
    assert "another product called 'workbench' is installed (workbench 0.8)" in str(rows["installation"]["value"])
    remedy = str(rows["installation"]["remedy"])
    assert remedy.startswith("pip uninstall workbench, then pip install ") and remedy.endswith(f"--editable {ROOT}")


def test_our_own_copy_of_before_the_new_name_is_not_taken_for_the_other_product(tmp_path, monkeypatch):
    fake_distribution(tmp_path, doctor.CONSOLE_SCRIPT)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    conflict = doctor.find_conflict()
    assert conflict is not None and "under its old name, 'workbench'; it is now called 'distillation-workbench'" in conflict.what
    assert conflict.remedy.startswith("pip uninstall workbench, then ")


def test_where_nothing_else_is_called_workbench_there_is_no_conflict(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert doctor.find_conflict() is None


def test_training_misses_nothing_where_the_tests_run():
    assert feature("train") == doctor.Feature("train", (), None)


def test_an_absent_and_an_outdated_distribution_are_told_apart():
    missing = doctor.unmet([Requirement("no-such-distribution>=1"), Requirement("numpy<1"), Requirement("numpy>=1")])
    assert missing[0] == "no-such-distribution is not installed"
    assert missing[1].startswith("numpy is ") and missing[1].endswith("but <1 is needed")
    assert len(missing) == 2


def test_a_missing_extra_is_named_with_the_command_that_adds_it(monkeypatch):
    installed = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "streamlit" else installed(name))
    app = feature("app")
    assert app.missing == ("streamlit is not installed",)
    assert app.remedy == "pip install 'distillation-workbench[app]'"


def test_fiftyone_without_a_database_is_reported_and_a_given_one_is_accepted(monkeypatch):
    monkeypatch.setattr(doctor, "unmet", lambda wanted: [])
    monkeypatch.setattr(mongo, "find_mongod", lambda: None)
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    remedy = feature("inspect").remedy or ""
    assert "workbench inspect --setup" in remedy and "FIFTYONE_DATABASE_URI" in remedy
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:1")
    assert feature("inspect").missing == ()


def test_the_browser_named_by_the_user_comes_before_the_systems(tmp_path, monkeypatch):
    system = program(tmp_path / "chromium", 0)
    named = program(tmp_path / "mine", 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert doctor.find_browser() == system
    monkeypatch.setenv("CHROMIUM", str(named))
    assert doctor.find_browser() == named


def test_a_browser_that_does_not_start_is_passed_over(tmp_path, monkeypatch):
    program(tmp_path / "chromium", 1)
    chrome = program(tmp_path / "google-chrome", 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert doctor.find_browser() == chrome


@pytest.mark.parametrize("own", [None, "/no/such/browser"])
def test_without_any_browser_the_report_says_how_to_get_one(tmp_path, monkeypatch, own):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(doctor, "_playwright_browser", lambda: own)
    browser = feature("browser tests")
    assert "Chromium" in browser.missing
    assert doctor.HOW_TO_GET_A_BROWSER in (browser.remedy or "")
