"""Stands before a server of this user and answers only who may ask: the Host, the Origin and a token are checked, then the server is asked.

A page of the web can send requests to this machine, also under a name of its own that it points here, and so can every other user of the
machine. The first are told by the names that their requests carry, the others by a token, which the address that a command prints holds and
which the browser then keeps as a cookie.
"""

import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN = "token"  # the parameter of an address
POLICY_VIOLATION = 1008  # code of a websocket that is closed before it opens


def new_token() -> str:
    """Returns a token that nobody can guess."""
    return secrets.token_urlsafe(32)


def with_token(address: str, token: str | None) -> str:
    """Returns the address that opens a guarded server in a browser, or ``address`` as it is if the server asks for no token."""
    if token is None:
        return address
    parts = urlsplit(address)
    query = urlencode([*parse_qsl(parts.query), (TOKEN, token)])
    return parts._replace(path=parts.path or "/", query=query).geturl()


def bearer(token: str | None) -> dict[str, str]:
    """Returns the header with which a program asks a guarded server."""
    return {"Authorization": f"Bearer {token}"} if token is not None else {}


class Guard:
    """An ASGI application that refuses whoever may not ask, and hands every other request to the application behind it.

    A request is refused with status 403, a websocket before it opens, if its Host is none of ``hosts``, if it has an Origin other than its
    Host, or if there is a token and it carries none: in its address, in its cookie, or as ``Authorization: Bearer``. An address with the
    token is answered by the cookie (``HttpOnly``, ``SameSite=Strict``) and opens again without it, so that the token stays out of links.
    The browser goes there by ``Refresh`` and not by a redirect: after a link on a page of another site a redirect would still be that
    page's request, to which a browser adds no strict cookie.

    Args:
        app: the application behind it.
        hosts: names under which the server may be asked, without ports.
        token: what a request must carry; None asks for nothing.
        name: names the cookie. Servers of several ports share the cookies of a host, so each needs a name of its own.
    """

    def __init__(self, app: Asgi, hosts: Collection[str], token: str | None, name: str):
        self.app, self.token, self.cookie = app, token, f"workbench-{name}"
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif (why := self._refused(scope)) is not None:
            await _refuse(scope, receive, send, why)
        elif self.token is None or self._shown(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "GET" and self._matches(_parameter(scope, TOKEN)):
            await self._keep(scope, send)
        else:
            await _refuse(scope, receive, send, "open the address that the command which serves this has printed: it holds a token.")

    def _refused(self, scope: Scope) -> str | None:
        """Returns why the names of a request are not accepted; None if they are."""
        hosts, origins = _headers(scope, b"host"), _headers(scope, b"origin")
        if len(hosts) != 1 or _host(f"//{hosts[0]}") not in self.hosts:
            return "this server is not asked under that name."
        if any(_origin_host(origin) != hosts[0].lower() for origin in origins):
            return "this server answers to pages of its own alone."
        return None

    def _shown(self, scope: Scope) -> bool:
        """True if the request carries the token in its cookie or as a bearer."""
        for header in _headers(scope, b"authorization"):
            if self._matches(header.removeprefix("Bearer ")):
                return True
        for header in _headers(scope, b"cookie"):
            try:
                morsel = SimpleCookie(header).get(self.cookie)
            except CookieError:
                continue
            if morsel is not None and self._matches(morsel.value):
                return True
        return False

    def _matches(self, token: str | None) -> bool:
        return token is not None and self.token is not None and secrets.compare_digest(token.encode(), self.token.encode())

    async def _keep(self, scope: Scope, send: Send) -> None:
        """Answers an address with the token: sets the cookie and opens the address without it."""
        rest = urlencode([(key, value) for key, value in _query(scope) if key != TOKEN])
        place = "/" + quote(scope["path"].lstrip("/")) + (f"?{rest}" if rest else "")  # one slash, since two begin the name of a host
        headers = {
            "set-cookie": f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/",
            "refresh": f"0; url={place}",
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
        }
        await _answer(send, 200, "opening\n", headers)


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _host(address: str) -> str | None:
    """Returns the name in an address, without its port; None if it has none or somebody's name before it."""
    try:
        parts = urlsplit(address)
        return parts.hostname if parts.username is None and not parts.path else None
    except ValueError:
        return None


def _origin_host(origin: str) -> str | None:
    """Returns the host of an Origin as a Host header has it, with its port; None if there is none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _parameter(scope: Scope, name: str) -> str | None:
    return next((value for key, value in _query(scope) if key == name), None)


async def _refuse(scope: Scope, receive: Receive, send: Send, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": why})
    else:
        await _answer(send, 403, f"refused: {why}\n", {})


async def _answer(send: Send, status: int, text: str, headers: dict[str, str]) -> None:
    body = text.encode()
    given = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **headers}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
