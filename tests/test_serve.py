import pytest

from workbench import serve
from workbench.errors import MissingExtraError, WorkbenchError


def test_without_streamlit_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"workbench\[app\]"):
        serve.serve(8700, lambda address: None)


def test_a_server_that_does_not_start_is_an_error_and_not_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(serve, "OPTIONS", {**serve.OPTIONS, "no.such.option": "1"})
    addresses: list[str] = []
    with pytest.raises(WorkbenchError, match="did not start"):
        serve.serve(8700, addresses.append)
    assert addresses == []
