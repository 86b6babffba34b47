import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import types
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest
from pymongo import MongoClient

from tests.patience import patience, wait_until
from workbench.errors import WorkbenchError
from workbench.files import read_json
from workbench.services import mongo


@pytest.fixture
def folder(mongod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a database of one test's own."""
    # a process that is spawned runs the file of __main__, which a test of the dashboard leaves to be a page
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.delenv(mongo.URI, raising=False)
    return tmp_path / "mongo"


def process_of(folder: Path) -> psutil.Process:
    return psutil.Process(read_json(folder / "server.json")["pid"])


def socket_of(uri: str) -> Path:
    return Path(unquote(uri.removeprefix("mongodb://")))


def answers(uri: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(socket_of(uri))) == 0


def use_until_told(folder: str, ready, leave) -> None:
    with mongo.database(Path(folder)) as uri:
        ready.put(uri)
        leave.wait(patience(60))


def test_processes_share_one_database_on_no_port_and_the_last_one_out_stops_it(folder):
    spawn = multiprocessing.get_context("spawn")
    ready, leave = spawn.Queue(), spawn.Event()
    with mongo.database(folder) as uri:
        process = process_of(folder)
        (watched,) = mongo.processes(uri, folder).items()
        assert watched == (f"MongoDB (its log is {folder / 'mongod.log'})", process)
        assert process.net_connections("inet") == []
        command = process.cmdline()
        assert command[command.index("--wiredTigerCacheSizeGB") + 1] == "1"
        other = spawn.Process(target=use_until_told, args=(str(folder), ready, leave))
        other.start()
        assert ready.get(timeout=patience(60)) == uri
        with mongo.database(folder) as again:
            assert again == uri
        assert answers(uri)
    assert answers(uri), "the other process still uses it"
    leave.set()
    other.join(patience(60))
    assert other.exitcode == 0 and not answers(uri)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert not (folder / "server.json").exists()


def test_a_database_that_died_is_noticed_and_started_anew_with_its_data(folder):
    with mongo.database(folder) as uri:
        with MongoClient(uri) as client:
            client.kept.things.insert_one({"_id": 7})
            client.admin.command("fsync")
        process_of(folder).kill()
        wait_until(lambda: not answers(uri))
        with mongo.database(folder) as anew, MongoClient(anew) as client:
            assert client.kept.things.find_one() == {"_id": 7}
    assert not answers(anew)


def test_nobody_else_can_open_the_database_or_read_its_files(folder):
    with mongo.database(folder) as uri:
        address = socket_of(uri)
        assert stat.S_IMODE(address.stat().st_mode) == 0o600 and stat.S_IMODE(address.parent.stat().st_mode) == 0o700
        for path in (folder, *folder.rglob("*")):
            assert not path.stat().st_mode & 0o077, path
        assert not any("mongod" in word for word in socket_names() if word != str(address)), "MongoDB opens a second one in /tmp"


def socket_names() -> set[str]:
    return {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "mongod" in line and "/tmp/mongodb-" in line}


@pytest.mark.parametrize("killed", ["user", "watchdog", "both"])
def test_a_database_ends_with_the_processes_that_started_it(folder, killed):
    spawn = multiprocessing.get_context("spawn")
    ready, leave = spawn.Queue(), spawn.Event()
    user = spawn.Process(target=use_until_told, args=(str(folder), ready, leave))
    user.start()
    uri = ready.get(timeout=patience(60))
    server = process_of(folder)
    watchdog = server.parent()
    assert user.pid is not None and watchdog is not None
    for name, pid in (("watchdog", watchdog.pid), ("user", user.pid)):
        if killed in (name, "both"):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not answers(uri) and (not server.is_running() or server.status() == psutil.STATUS_ZOMBIE))
    wait_until(lambda: not watchdog.is_running() or watchdog.status() == psutil.STATUS_ZOMBIE)
    if killed == "watchdog":  # who sets an event waits for every process that waits for it, killed ones too
        leave.set()
    user.join(patience(60))


def test_a_folder_with_a_long_name_gets_a_socket_elsewhere_that_is_removed_with_the_database(folder):
    for name in ("x" * 100, "a,b"):
        with mongo.database(folder / name) as uri:
            address = socket_of(uri)
            assert not address.is_relative_to(folder) and stat.S_IMODE(address.parent.stat().st_mode) == 0o700
        wait_until(lambda folder=address.parent: not folder.exists())


def test_a_number_that_is_another_process_by_now_is_not_stopped(folder):
    sleeper = subprocess.Popen(["sleep", str(patience(60))])
    folder.mkdir()
    (folder / "server.json").write_text(f'{{"pid": {sleeper.pid}, "started": 1.0, "port": 1, "facts": {{}}}}')
    with mongo.database(folder):
        pass
    assert sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()


def test_a_database_that_the_environment_names_is_taken_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv(mongo.URI, "mongodb://somewhere:1")
    with mongo.database(tmp_path / "mongo") as uri:
        assert uri == "mongodb://somewhere:1" and mongo.processes(uri, tmp_path / "mongo") == {}
    assert not (tmp_path / "mongo").exists()


def test_fiftyones_own_program_comes_before_the_unpacked_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    package = type("Spec", (), {"origin": str(tmp_path / "fiftyone" / "__init__.py")})
    monkeypatch.setattr(mongo, "find_spec", lambda name: package)
    assert mongo.find_mongod() is None
    unpacked = tmp_path / "workbench" / "tools" / "mongodb-6.0.5" / "mongod"
    for expected in (unpacked, own):
        expected.parent.mkdir(parents=True)
        expected.touch(0o755)
        assert mongo.find_mongod() == expected


def test_without_a_database_one_message_says_what_is_missing_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv(mongo.URI, raising=False)
    monkeypatch.setattr(mongo, "find_mongod", lambda: None)
    with pytest.raises(WorkbenchError, match=r"no.*MongoDB|none was found.*--setup.*FIFTYONE_DATABASE_URI"), mongo.database(tmp_path):
        pass
    assert not mongo.is_available()


def test_a_program_that_does_not_start_is_named_with_its_log(tmp_path, monkeypatch):
    monkeypatch.delenv(mongo.URI, raising=False)
    broken = tmp_path / "mongod"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(mongo, "find_mongod", lambda: broken)
    with pytest.raises(WorkbenchError, match=r"did not start.*mongod\.log"), mongo.database(tmp_path / "mongo"):
        pass


def test_what_cannot_be_fetched_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mongo, "find_mongod", lambda: None)
    monkeypatch.setattr(mongo, "_installers", lambda folder: iter([["sh", "-c", "echo no such host >&2; exit 1"]]))
    with pytest.raises(WorkbenchError, match=r"could not be fetched: no such host.*--setup"):
        mongo.set_up()
    assert not list(tmp_path.rglob("mongod"))


def test_the_fetched_program_is_pinned_by_its_hash_and_unpacked_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mongo, "find_mongod", lambda: None)
    installer = tmp_path / "installer"
    # stands in for pip: keeps what it was asked for, and puts a program where the wheel has one
    installer.write_text(
        '#!/bin/sh\necho "$@" > ' + str(tmp_path / "asked") + '\nwhile [ "$1" != --target ]; do shift; done\n'
        'cat "$4" >> ' + str(tmp_path / "asked") + '\nmkdir -p "$2/fiftyone/db/bin"\n'
        "printf '#!/bin/sh\\nexit 0\\n' > \"$2/fiftyone/db/bin/mongod\"\n"
    )
    installer.chmod(0o755)
    monkeypatch.setattr(mongo, "_installers", lambda folder: iter([[str(installer)]]))
    program = mongo.set_up()
    assert os.access(program, os.X_OK) and program.read_text() == "#!/bin/sh\nexit 0\n"
    asked = (tmp_path / "asked").read_text()
    assert "--require-hashes" in asked and f"{mongo.PACKAGE} --hash=sha256:{mongo.WHEEL_SHA256}" in asked
    assert [path.name for path in program.parent.iterdir() if path.name != "change.lock"] == ["mongod"]
