"""Every attack against every runner, and what must hold after each."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from attacks import (
    cases_escapes,
    cases_kernel,
    cases_leaks,
    cases_memory,
    cases_network,
    cases_processes,
    cases_room,
    cases_slot,
    cases_time,
)
from attacks.frame import STOPPED, Attack
from sandboxes import RUNNERS, groups, need, run_processes, spawners, wait_until
from slowness import at_usual_speed, slowed

from k15core.sandbox import Limits, Sandbox

ATTACKS: list[Attack] = [
    *cases_processes.CASES,
    *cases_memory.CASES,
    *cases_room.CASES,
    *cases_time.CASES,
    *cases_kernel.CASES,
    *cases_escapes.CASES,
    *cases_leaks.CASES,
    *cases_network.CASES,
    *cases_slot.CASES,
]


@dataclass
class Services:
    """What listens on the host meanwhile: a TCP port of the loopback, an abstract socket."""

    tcp: socket.socket
    unix: socket.socket

    @property
    def words(self) -> list[str]:
        return [str(self.tcp.getsockname()[1]), self.unix.getsockname()[1:].decode()]

    def reached(self) -> bool:
        for each in (self.tcp, self.unix):
            try:
                each.accept()[0].close()
            except BlockingIOError:
                continue
            return True
        return False


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    with tcp, unix:
        unix.bind(f"\0k15-attacks-{tcp.getsockname()[1]}")
        unix.listen()
        tcp.setblocking(False)
        unix.setblocking(False)
        yield Services(tcp, unix)


@pytest.fixture(scope="module", params=RUNNERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    need(request.param)
    with Sandbox(slots=1, runner=request.param) as sandbox:
        yield sandbox


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))
def test_attack(sandbox: Sandbox, services: Services, attack: Attack) -> None:
    if attack.only_as_root and os.getuid() != 0:
        pytest.skip(f"{attack.only_as_root}: run the tests as root")
    sandbox.run("", language="bash")  # so that there is a slot
    before, made = spawners(), groups()
    for _ in range(attack.times):
        run(sandbox, services, attack)
    # The slot has survived, and the next run finds nothing of this one.
    assert (spawners(), groups()) == (before, made)
    after = sandbox.run("ls -A /tmp; echo fine", language="bash")
    assert after.stdout == b"main.sh\nfine\n", after
    wait_until(lambda: not run_processes(), seconds=5)
    assert run_processes() == []


# How many times its clocks' time an attack has that no clock is to end. Ten were too few on two
# processors with two other busy processes, where one was to die of its memory.
PATIENCE = 60


def patient(attack: Attack) -> Limits:
    """The attack's limits. Where no clock is to end it, none ends it on a busy machine either: at
    the limit of its memory a run gives up its own text page by page before it is killed."""
    cpu, wall = attack.limits.cpu_seconds, attack.limits.wall_seconds
    if not set(attack.verdicts).isdisjoint(STOPPED):
        return attack.limits
    return replace(
        attack.limits,
        cpu_seconds=None if cpu is None else PATIENCE * cpu,
        wall_seconds=None if wall is None else PATIENCE * wall,
    )


def run(sandbox: Sandbox, services: Services, attack: Attack) -> None:
    result = sandbox.run(
        attack.source,
        language=attack.language,
        arguments=services.words,
        stdin=attack.stdin,
        files=attack.files,
        fetch=attack.fetch,
        limits=slowed(patient(attack)),
    )
    assert b"BREACH" not in result.stdout + result.stderr, result.stdout.decode()
    assert result.verdict in attack.verdicts, result
    assert attack.says in result.stdout, result
    assert attack.holds is None or attack.holds(at_usual_speed(result)), result
    assert not services.reached()
    if attack.then:
        next_one = sandbox.run(
            attack.then, language=attack.language, limits=slowed(attack.then_limits)
        )
        assert b"BREACH" not in next_one.stdout + next_one.stderr, next_one.stdout.decode()
        assert next_one.verdict == "ok", next_one
        assert attack.then_says in next_one.stdout, next_one


def test_names_are_unlike() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)
    assert len(names) >= 60
