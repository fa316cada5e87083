"""More load on a daemon than it can bear: requests come whether or not others were answered."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from daemons import Daemon

SLEEP = 0.1
"""Seconds that a program takes if nothing else is said: slots are scarce, not processors."""
PATIENCE = 120.0
"""Seconds after which a request counts as not answered."""


@dataclass
class Load:
    """What became of requests."""

    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    refused_after: list[float] = field(default_factory=list)
    """How long each 504 took to come, in seconds."""

    def held_in_vain(self, seconds: float) -> int:
        """How many were refused only after so long."""
        return sum(each > seconds for each in self.refused_after)


async def flood(
    running: Daemon, rate: float, seconds: float, clients: int, sleep: float = SLEEP
) -> Load:
    """Send requests at `rate` a second, each on a connection of its own, and await all answers."""
    load = Load()
    host, port = running.address.split(":")
    start = time.perf_counter()
    asked: set[asyncio.Task[None]] = set()
    while (now := time.perf_counter() - start) < seconds:
        while load.sent < now * rate:
            number = load.sent
            load.sent += 1
            asked.add(
                task := asyncio.create_task(ask(load, host, int(port), number, clients, sleep))
            )
            task.add_done_callback(asked.discard)
        await asyncio.sleep(0.005)
    await asyncio.gather(*asked)
    return load


async def ask(load: Load, host: str, port: int, number: int, clients: int, sleep: float) -> None:
    code = f"import time; time.sleep({sleep}); print({number})"
    body = json.dumps({"source": code, "language": "python"}).encode()
    head = (
        f"POST /v1/run HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"X-K15-Client: {number % clients}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    start = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(head.encode() + body)
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError) as error:
        load.answers[f"none: {type(error).__name__}"] += 1
        return
    headers, _, content = answer.partition(b"\r\n\r\n")
    status = headers[9:12].decode()
    load.answers[status or "none: closed"] += 1
    if status == "200":
        found = json.loads(content)
        if (found["verdict"], found["stdout"]) != ("ok", f"{number}\n"):
            load.wrong.append(f"{number}: {content.decode()}")
    elif status == "504":
        load.refused_after.append(time.perf_counter() - start)
        if b"\r\nretry-after: " not in headers.lower():
            load.wrong.append(f"{number}: 504 without Retry-After")
    else:
        load.wrong.append(f"{number}: {headers.decode(errors='replace')}")


def waited_longer(running: Daemon, bucket: float) -> int:
    """How many runs waited longer for their start than a bucket of the metrics says."""
    within = running.gauge(f'wait_seconds_bucket{{le="{bucket}"}}')
    return int(running.gauge("wait_seconds_count") - within)


def resident(running: Daemon) -> int:
    """The daemon's memory, in KiB."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def descriptors(running: Daemon) -> int:
    """How many descriptors it has open."""
    return len(os.listdir(f"/proc/{running.process.pid}/fd"))  # noqa: PTH208 - a count is wanted


def await_idle(running: Daemon) -> None:
    running.wait_until_gauge("waiting", 0)
    running.wait_until_gauge('slots{state="busy"}', 0)
