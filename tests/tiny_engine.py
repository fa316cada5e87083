"""The engine of the checkpoint engine's tests: `tiny_engine.py SOCKET DEVICE TRACE`, Python alone.

It is what the state machine needs of a server, for real: a process with a worker below it, which
hold a device (a lock that only one engine can hold), memory that sleep gives back, weights that are
read from a directory. What happens is a line of TRACE each.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LISTENING, DEVICE, TRACE = int(sys.argv[1]), sys.argv[2], sys.argv[3]
BALLAST = 96 << 20


def tell(line: str) -> None:
    with Path(TRACE).open("a") as trace:
        trace.write(line + "\n")


class Server:
    version: int | None = None
    takes_requests = True
    ballast: bytearray | None = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.say(200, {"version": Server.version, "takes_requests": Server.takes_requests})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        name = self.path.removeprefix("/")
        if name == "update":
            self.update(json.loads(content))
            return
        Server.takes_requests = name in ("resume", "wake")
        if name == "sleep":
            Server.ballast = Server.version = None
        if name == "wake":
            Server.ballast = bytearray(b"w") * BALLAST
        tell(name)
        self.say(200, {})

    def update(self, wanted: dict[str, Any]) -> None:
        Server.version = None
        try:
            found = json.loads((Path(wanted["directory"]) / "manifest.json").read_text())
            version = found["manifest"]["version"]
        except (OSError, ValueError) as error:
            self.say(400, {"error": f"weights directory {wanted['directory']}: {error}"})
            return
        if version != wanted["published"]:
            self.say(400, {"error": f"version {wanted['published']} is not there, {version} is"})
            return
        Server.version, Server.takes_requests = wanted["version"], True
        tell(f"serve {Server.version}")
        self.say(200, {})

    def say(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


device = os.open(DEVICE, os.O_RDWR | os.O_CREAT, 0o600)
try:
    fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    tell("TWO AT ONCE")
    sys.exit("the device is held by another engine")
if os.fork() == 0:  # a worker, which holds the device too and does not end with its parent
    threading.Event().wait()
Server.ballast = bytearray(b"w") * BALLAST
tell("start")
server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=LISTENING)
server.server_activate()
server.serve_forever()
