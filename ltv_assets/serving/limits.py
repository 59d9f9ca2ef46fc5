"""Bounds of a request: who may ask, how much, how many at once, how long.

What belongs here: reading a body within bytes and seconds, the token, the count of requests in flight, errors as JSON. What does not:
what is answered (``app.py``), bounds of connections (``server.py``).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from ltv_assets.core.config import ServingConfig
from ltv_assets.serving.requests import encode

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = Iterable[tuple[bytes, bytes]]

OPEN_PATHS = ("/healthz", "/readyz")
"""Asked by probes, which have no token."""
RETRY_SECONDS = 1


class Refusal(Exception):
    """A request that is not answered with scores: its status, a word for metrics, and a sentence for the caller."""

    def __init__(self, status: int, kind: str, message: str, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, headers

    def body(self) -> bytes:
        """The error as JSON."""
        return encode({"error": {"kind": self.kind, "message": self.message}})


def too_busy(message: str) -> Refusal:
    """More than can be done at once; the caller may ask again."""
    return Refusal(429, "too_busy", message, headers=(("retry-after", str(RETRY_SECONDS)),))


class Bodies:
    """Reads bodies; all that are being read take at most ``config.max_buffer_mb`` together."""

    def __init__(self, config: ServingConfig) -> None:
        self._largest = int(config.max_body_mb * 2**20)
        self._room = int(config.max_buffer_mb * 2**20)
        self._seconds = config.read_seconds

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. Raises Refusal if it is too large, comes too slowly or there is no room for it, Disconnected if it ends."""
        if _waits_to_be_asked(headers, self._largest):
            raise self._too_large()
        try:
            async with asyncio.timeout(self._seconds):
                first = await _next(receive)
                if not first.get("more_body", False) and len(first["body"]) <= self._largest:
                    body: bytes = first["body"]
                    return body
                return await self._rest(first, receive)
        except TimeoutError:
            slow = f"the body did not arrive within {self._seconds:g} s"
            raise Refusal(408, "slow_body", slow, headers=(("connection", "close"),)) from None

    async def _rest(self, message: Message, receive: Receive) -> bytes:
        body, reserved = bytearray(message["body"]), 0
        try:
            while message.get("more_body", False):
                message = await _next(receive)
                if len(body) > self._largest:
                    continue  # read to its end, so that the caller gets to the answer
                body += message["body"]
                wanted = len(body) - reserved
                if wanted > self._room:
                    raise too_busy("the server holds as many unfinished bodies as it has room for; ask again")
                self._room -= wanted
                reserved += wanted
            if len(body) > self._largest:
                raise self._too_large()
            return bytes(body)
        finally:
            self._room += reserved

    def _too_large(self) -> Refusal:
        return Refusal(413, "too_large", f"the body has more than {self._largest} bytes; send fewer rows at a time")


class Disconnected(Exception):
    """The caller went away."""


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message


def _waits_to_be_asked(headers: Headers, largest: int) -> bool:
    """Whether the caller waits to be told whether a body that is too large is wanted."""
    found = dict(headers)
    length = found.get(b"content-length", b"")
    return length.isdigit() and int(length) > largest and found.get(b"expect", b"").lower() == b"100-continue"


class Token:
    """The bearer token of the environment; without one everybody may ask."""

    def __init__(self, token: str | None) -> None:
        self._expected = f"Bearer {token}".encode() if token else None

    def require(self, path: str, headers: Headers) -> None:
        """Raise Refusal unless the request has the token; compared in a time that says nothing of it."""
        if self._expected is None or path in OPEN_PATHS:
            return
        given = next((value for name, value in headers if name == b"authorization"), b"")
        if not hmac.compare_digest(given, self._expected):
            raise Refusal(401, "unauthorized", "expected the header Authorization: Bearer TOKEN", headers=(("www-authenticate", "Bearer"),))
