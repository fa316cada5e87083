"""A store for several processes: who may serve and connect, what ends with whom."""

from __future__ import annotations

import array
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import store_served

from k15core import Prompt, SharedStore, Store
from k15core.errors import (
    CapacityError,
    ConflictError,
    DisconnectedError,
    InvalidInputError,
    LeaseExpiredError,
    StorageError,
)
from k15core.types import Lease

VERSION = 5
FRAME = 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(capacity_bytes=64 << 20) as store, store.serve(tmp_path / "socket"):
        yield store


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[SharedStore]:  # noqa: ARG001
    with SharedStore(tmp_path / "socket") as client:
        yield client


def prompt(length: int = 5) -> Prompt:
    return Prompt(7, np.arange(length, dtype=np.int32), "four", ("sums", "easy"), 0.5)


def finished(store: Store, groups: int, n: int) -> None:
    for _ in range(groups):
        store.add_group(prompt(), 1)
    for lease in store.lease(groups, now=0, duration=1):
        who, epoch = lease.trajectory_id, lease.epoch
        for start in range(0, n, 200_000):
            tokens = np.arange(start, min(n, start + 200_000), dtype=np.int32) + who
            store.append(who, epoch, start, tokens, np.zeros(len(tokens), np.float32), 0)
        store.finish(who, epoch, "stop")
        store.set_reward(who, 0.5)


def test_a_client_is_a_store(store: Store, client: SharedStore, tmp_path: Path) -> None:
    assert isinstance(client, Store)
    assert client.path == tmp_path / "socket"
    members = client.add_group(prompt(), 2, version=3)
    group, own = client.group(0), store.group(0)
    assert (group["trajectory_ids"], group["created_version"]) == (members, 3)
    np.testing.assert_equal(vars(group["prompt"]), vars(own["prompt"]))
    (lease, other) = client.lease(2, now=1, duration=2)
    one = np.ones(1, np.int32), np.zeros(1, np.float32)
    client.append(lease.trajectory_id, lease.epoch, 0, *one, 3)
    with pytest.raises(ConflictError, match="leaves a gap"):
        client.append(lease.trajectory_id, lease.epoch, 5, *one, 3)
    with pytest.raises(LeaseExpiredError, match="epoch 99"):
        client.append(lease.trajectory_id, 99, 1, *one, 3)
    with pytest.raises(InvalidInputError, match="log_probs = 2 entries"):
        client.append(lease.trajectory_id, lease.epoch, 1, one[0], np.zeros(2, np.float32), 3)
    with pytest.raises(InvalidInputError, match=r"tokens = an array of int64"):
        client.append(lease.trajectory_id, lease.epoch, 1, one[0].astype(np.int64), one[1], 3)
    with pytest.raises(InvalidInputError, match="k = 4294967295: expected between 1 and 65536"):
        client.add_group(prompt(), 2**32 - 1)
    np.testing.assert_equal(client.trajectory(0), store.trajectory(0))
    client.release(other.trajectory_id, other.epoch)
    wanted = [lease.trajectory_id, other.trajectory_id]
    (other,) = client.lease(2, now=1, duration=2, trajectory_ids=wanted)
    assert other.trajectory_id == wanted[1]
    client.release(other.trajectory_id, other.epoch)
    assert client.stats() == store.stats()
    assert client.recovery_report() == store.recovery_report()
    with pytest.raises(InvalidInputError, match="SharedStore"):
        client.serve(tmp_path / "other")
    client.close()
    with pytest.raises(InvalidInputError, match="closed"):
        client.unfinished()
    assert store.unfinished() == 2


def test_columns_go_both_ways(tmp_path: Path) -> None:
    declared = {"values": "float32", "image": "int64"}
    with Store(columns=declared) as store, store.serve(tmp_path / "s"):
        client = SharedStore(tmp_path / "s")
        assert client.columns() == declared
        finished(client, 2, 10)
        client.set_column(0, "values", np.arange(10, dtype=np.float32))
        client.set_column(1, "image", np.arange(3, dtype=np.int64), offset=2)
        with pytest.raises(InvalidInputError, match="declared"):
            client.set_column(0, "other", np.zeros(1, np.float32))
        np.testing.assert_equal(client.trajectory(1), store.trajectory(1))
        batch = client.sample(groups=2, version=0, max_staleness=0)
        assert batch.columns["values"].tolist() == [0] * 5 + [*range(10)] + [0] * 15
        assert batch.columns["image"].tolist() == [0] * 22 + [0, 1, 2] + [0] * 5
        assert batch.columns["image"].dtype == np.int64


def test_batches_stay_whatever_is_sampled_next(store: Store, client: SharedStore) -> None:
    finished(client, 30, 2000)
    batches = [client.sample(groups=3, version=0, max_staleness=0) for _ in range(10)]
    for i, batch in enumerate(batches):
        assert batch.trajectory_ids.tolist() == [3 * i, 3 * i + 1, 3 * i + 2]
        for row, start in enumerate(batch.cu_seqlens[:-1]):
            response = batch.input_ids[start + 5 : start + 2005]
            assert response.tolist() == list(range(3 * i + row, 3 * i + row + 2000))
        batch.rewards[:] = i  # views that can be written, as those of a store of this process
    client.close()
    assert [batch.rewards.tolist() for batch in batches] == [[i] * 3 for i in range(10)]
    assert store.complete_groups() == []


def test_answers_larger_than_the_memory_at_hand(client: SharedStore) -> None:
    finished(client, 1, 1_000_000)
    with SharedStore(client.path) as fresh:
        assert fresh.trajectory(0)["tokens"][-1] == 999_999
        assert len(fresh.sample(groups=1, version=0, max_staleness=0).input_ids) == 1_000_005


def test_leases_end_with_the_client(store: Store, tmp_path: Path) -> None:
    store.add_group(prompt(), 4)
    first, second = SharedStore(tmp_path / "socket"), SharedStore(tmp_path / "socket")
    (mine,) = first.lease(1, now=0, duration=1e9)
    (kept,) = second.lease(1, now=0, duration=1e9)
    (own,) = store.lease(1, now=0, duration=1e9)
    first.close()
    deadline = time.monotonic() + 30
    while store.trajectory(mine.trajectory_id)["epoch"] is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [lease.trajectory_id for lease in second.lease(9, now=0, duration=1)] == [0, 3]
    with pytest.raises(LeaseExpiredError, match="another worker"):
        store.append(0, mine.epoch, 0, np.ones(1, np.int32), np.zeros(1, np.float32), 0)
    for lease in (kept, own):
        assert store.trajectory(lease.trajectory_id)["epoch"] == lease.epoch


def test_threads_share_a_client(store: Store, client: SharedStore) -> None:
    client.add_group(prompt(), 8)
    leases = client.lease(8, now=0, duration=1e9)

    def work(place: int) -> None:
        lease = leases[place]
        for offset in range(0, 4000, 40):
            tokens = np.full(40, place, np.int32)
            log_probs = np.zeros(40, np.float32)
            client.append(lease.trajectory_id, lease.epoch, offset, tokens, log_probs, 0)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lease in leases:
        tokens = store.trajectory(lease.trajectory_id)["tokens"]
        assert tokens.tolist() == [lease.trajectory_id] * 4000


def test_a_full_store_blocks_or_refuses(tmp_path: Path) -> None:
    options = {"capacity_bytes": 40 * 4096, "file_bytes": 4096}
    for when_full in ("refuse", "block"):
        path = tmp_path / when_full
        with Store(when_full=when_full, **options) as store, store.serve(path):
            client = SharedStore(path)
            finished(client, 25, 400)
            client.add_group(prompt(), 1)
            (lease,) = client.lease(1, now=0, duration=1e9)

            def fill(client: SharedStore = client, lease: Lease = lease) -> None:
                zeros = np.zeros(400, np.int32), np.zeros(400, np.float32)
                for offset in range(0, 8000, 400):
                    client.append(lease.trajectory_id, lease.epoch, offset, *zeros, 0)

            if when_full == "refuse":
                with pytest.raises(CapacityError):
                    fill()
                continue
            drop = threading.Timer(0.3, store.drop_groups, [store.complete_groups()])
            drop.start()
            fill()
            drop.join()
            assert len(store.trajectory(25)["tokens"]) == 8000


def test_who_may_serve(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageError, match="another server serves a store here"):
        Store().serve(path)
    assert path.is_socket()
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(StorageError, match="not a socket"):
        store.serve(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"
    with pytest.raises(InvalidInputError, match="at most 107 bytes"):
        store.serve(tmp_path / ("x" * 200))
    with pytest.raises(StorageError, match="No such file or directory"):
        store.serve(tmp_path / "missing" / "socket")
    server = store.serve(tmp_path / "again")
    assert server.path == tmp_path / "again"
    for _ in range(2):
        server.close()
        assert not (tmp_path / "again").exists()
    store.serve(tmp_path / "again").close()


def test_a_stale_socket_is_replaced(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    with pytest.raises(DisconnectedError, match=r"no store is served here \(Connection refused"):
        SharedStore(path)
    with store.serve(path), SharedStore(path) as client:
        assert client.unfinished() == 0
    with pytest.raises(DisconnectedError, match=r"no store is served here \(No such file"):
        SharedStore(path)


def frame(version: int = VERSION, code: int = 1, **words: int) -> bytes:
    fields = [words.get(name, 0) for name in ("call", "slot", "words", "a", "b")]
    head = b"k15s" + version.to_bytes(4, "little") + code.to_bytes(4, "little") + bytes(4)
    return (head + b"".join(word.to_bytes(8, "little") for word in fields)).ljust(FRAME, b"\0")


def connect(path: Path) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    raw.settimeout(30)
    raw.connect(str(path))
    return raw


@pytest.mark.usefixtures("store")
def test_another_version_is_told_so(tmp_path: Path) -> None:
    with connect(tmp_path / "socket") as raw:
        raw.send(frame(version=9))
        answer = raw.recv(100)
        assert (answer[4], answer[8]) == (VERSION, 3)
        assert raw.recv(100) == b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "later"))
        listener.listen()

        def answer_as_a_later_version() -> None:
            with listener.accept()[0] as raw:
                raw.recv(100)
                raw.send(frame(version=VERSION + 1, code=3) + b"longer")

        server = threading.Thread(target=answer_as_a_later_version)
        server.start()
        with pytest.raises(StorageError, match=f"speaks version {VERSION + 1} of the protocol"):
            SharedStore(tmp_path / "later")
        server.join()


def test_nonsense_on_the_socket_harms_nobody(client: SharedStore) -> None:
    rng = random.Random(3)
    sealed = os.memfd_create("m", os.MFD_ALLOW_SEALING)
    os.ftruncate(sealed, 4096)
    shrinks = os.memfd_create("m")
    for round_ in range(200):
        with connect(client.path) as raw:
            if round_ % 2:
                raw.send(frame())
                raw.recv(100)
            files = [rng.choice([sealed, shrinks]) for _ in range(rng.choice([0, 0, 1, 3]))]
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
            whole = frame(code=rng.randrange(30), words=rng.choice([0, 3, 2**60]))
            noise = rng.randbytes(rng.choice([1, 63, 64, 65, 5000]))
            raw.sendmsg([rng.choice([whole, noise])], [rights] if files else [])
            answer = raw.recv(100)
            assert answer == b"" or answer[:4] == b"k15s"
    os.close(sealed)
    os.close(shrinks)
    assert client.unfinished() == 0


def test_other_users_are_refused(store: Store) -> None:
    if os.getuid() != 0:
        pytest.skip("run as root: connects as another user")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = Path(name, "socket")
        code = (
            "import socket, sys\n"
            "raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "try: raw.connect(sys.argv[1])\n"
            "except PermissionError: sys.exit(9)\n"
            "sys.exit(raw.recv(100)[8])\n"
        )
        command = ["/usr/bin/env", "python3", "-I", "-S", "-c", code, str(path)]
        with store.serve(path):
            for mode, ending in ((0o600, 9), (0o666, 4)):
                path.chmod(mode)
                ended = subprocess.run(command, user=64321, check=False, cwd="/", timeout=60)
                assert ended.returncode == ending


def test_a_forked_child_must_connect_itself(client: SharedStore) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            client.unfinished()
        except InvalidInputError as error:
            os._exit(0 if "of which this is a copy" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert client.unfinished() == 0


def out_of_time(*_: object) -> None:
    raise TimeoutError


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop a process and wait until every thread of it has stopped."""
    server.send_signal(signal.SIGSTOP)
    os.waitpid(server.pid, os.WUNTRACED)


def test_a_server_that_dies_and_one_that_hangs(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command = [sys.executable, store_served.__file__, str(tmp_path / "store"), str(path)]

    def start() -> subprocess.Popen[bytes]:
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == b"open\n"
        return server

    with start() as server:
        client = SharedStore(path)
        client.add_group(prompt(), 1)
        (lease,) = client.lease(1, now=0, duration=1e9)
        one = np.ones(1, np.int32), np.zeros(1, np.float32)
        client.append(0, lease.epoch, 0, *one, 0)
        stop(server)
        late = threading.Timer(0.5, server.kill)
        late.start()
        with pytest.raises(DisconnectedError, match="whether the call was carried out is not kn"):
            client.append(0, lease.epoch, 1, *one, 0)
        with pytest.raises(DisconnectedError, match="no store is served here"):
            client.append(0, lease.epoch, 1, *one, 0)
        late.join()
    with start() as server:
        assert client.trajectory(0)["tokens"].tolist() == [1]
        with pytest.raises(LeaseExpiredError, match="restart"):
            client.append(0, lease.epoch, 1, *one, 0)
        (lease,) = client.lease(1, now=0, duration=1e9)
        stop(server)
        before = signal.signal(signal.SIGALRM, out_of_time)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(TimeoutError):
            client.append(0, lease.epoch, 1, *one, 0)
        signal.signal(signal.SIGALRM, before)
        server.send_signal(signal.SIGCONT)
        client.append(0, lease.epoch, 1, *one, 0)  # carried out before: does nothing
        assert client.trajectory(0)["tokens"].tolist() == [1, 1]
        server.communicate(b"")
