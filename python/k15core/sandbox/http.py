"""HTTP to one server, over connections that are kept."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    body: bytes
    retry_after: float

    def json(self) -> Any:
        """The body; None if it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def message(self) -> str:
        """What the daemon says is wrong."""
        found = self.json()
        if isinstance(found, dict) and isinstance(found.get("error"), dict):
            return str(found["error"].get("message"))
        return self.body[:200].decode(errors="replace")


class Connections:
    """As many connections to `url` as there are requests at once; each is used again."""

    def __init__(self, url: str, headers: dict[str, str], *, timeout: float) -> None:
        self._headers = headers
        self._timeout = timeout
        self._path = url.removeprefix("unix:") if url.startswith("unix:") else None
        parts = urlsplit(url)
        if self._path is None and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise InvalidInputError(f"url = {url!r}: expected http://HOST:PORT or unix:PATH")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "localhost", parts.port
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def request(self, method: str, path: str, body: bytes) -> Reply:
        """Send a request and read the answer. OSError if there is none."""
        connection, is_new = self._take()
        try:
            try:
                return self._ask(connection, method, path, body)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                if is_new:
                    raise
            # The server has closed it while it was idle: that says nothing about this request.
            connection.close()
            return self._ask(connection, method, path, body)
        except http.client.HTTPException as error:
            connection.close()
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close those that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes
    ) -> Reply:
        connection.request(method, path, body, self._headers)
        response = connection.getresponse()
        content = response.read()
        after = response.headers.get("Retry-After", "")
        reply = Reply(response.status, content, float(after) if after.isdecimal() else 0.0)
        with self._lock:
            self._idle.append(connection)
        return reply

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), False
        if self._path is not None:
            return UnixConnection(self._path, timeout=self._timeout), True
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        return connection, True


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise
