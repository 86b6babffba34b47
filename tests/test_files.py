"""A file is written whole or keeps what it had, whatever happens in between."""

import copy
import errno
import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from workbench import files
from workbench.errors import WorkbenchError
from workbench.files import hash_file, hash_json, read_json, replacing, write_json, write_text


def no_space(*_args: object, **_kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_before_the_rename_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(files.os, call, no_space)
    with pytest.raises(WorkbenchError, match=r"cannot write .*value\.json: No space left on device"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_crash_inside_the_block_keeps_the_old_file_and_passes_the_error_on(tmp_path: Path):
    path = tmp_path / "value.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["value.txt"]


def test_a_full_disk_is_one_message_with_the_path_and_what_to_do(tmp_path: Path):
    path = tmp_path / "value.txt"
    with pytest.raises(WorkbenchError) as caught, replacing(path):
        no_space()
    message = str(caught.value)
    assert str(path) in message and "No space left on device" in message and "Free some space" in message
    assert "\n" not in message
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkbenchError, match=r"cannot write .*file/inside/value\.txt"):
        write_text(tmp_path / "file" / "inside" / "value.txt", "text")


def test_the_file_gets_the_permissions_of_an_ordinary_one(tmp_path: Path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    write_text(tmp_path / "ours", "")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_names_from_data_are_text(tmp_path: Path):
    value = {"name": '\u00e9\u2603 </script> "quoted"\n', "n": [1, 2.5, None]}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_nan_is_refused_because_json_has_none_and_the_old_file_stays(tmp_path: Path):
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(ValueError):
        write_json(path, float("nan"))
    assert read_json(path) == 1


@pytest.mark.parametrize("content", [b"{", b"", b'{"a": \xff}'])
def test_broken_json_is_one_message_with_its_path(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(WorkbenchError, match=r"broken\.json is not valid JSON"):
        read_json(path)


def test_a_missing_file_is_one_message_with_its_path(tmp_path: Path):
    with pytest.raises(WorkbenchError, match=r"cannot read .*absent\.json: No such file"):
        read_json(tmp_path / "absent.json")


def test_hashes_are_sha256_of_the_bytes_and_of_canonical_json(tmp_path: Path):
    (tmp_path / "bytes").write_bytes(b"abc")
    assert hash_file(tmp_path / "bytes") == hashlib.sha256(b"abc").hexdigest()
    assert hash_json({"b": [1, 2], "a": "x"}) == hashlib.sha256(b'{"a":"x","b":[1,2]}').hexdigest()
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 1.5})


def test_a_file_is_locked_by_one_alone_or_shared_by_many_and_free_once_it_is_closed(tmp_path: Path):
    path = tmp_path / "lock"
    with open(path, "wb") as first, open(path, "rb") as second, open(path, "rb") as third:
        assert files.try_lock(first) and not files.try_lock(second) and not files.try_lock(second, shared=True)
        first.close()
        assert files.try_lock(second, shared=True) and files.try_lock(third, shared=True)
        assert not files.try_lock(second)
        third.close()
        assert files.try_lock(second)


def test_what_was_read_is_copied_with_a_dataclass_that_holds_it(tmp_path: Path):
    @dataclass
    class Held:
        read: dict[str, Any]

    path = tmp_path / "a.json"
    path.write_text('{"one": {"two": 2}}')
    assert asdict(Held(read_json(path))) == {"read": {"one": {"two": 2}}}
    assert copy.deepcopy(read_json(path)) == {"one": {"two": 2}}
