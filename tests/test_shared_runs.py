"""What several workers read is made once, also where one of them fails, and is nobody's to change."""

import threading
from pathlib import Path

import pytest

from tests.shared_runs import shared_copy


def test_of_workers_that_ask_at_one_moment_one_makes_it_and_each_has_a_copy_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    made: list[Path] = []
    copies: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "run").write_text("as it was made")

    def ask() -> None:
        copies.append(shared_copy(tmp_path_factory, f"asked-by-{tmp_path_factory.getbasetemp().name}", make))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(set(copies)) == 3
    (copies[0] / "run").write_text("changed")
    assert {(copy / "run").read_text() for copy in (*copies[1:], made[0])} == {"as it was made"}


def test_what_a_worker_left_unfinished_is_made_anew(tmp_path_factory: pytest.TempPathFactory):
    name = f"failed-in-{tmp_path_factory.getbasetemp().name}"

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        shared_copy(tmp_path_factory, name, fail)
    copy = shared_copy(tmp_path_factory, name, lambda folder: (folder / "whole").touch())
    assert [file.name for file in copy.iterdir()] == ["whole"]
