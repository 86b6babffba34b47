"""What is installed is what is declared, and a wheel holds all that a checkout has."""

import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import ROOT
from workbench.errors import DISTRIBUTION, pip_install
from workbench.services import doctor

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "all"}
SHARED = ("app", "recipes", "data")


def parsed(lines: list[str]) -> set[Requirement]:
    requirements = [Requirement(line) for line in lines]
    assert len({requirement.name for requirement in requirements}) == len(requirements), "a dependency is named twice"
    return set(requirements)


def test_the_conda_environment_names_the_dependencies_of_pyproject_and_all_its_extras():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    assert pip[0] == "--editable ."
    declared = PROJECT["dependencies"] + [line for lines in EXTRAS.values() for line in lines]
    assert parsed(pip[1:]) == parsed(declared)
    assert f"python{PROJECT['requires-python']}" in environment


def test_the_extra_all_holds_every_other_extra():
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(line).name == PROJECT["name"]
    assert Requirement(line).extras == set(EXTRAS)
    assert set(EXTRAS) == {"app", "inspect", "notebooks", "search", "export", "pretrained", "docs", "dev"}


def test_the_name_that_messages_tell_people_to_install_is_the_declared_one():
    assert PROJECT["name"] == DISTRIBUTION
    assert {extra for extra in doctor.FEATURES.values() if extra} == set(EXTRAS)
    assert Requirement(pip_install("inspect").removeprefix("pip install ").strip("'")).extras == {"inspect"}


def test_everything_declared_is_installed_in_its_range_where_the_tests_run():
    assert doctor.unmet([Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["app"]]) == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_a_wheel_holds_every_tracked_file_of_the_package_and_of_its_folders_and_nothing_at_the_top(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", "workbench", *SHARED], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = [line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    expected = {line if line.startswith("workbench/") else f"workbench/_share/{line}" for line in tracked}
    assert expected <= names
    assert {name.split("/")[0] for name in names} == {"workbench"}


def installed(wheel: Path, folder: Path) -> Path:
    """The site-packages of a fresh environment with the wheel; its dependencies are those of the environment the tests run in."""
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return site


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the environment's Python inside ``folder``, far from the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(folder / "venv" / "bin" / "python"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_an_installed_wheel_works_far_from_the_checkout(wheel, tmp_path):
    site = installed(wheel, tmp_path)
    script = (
        "import importlib.util, json, sys, workbench\n"
        "from importlib.metadata import distribution\n"
        "from workbench.resources import share_path\n"
        "print(json.dumps([str(share_path(kind)) for kind in ('app', 'recipes', 'data')] + [workbench.__file__]))\n"
        "assert importlib.util.find_spec('app') is None, 'a top-level package called app'\n"
        "sys.argv = ['workbench', *sys.argv[1:]]\n"
        "(command,) = distribution('distillation-workbench').entry_points.select(group='console_scripts', name='workbench')\n"
        "command.load()()\n"
    )
    done = python(tmp_path, "-c", script, "doctor", "--json", "doctor.json")
    paths = json.loads(done.stdout.splitlines()[0])
    assert paths == [str(site / "workbench" / "_share" / kind) for kind in SHARED] + [str(site / "workbench" / "__init__.py")]
    rows = {row["what"]: row["value"] for row in json.loads((tmp_path / "doctor.json").read_text())}
    assert rows["train"] == rows["app"] == "ready"
    assert "from what was installed" not in rows["installation"] and "another product" not in rows["installation"]


def test_a_wheel_whose_files_another_product_has_overwritten_says_so(wheel, tmp_path):
    site = installed(wheel, tmp_path)
    (site / "workbench" / "__init__.py").write_text('"""Another workbench."""\n')
    python(tmp_path, "-m", "workbench", "doctor", "--json", "doctor.json")
    rows = {row["what"]: row for row in json.loads((tmp_path / "doctor.json").read_text())}
    assert "workbench/__init__.py differs from what was installed" in rows["installation"]["value"]
    assert rows["installation"]["remedy"] == "pip install --force-reinstall --no-deps distillation-workbench"
