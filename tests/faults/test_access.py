"""Who may read what: the dashboard's names, modules of the current folder, links, and files that a manifest or a query names."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.conftest import serving
from tests.conftest import ROOT
from tests.faults.damages import make_run
from tests.flows import command
from tests.patience import patience
from workbench.cli import keep_current_folder_out
from workbench.errors import RunError, WorkbenchError
from workbench.services.dashboard import allowed_hosts, is_loopback
from workbench.store.queries import read_queries
from workbench.store.run import Run
from workbench.store.states import read_states


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a dashboard that was started in a folder with files called as modules, and that folder."""
    here = tmp_path_factory.mktemp("here")
    for name in ("streamlit", "torch", "pandas", "workbench", "json"):
        (here / f"{name}.py").write_text("open(__file__ + '.ran', 'w').close()\n")
    make_run(here / "runs" / "distilled")
    with serving(Path("runs"), here, PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(here / "cache")) as address:
        yield address, here


def handshake(address: str, host: str, origin: str) -> int:
    """The status with which a browser's request for the page's connection is answered: 101 if it is accepted."""
    place = urllib.parse.urlparse(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=patience(20))
    connection.putrequest("GET", "/_stcore/stream", skip_host=True)
    headers = {"Host": host, "Origin": origin, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_page_of_the_web_that_takes_the_dashboards_place_is_refused(served: tuple[str, Path]):
    address = served[0]
    port = urllib.parse.urlparse(address).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert handshake(address, host, f"http://{host}") == 101
    for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", f"localhost@evil.example:{port}"):
        assert handshake(address, host, f"http://{host}") == 403, host
    assert handshake(address, f"127.0.0.1:{port}", "http://evil.example") == 403


def test_no_module_of_the_current_folder_is_run_by_a_child_process(served: tuple[str, Path]):
    _, here = served
    assert not list(here.glob("*.ran"))


def test_a_training_that_a_comparison_starts_runs_no_module_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("torch", "yaml", "pydantic", "workbench"):
        (tmp_path / f"{name}.py").write_text("open(__file__ + '.ran', 'w').close()\n")
    (tmp_path / "broken.yaml").write_text("name: broken\n")
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    from workbench.tasks import compare

    log = tmp_path / "log"
    monkeypatch.setattr(os, "environ", environment)
    row = compare.Row(tmp_path / "broken.yaml", "undistilled", 0, "equal steps", "broken")
    assert compare._start(row, 0, (), None, "cpu", log).wait(patience(120)) == 2, log.read_text()
    assert not list(tmp_path.glob("*.ran"))


def test_an_empty_entry_of_the_path_is_not_the_current_folder_of_a_child_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "planted.py").write_text("open(__file__ + '.ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f":{ROOT}::")
    child = [sys.executable, "-P", "-c", "import planted"]
    assert subprocess.run(child, stderr=subprocess.DEVNULL).returncode == 0, "Python does take it for the current folder"
    (tmp_path / "planted.py.ran").unlink()
    keep_current_folder_out()
    assert subprocess.run(child, stderr=subprocess.DEVNULL).returncode == 1
    assert os.environ["PYTHONPATH"] == str(ROOT) and not list(tmp_path.glob("*.ran"))


def test_beyond_this_machine_the_dashboard_warns_and_answers_to_the_names_of_this_machine_alone():
    assert allowed_hosts("127.0.0.1") == ["localhost", "127.0.0.1", "::1"]
    assert allowed_hosts("box.example")[-1] == "box.example"
    everywhere = allowed_hosts("0.0.0.0")
    assert "0.0.0.0" not in everywhere and "*" not in everywhere and len(everywhere) > 3
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "box")] == [True] * 3 + [False] * 3


def test_a_manifest_names_files_of_its_own_folder_alone(runs_folder: Path, tmp_path: Path):
    run = make_run(runs_folder / "distilled")
    shutil.copy(run.queries_path("val", 6) / "part-00000.parquet", tmp_path / "part-outside.parquet")
    for name in ("../../../../part-outside.parquet", str(tmp_path / "part-outside.parquet"), "..", "part-\0.parquet"):
        for folder, read in ((run.queries_path("val", 6), read_queries), (run.states_path("val", 6), read_states)):
            manifest = folder / "manifest.json"
            before = manifest.read_text()
            values = json.loads(before)
            manifest.write_text(
                json.dumps({**values, "files": {name: "0" * 64}, **({"images": {"1": name}} if read is read_states else {})})
            )
            with pytest.raises(WorkbenchError, match="which is not in its folder"):
                read_queries(run, "val", [6]) if read is read_queries else read_states(run, "val", 6, 1)
            manifest.write_text(before)


def test_a_manifest_keeps_images_in_files_that_it_lists(runs_folder: Path, tmp_path: Path):
    run = make_run(runs_folder / "distilled")
    folder = run.states_path("val", 6)
    manifest = folder / "manifest.json"
    values = json.loads(manifest.read_text())
    (shard,) = values["files"]
    shutil.copy(folder / shard, tmp_path / shard)  # its hash is that of the manifest, which somebody else may have written
    for images in ({"1": str(tmp_path / shard)}, {"1": f"../../../../../{shard}"}, {"one": shard}):
        manifest.write_text(json.dumps({**values, "images": images}))
        with pytest.raises(WorkbenchError, match=r"which it does not list|which is no number"):
            read_states(run, "val", 6, 1)


def test_a_query_opens_no_file_outside_of_the_folder_of_runs(runs_folder: Path, tmp_path: Path):
    run = make_run(runs_folder / "distilled")
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    other = make_run(tmp_path / "elsewhere" / "other")
    for reading in (f"(SELECT count(*) FROM read_csv('{secret}')) > 0", f"(SELECT count(*) FROM '{other.path}/queries/*/*/part*') > 0"):
        with pytest.raises(RunError, match="cannot be read"):
            read_queries(run, "val", [6], where=reading)
    assert len(read_queries(run, "val", [6])) > 0 and len(read_queries(other, "val", [6])) > 0


def test_a_link_that_leads_out_of_the_folder_of_runs_is_neither_read_nor_removed(runs_folder: Path, tmp_path: Path):
    outside = make_run(tmp_path / "outside")
    make_run(runs_folder / "inner")
    (runs_folder / "linked").symlink_to(outside.path)
    queries = runs_folder / "inner" / "queries"
    shutil.move(queries, tmp_path / "queries")
    queries.symlink_to(tmp_path / "queries")
    for name in ("linked", "inner"):
        for verb in (("runs", "show"), ("runs", "rm"), ("diagnose",), ("report",), ("evaluate",), ("run", "--resume")):
            code, _, err = command(*verb, name)
            assert code == 5 and "is a link that leads out of the folder of runs" in err, (verb, name, err)
    assert outside.info_path.is_file() and (tmp_path / "queries").is_dir()
    (runs_folder / "twin").symlink_to(runs_folder / "inner")
    circle = make_run(runs_folder / "circle").path / "checkpoints-circle"
    circle.symlink_to(circle.name)
    code, _, err = command("runs", "show", "circle")
    assert code == 5 and "is a link that leads out of the folder of runs" in err, err
    (runs_folder / "round").symlink_to("round")
    code, _, err = command("runs", "rm", "round")
    assert code != 0 and "Traceback" not in err, err
    code, out, err = command("runs", "list")
    assert code == 0 and "inner" in out and "circle" in out, err
    queries.unlink()
    code, _, err = command("runs", "rm", "twin")
    assert code == 5 and "link" in err and Run(runs_folder / "inner").info_path.is_file()
