"""The check before a server: names, origins and the token, on an application that says what reached it."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from workbench.services.guard import Guard, bearer, new_token, with_token

SECRET = "right-token"


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """Stands in for FiftyOne and Streamlit."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def finished(answer: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end, in a thread of its own: a browser of another test may have a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, answer).result()


def ask(headers: list[tuple[str, str]], address: str = "/", token: str | None = SECRET, kind: str = "http", method: str = "GET") -> Any:
    """The first message of the answer, and the headers in it."""
    parts, sent = urlsplit(address), []
    scope = {"type": kind, "method": method, "path": parts.path, "query_string": parts.query.encode(),
             "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers]}  # fmt: skip

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": f"{kind}.connect"}

    guard = Guard(behind, ["localhost", "127.0.0.1", "::1"], token, "app-1")
    finished(guard(scope, receive, send))
    return sent[0], {name.decode(): value.decode() for name, value in sent[0].get("headers", ())}


def status(*headers: tuple[str, str], **more: Any) -> int:
    return ask(list(headers), **more)[0]["status"]


HOST = ("Host", "127.0.0.1:5151")
COOKIE = ("cookie", f"other=1; workbench-app-1={SECRET}")


@pytest.mark.parametrize("host", ["127.0.0.1:5151", "localhost", "LOCALHOST:1", "[::1]:5151"])
def test_a_name_of_this_machine_is_answered_on_every_port(host: str):
    assert status(("host", host), token=None) == 299
    assert status(("host", host), ("origin", f"http://{host}"), token=None) == 299


@pytest.mark.parametrize("host", [
    "evil.example:5151", "127.0.0.1.evil.example", "localhost@evil.example", "evil.example@localhost", "localhost/evil", "", "[",
    "localhost:x@a",
])  # fmt: skip
def test_every_other_name_is_refused_even_with_the_token(host: str):
    assert status(("host", host), COOKIE) == 403
    assert status(("host", host), address=f"/?token={SECRET}") == 403


def test_a_request_has_one_host():
    assert status(COOKIE) == 403
    assert status(HOST, ("host", "evil.example"), COOKIE) == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:5152", "http://[", "", "http://localhost:5151"])
def test_a_page_of_another_origin_is_refused(origin: str):
    assert status(HOST, ("origin", origin), COOKIE) == 403
    assert status(HOST, ("origin", "http://127.0.0.1:5151"), ("origin", origin), COOKIE) == 403


def test_without_the_token_nothing_is_answered_and_with_it_everything():
    cookies = ("a=b", "workbench-app-1=wrong", f"workbench-app-2={SECRET}", "workbench-app-1", f"\x00; workbench-app-1={SECRET}x")
    assert [status(HOST)] + [status(HOST, ("cookie", cookie)) for cookie in cookies] == [403] * 6
    assert [status(HOST, ("authorization", f"Bearer {token}")) for token in ("", "wrong", "é", SECRET)] == [403, 403, 403, 299]
    assert [status(HOST, COOKIE, method=method) for method in ("GET", "POST", "DELETE")] == [299] * 3
    assert [status(HOST, method=method, address=f"/?token={SECRET}") for method in ("POST", "DELETE")] == [403] * 2
    assert status(HOST, *bearer(SECRET).items()) == 299 and bearer(None) == {}


def test_an_address_with_the_token_becomes_a_cookie_and_opens_again_without_it():
    first, headers = ask([HOST], f"/datasets/a%20b?view=x+y&token={SECRET}&empty=")
    assert first["status"] == 200 and headers["set-cookie"] == f"workbench-app-1={SECRET}; HttpOnly; SameSite=Strict; Path=/"
    assert headers["refresh"] == "0; url=/datasets/a%2520b?view=x+y&empty="
    assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
    assert ask([HOST], "/?token=wrong")[0]["status"] == 403


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example", "///evil.example"])
def test_the_address_that_is_opened_again_is_of_this_server(path: str):
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": f"token={SECRET}".encode(),
        "headers": [(b"host", b"localhost")],
    }
    finished(Guard(behind, ["localhost"], SECRET, "a")(scope, None, send))  # pyright: ignore[reportArgumentType]
    place = dict(sent[0]["headers"])[b"refresh"].decode().removeprefix("0; url=")
    assert place.startswith("/") and not place.startswith("//") and "\\" not in place


def test_a_websocket_is_closed_before_it_opens():
    assert ask([HOST, COOKIE], kind="websocket")[0]["type"] == "websocket.accept"
    refused: list[list[tuple[str, str]]] = [[HOST], [("host", "evil.example"), COOKIE], [HOST, COOKIE, ("origin", "http://evil.example")]]
    for headers in refused:
        assert ask(headers, kind="websocket")[0]["type"] == "websocket.close"
    assert ask([HOST], f"/?token={SECRET}", kind="websocket")[0]["type"] == "websocket.close"


def test_tokens_are_long_and_new_and_stand_in_an_address_beside_what_it_had():
    assert new_token() != new_token() and len(new_token()) >= 40
    assert with_token("http://localhost:1/image?run=a", "t-_") == "http://localhost:1/image?run=a&token=t-_"
    assert with_token("http://localhost:1", "t") == "http://localhost:1/?token=t"
    assert with_token("http://localhost:1", None) == "http://localhost:1"
