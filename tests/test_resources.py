import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workbench import resources as share
from workbench.errors import WorkbenchError

KINDS = ("app", "recipes", "data")


def test_a_checkout_finds_its_own_app_recipes_and_data():
    assert [share.share_path(kind) for kind in KINDS] == [ROOT / kind for kind in KINDS]


def test_a_missing_folder_is_an_error_that_names_it(monkeypatch, tmp_path):
    monkeypatch.setattr(share, "checkout_root", lambda: tmp_path)
    with pytest.raises(WorkbenchError, match="'recipes' is missing"):
        share.share_path("recipes")


def test_the_commit_is_marked_when_a_tracked_file_differs_but_not_for_results_or_new_files(monkeypatch, tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    monkeypatch.setattr(share, "checkout_root", lambda: tmp_path)
    assert share.code_commit() is None
    git("init", "-q")
    write("code.py", "1")
    write("benchmarks/results/ap.jsonl", "1")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "--short=12", "HEAD")
    write("benchmarks/results/ap.jsonl", "2")
    write("notes.txt", "new")
    assert share.code_commit() == head
    write("code.py", "2")
    assert share.code_commit() == head + "+"


def test_an_installed_wheel_has_no_commit(monkeypatch):
    monkeypatch.setattr(share, "checkout_root", lambda: None)
    assert share.code_commit() is None
