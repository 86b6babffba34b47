import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.patience import patience, wait_until
from workbench.commands import dashboard as command
from workbench.errors import MissingExtraError, WorkbenchError
from workbench.services import dashboard as serve


def test_without_streamlit_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'distillation-workbench\[app\]'"):
        serve.serve(8700, lambda address: None)


def test_a_server_that_does_not_start_is_an_error_and_not_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(serve, "OPTIONS", {**serve.OPTIONS, "no.such.option": "1"})
    addresses: list[str] = []
    with pytest.raises(WorkbenchError, match="did not start"):
        serve.serve(8700, addresses.append)
    assert addresses == []


KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(("program", "said"), [("import sys; sys.exit('no such thing')", "status 1"), (KILLED, "signal 9.*memory")])
def test_a_server_that_does_not_start_says_how_it_ended_beside_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], program: str, said: str
):
    (tmp_path / "streamlit.py").write_text(program)
    for name in ("XDG_CACHE_HOME", "PYTHONPATH"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(WorkbenchError, match=said):
        serve.serve(8700, lambda address: None)
    assert ("no such thing" in capfd.readouterr().err) == ("status" in said)


def test_a_start_that_takes_long_is_waited_for_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "streamlit.py").write_text(STREAMLIT.replace("time.sleep(0.7)", "time.sleep(2)"))
    for name, value in (("XDG_CACHE_HOME", str(tmp_path)), ("PYTHONPATH", str(tmp_path)), ("WORKBENCH_RUNS", str(tmp_path / "mine"))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "SAY_SECONDS", 0.5)
    with pytest.raises(WorkbenchError, match="has ended with status 3"):
        monkeypatch.setattr(serve, "registered", ending)
        command.serve_dashboard(8700)
    told = capsys.readouterr().out
    assert told.startswith("starting the dashboard on the runs in") and "mine" in told.splitlines()[0]
    assert "still starting after 1 s" in told and told.index("still starting") < told.index("dashboard: http://127.0.0.1:")


@contextmanager
def ending(name: str, port: int, **facts: object) -> Iterator[None]:
    """In place of the registration of a server: ends it."""
    urllib.request.urlopen(f"http://127.0.0.1:{port}/end", timeout=patience(10)).close()
    yield


# stands in for Streamlit: binds its port late, as that does, and tells whose runs it serves
STREAMLIT = """
import http.server, os, sys, time
port = next(int(word.split("=")[1]) for word in sys.argv if word.startswith("--server.port="))
class Runs(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["WORKBENCH_RUNS"].encode())
        if self.path == "/end":
            os._exit(3)
    def log_message(self, *_): ...
time.sleep(0.7)
http.server.HTTPServer(("127.0.0.1", port), Runs).serve_forever()
"""
START = """
from workbench.services.dashboard import serve
print("ready", flush=True)
input()
serve(8700, lambda address: print(address, flush=True))
"""


def test_two_dashboards_started_at_one_moment_answer_at_addresses_of_their_own(tmp_path: Path):
    (tmp_path / "streamlit.py").write_text(STREAMLIT)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    processes = [
        subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         env={**environment, "WORKBENCH_RUNS": runs})
        for runs in ("mine", "yours")
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        addresses = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
        served = [urllib.request.urlopen(address, timeout=patience(10)).read().decode() for address in addresses]
    finally:
        for process in processes:
            process.terminate()
            process.communicate(timeout=patience(30))
    assert len(set(addresses)) == 2 and served == ["mine", "yours"]
    assert [process.returncode for process in processes] == [0, 0]


def test_a_file_called_streamlit_in_the_current_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder, program in (("installed", STREAMLIT), ("here", "open('hijacked', 'w').close()")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "streamlit.py").write_text(program)
    for name, value in (("XDG_CACHE_HOME", str(tmp_path)), ("PYTHONPATH", str(tmp_path / "installed")), ("WORKBENCH_RUNS", "mine")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path / "here")
    served: list[bytes] = []

    def look(address: str) -> None:
        served.append(urllib.request.urlopen(address, timeout=10).read())
        raise KeyboardInterrupt

    serve.serve(8700, look)
    assert served == [b"mine"] and not (tmp_path / "here" / "hijacked").exists()


def test_a_dashboard_that_ends_by_itself_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "streamlit.py").write_text(STREAMLIT)
    for name, value in (("XDG_CACHE_HOME", str(tmp_path)), ("PYTHONPATH", str(tmp_path)), ("WORKBENCH_RUNS", "mine")):
        monkeypatch.setenv(name, value)
    with pytest.raises(WorkbenchError, match="has ended with status 3"):
        serve.serve(8700, lambda address: urllib.request.urlopen(f"{address}/end", timeout=patience(10)).close())


def test_beyond_this_machine_the_dashboard_asks_for_the_token_in_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(serve, "is_loopback", lambda host: False)  # it stays on this machine, as every server of a test
    said: list[int | str | None] = []

    def look(address: str) -> None:
        plain, _, token = address.partition("/?token=")
        for path, headers in (("/", {}), ("/", {"Cookie": "a=b"}), ("/_stcore/health", {}), ("/", {"Authorization": f"Bearer {token}"})):
            try:
                with urllib.request.urlopen(urllib.request.Request(plain + path, headers=headers), timeout=patience(20)) as answer:
                    said.append(answer.status)
            except urllib.error.HTTPError as error:
                said.append(error.code)
        with urllib.request.urlopen(address, timeout=patience(20)) as answer:
            kept = answer.headers["set-cookie"].split(";")[0]
        with urllib.request.urlopen(urllib.request.Request(plain, headers={"Cookie": kept}), timeout=patience(20)) as answer:
            said.append(answer.status)
        assert serve.dashboard_address("/image?run=a") == f"{plain}/image?run=a&token={token}"
        commands = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()]
        assert not any(token in word for word in commands), "every user of the machine reads the options of a process"
        raise KeyboardInterrupt

    serve.serve(8700, look)
    assert said == [403, 403, 403, 200, 200]


def test_a_dashboard_whose_command_is_killed_ends_with_it(tmp_path: Path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "WORKBENCH_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-P", "-m", "workbench", "app", "--port", "8700"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("dashboard: "))
        (streamlit,) = psutil.Process(process.pid).children()
        process.kill()
        wait_until(lambda: not streamlit.is_running() or streamlit.status() == psutil.STATUS_ZOMBIE)
