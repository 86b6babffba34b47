"""Servers of this user: ports that are free, and waiting for what was just started."""

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from workbench import servers
from workbench.errors import WorkbenchError
from workbench.servers import ADDRESS, free_port, listens, started


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_taken_port_gives_way_to_the_next_free_one():
    with taken_port() as port:
        assert listens(port) and port < free_port(port) < port + servers.PORTS


def test_without_a_wish_any_port_is_given_that_nothing_uses():
    port = free_port()
    assert port > 0 and not listens(port)


def test_ports_that_are_all_taken_are_named(monkeypatch):
    monkeypatch.setattr(servers, "PORTS", 1)
    with taken_port() as port, pytest.raises(WorkbenchError, match=f"no free port between {port} and {port}"):
        free_port(port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_block_and_what_belongs_to_it(number):
    code = """
import time
from workbench.servers import stopped_by_signals
try:
    with stopped_by_signals():
        try:
            print("in", flush=True)
            time.sleep(60)
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
        assert started(lives, lambda: next(answers), 60)
        assert not started(lives, lambda: False, 0.1)
        lives.communicate(b"\n")
        assert not started(lives, lambda: False, 60)
