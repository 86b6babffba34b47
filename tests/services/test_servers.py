"""Servers of this user: ports that are free, and waiting for what was just started."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.patience import patience
from workbench.errors import WorkbenchError
from workbench.services import servers
from workbench.services.servers import ADDRESS, first_to_end, listens, reserved_port, wait_until_ready

WISHED = 8950


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_taken_port_gives_way_to_the_next_free_one():
    with taken_port() as taken, reserved_port(taken) as port:
        assert listens(taken) and taken < port < taken + servers.PORTS


def test_without_a_wish_any_port_is_given_that_nothing_uses():
    with reserved_port() as port:
        assert port > 0 and not listens(port)


def test_ports_that_are_all_taken_are_named(monkeypatch):
    monkeypatch.setattr(servers, "PORTS", 1)
    with taken_port() as taken:
        with pytest.raises(WorkbenchError, match=f"no free port between {taken} and {taken}"), reserved_port(taken):
            pass
    with reserved_port() as held, pytest.raises(WorkbenchError, match=f"no free port between {held} and {held}"), reserved_port(held):
        pass


def test_threads_that_choose_at_one_moment_get_different_ports_and_give_them_back():
    chosen: list[int] = []
    together = threading.Barrier(4)

    def choose() -> None:
        together.wait()
        with reserved_port(WISHED) as port:
            chosen.append(port)
            together.wait()

    threads = [threading.Thread(target=choose) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(30))
    assert len(set(chosen)) == 4 and min(chosen) >= WISHED
    with reserved_port(WISHED) as port:
        assert port == min(chosen)


def test_a_process_that_was_killed_holds_no_port():
    code = f"from workbench.services.servers import reserved_port\nwith reserved_port({WISHED}) as port: print(port, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = int(process.stdout.readline())
        with reserved_port(WISHED) as port:
            assert port > held
        process.kill()
    with reserved_port(WISHED) as port:
        assert port == held


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(WorkbenchError, match=r"cannot write .*file/workbench/ports.*Set XDG_CACHE_HOME"), reserved_port():
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_block_and_what_belongs_to_it(number):
    code = """
import signal
from workbench.services.servers import stopped_by_signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it runs in the background without it
try:
    with stopped_by_signals():
        try:
            print("in", flush=True)
            signal.pause()
        finally:
            print("left", flush=True)
except KeyboardInterrupt:
    pass
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        process.send_signal(number)
        assert process.stdout.readline() == "left\n"
    assert process.returncode == 0


def test_a_server_is_waited_for_until_it_answers_ends_or_takes_too_long():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as lives:
        answers = iter([False, False, True])
        assert wait_until_ready(lives, lambda: next(answers), 60)
        assert not wait_until_ready(lives, lambda: False, 0.1)
        lives.communicate(b"\n")
        assert not wait_until_ready(lives, lambda: False, 60)
        assert not wait_until_ready(lives, lambda: True, 60), "what answers is another server"


def test_the_process_that_ends_is_named_whether_or_not_it_is_waited_for(monkeypatch):
    monkeypatch.setattr(servers, "LOOK_SECONDS", 0.02)
    long = ["sleep", str(patience(60))]
    with subprocess.Popen(long) as lives, subprocess.Popen(long) as ends, subprocess.Popen(["sleep", "0"]) as reaped:
        gone = psutil.Process(reaped.pid)
        reaped.wait()
        processes = {"lives": psutil.Process(lives.pid), "ends": psutil.Process(ends.pid)}
        threading.Timer(0.2, ends.kill).start()
        assert first_to_end(processes) == "ends" and ends.returncode is None, "it is a zombie"
        assert first_to_end({**processes, "gone": gone}) == "ends"
        assert first_to_end({"lives": processes["lives"], "gone": gone}) == "gone"
        lives.kill()
