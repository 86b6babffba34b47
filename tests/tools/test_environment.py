import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools import browser, environment


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A project of its own; the commands that set-up would run are collected instead, and succeed."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "TOOLS", tmp_path / ".venv-tools")
    commands: list[list[str]] = []

    def run(command: list[str]) -> bool:
        commands.append(command)
        (tmp_path / ".venv").mkdir(exist_ok=True)
        return True

    monkeypatch.setattr(environment, "run", run)
    monkeypatch.setattr(environment, "find_uv", lambda: "uv")
    return commands


def test_a_second_call_does_nothing_until_pyproject_changes(project):
    assert environment.main("app") == 0 and len(project) == 2
    assert environment.main("app") == 0 and len(project) == 2
    (environment.ROOT / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert environment.main("app") == 0 and len(project) == 4


def test_an_environment_made_for_the_tests_serves_the_demo_but_not_the_other_way_round(project):
    environment.main("app")
    made = len(project)
    environment.main("all")
    assert len(project) > made
    made = len(project)
    environment.main("app")
    assert len(project) == made


def test_a_failed_installation_leaves_no_stamp_and_fails(project, monkeypatch, capsys):
    monkeypatch.setattr(environment, "run", lambda command: False)
    assert environment.main("app") == 1
    assert "could not be made" in capsys.readouterr().out
    assert not list(environment.ROOT.glob(".venv/stamp-*"))


def test_pip_does_the_work_where_uv_cannot(project, monkeypatch):
    tried: list[str] = []

    def run(command: list[str]) -> bool:
        tried.append(command[0])
        environment.VENV.mkdir(exist_ok=True)
        return command[0] != "uv"

    monkeypatch.setattr(environment, "run", run)
    assert environment.main("app") == 0
    assert tried[0] == "uv" and tried[-1] == str(environment.BIN / "python")


def test_an_environment_of_another_python_is_made_anew(project):
    other = environment.VENV / "lib" / "python3.9"
    other.mkdir(parents=True)
    assert environment.main("app") == 0
    assert not other.exists()


def test_an_environment_with_a_distribution_called_workbench_is_made_anew(project):
    other = environment.VENV / "lib" / "python3.11" / "site-packages" / "workbench-0.1.0.dist-info"
    (environment.VENV / "lib" / f"python{environment.sys.version_info.major}.{environment.sys.version_info.minor}").mkdir(parents=True)
    other.mkdir(parents=True)
    assert environment.main("app") == 0
    assert not other.exists() and len(project) == 2


def test_a_python_that_is_too_old_is_refused_before_anything_is_made(project, monkeypatch, capsys):
    monkeypatch.setattr(environment.sys, "version_info", (3, 10, 4))
    assert environment.main("app") == 1
    assert project == [] and "3.11 or 3.12 is needed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("system", "processor", "driver", "asked", "constraint"),
    [
        ("linux", "x86_64", None, "", "torch>=2.14"),
        ("linux", "x86_64", "/usr/bin/nvidia-smi", "", None),
        ("linux", "aarch64", None, "", None),
        ("darwin", "arm64", None, "", None),
        ("linux", "x86_64", None, "2.11.0", "torch==2.11.0"),
    ],
)
def test_a_linux_machine_without_a_gpu_asks_for_a_recent_torch_unless_a_version_is_named(
    monkeypatch, system, processor, driver, asked, constraint
):
    monkeypatch.setattr(environment.sys, "platform", system)
    monkeypatch.setattr(environment.platform, "machine", lambda: processor)
    monkeypatch.setattr(environment.shutil, "which", lambda name: driver)
    monkeypatch.setenv("TORCH", asked)
    assert environment.constraint() == constraint


def test_without_a_browser_and_without_the_right_to_install_one_setup_fails_and_says_how_to_get_one(monkeypatch, capsys):
    monkeypatch.setattr(browser, "find_browser", lambda: None)
    monkeypatch.setattr(browser.os, "geteuid", lambda: 1000)
    assert browser.main() == 1
    assert "apt-get install chromium" in capsys.readouterr().out


def test_root_on_debian_gets_debians_browser(monkeypatch, capsys):
    installed: list[list[str]] = []
    monkeypatch.setattr(browser, "find_browser", lambda: "/usr/bin/chromium" if installed else None)
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    monkeypatch.setattr(browser.shutil, "which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr(browser.subprocess, "run", lambda command, **_: installed.append(command))
    assert browser.main() == 0
    assert installed[-1][:2] == ["apt-get", "install"] and installed[-1][-1] == "chromium"


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make as from a shell, although the tests themselves may run under make."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key not in ("APP", "PYTHON")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("arguments", "command"), [([], "demo"), (["APP=0"], "demo --no-app")])
def test_make_demo_runs_the_main_job_and_app_0_leaves_the_dashboard_out(arguments, command):
    done = make("-n", "demo", *arguments)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].strip() == f".venv/bin/workbench {command}"


def test_make_without_a_python_says_which_one_is_needed():
    done = make("environment", "PYTHON=")
    assert done.returncode != 0 and "Python 3.11 or 3.12 is needed" in done.stdout
