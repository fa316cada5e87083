"""Metadata in a file and in etcd: one contract, held against a plain dict, and killed writers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from etcd_server import etcd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nursery import wait_until

from k15core.deploy.metadata import (
    Event,
    FileMetadata,
    KeptLease,
    Metadata,
    MetadataLease,
    Published,
    WeightRegistry,
)
from k15core.deploy.shared_weights.manifest import Manifest
from k15core.errors import (
    CorruptionError,
    DisconnectedError,
    InvalidInputError,
    LeaseExpiredError,
)

WAIT_SECONDS = 120.0
KINDS = ["file", "etcd"]

Open = Callable[[], Metadata]


@pytest.fixture(scope="module")
def etcd_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    pytest.importorskip("etcd3gw", reason="etcd3gw is not installed: pip install 'k15core[etcd]'")
    with etcd(tmp_path_factory.mktemp("etcd")) as port:
        yield port


@pytest.fixture(params=KINDS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same new metadata again and again, as several processes would."""
    if request.param == "file":
        return lambda: FileMetadata(tmp_path / "metadata.db")
    port = request.getfixturevalue("etcd_port")
    return lambda: on_etcd(port, f"{tmp_path}/")


def on_etcd(port: int, prefix: str) -> Metadata:
    from k15core.deploy.etcd import EtcdMetadata

    return EtcdMetadata("127.0.0.1", port, prefix=prefix)


@pytest.fixture
def metadata(opener: Open) -> Iterator[Metadata]:
    made = opener()
    yield made
    made.close()


keys = st.sampled_from(["a", "a/b", "a/b/c", "a0", "b", "ä/€", "b" * 100, "%_"])
values = st.binary(max_size=20)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, values, st.booleans()),
        st.tuples(st.just("compare"), keys, values, st.sampled_from(["now", "absent", "other"])),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("revoke")),
    ),
    max_size=25,
)
PREFIXES = ["", "a", "a/", "ä", "b", "%"]
counted = itertools.count()


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps, prefix=st.sampled_from(PREFIXES))
def test_it_is_a_dict_with_revisions(
    opener: Open, steps: list[tuple[object, ...]], prefix: str
) -> None:
    # A prefix of its own for each example: with a file's revisions going on from the last.
    home = f"{next(counted)}/"
    plain: dict[str, tuple[bytes, int, bool]] = {}
    history: list[Event] = []
    first, second = opener(), opener()
    try:
        lease = first.lease(1000)
        _, begin = first.items(home)
        last = begin
        for turn, (what, *rest) in enumerate(steps):
            each = (first, second)[turn % 2]
            key = home + str(rest[0]) if rest else ""
            if what == "put":
                value, leased = rest[1:]
                each = first if leased else each
                revision = each.put(key, value, lease=lease if leased else None)
                changes = [Event(key, value, revision)]
                plain[key] = (value, revision, leased)
            elif what == "compare":
                value, which = rest[1:]
                now = plain[key][1] if key in plain else 0
                told = {"now": now, "absent": 0, "other": now + 1}[which]
                put = each.compare_and_put(key, value, revision=told)
                assert (put is not None) == (told == now)
                changes = []
                if put is not None:
                    changes = [Event(key, value, put)]
                    plain[key] = (value, put, False)
            elif what == "delete":
                there = key in plain
                assert each.delete(key) == there
                changes = [Event(key, None, each.items("")[1])] if there else []
                plain.pop(key, None)
            else:
                lease.revoke()
                gone = sorted(key for key, (_, _, leased) in plain.items() if leased)
                revision = second.items("")[1]
                changes = [Event(key, None, revision) for key in gone]
                plain = {key: found for key, found in plain.items() if not found[2]}
                with pytest.raises(LeaseExpiredError):
                    lease.keep_alive()
                lease = first.lease(1000)
            for change in changes:
                assert change.revision > last
            last = max([last, *(change.revision for change in changes)])
            history += changes
            assert_items((first, second)[(turn + 1) % 2], home, plain, last)
        for each in PREFIXES:
            assert_items(second, home + each, plain, last)
        assert second.get(f"{home}nothing") is None
        for key, (value, revision, _) in plain.items():
            item = second.get(key)
            assert item is not None
            assert (item.value, item.revision) == (value, revision)
        seen = [event for event in history if event.key.startswith(home + prefix)]
        assert watched(second, home + prefix, begin, len(seen)) == sorted(
            seen, key=lambda event: (event.revision, event.key.encode())
        )
    finally:
        first.close()
        second.close()


def assert_items(
    metadata: Metadata, prefix: str, plain: dict[str, tuple[bytes, int, bool]], last: int
) -> None:
    found, revision = metadata.items(prefix)
    wanted = sorted((key for key in plain if key.startswith(prefix)), key=str.encode)
    assert [(item.key, item.value, item.revision) for item in found] == [
        (key, *plain[key][:2]) for key in wanted
    ]
    assert revision >= last


def watched(metadata: Metadata, prefix: str, after: int, n: int) -> list[Event]:
    """The next n changes and what comes with them, by revision and key."""
    found: list[Event] = []
    while len(found) < n:
        came = metadata.watch(prefix, after=after, seconds=WAIT_SECONDS)
        assert came, "no change came"
        found += came
        after = found[-1].revision
    return sorted(found, key=lambda event: (event.revision, event.key.encode()))


def test_a_watch_waits_for_what_comes(opener: Open, metadata: Metadata) -> None:
    other = opener()
    _, begin = metadata.items("")
    assert metadata.watch("w/", after=begin, seconds=0.0) == []
    came: list[list[Event]] = []
    watcher = threading.Thread(
        target=lambda: came.append(other.watch("w/", after=begin, seconds=WAIT_SECONDS))
    )
    watcher.start()
    metadata.put("v", b"not this")
    revision = metadata.put("w/1", b"this")
    watcher.join(WAIT_SECONDS)
    assert came == [[Event("w/1", b"this", revision)]]
    assert metadata.watch("w/", after=begin, seconds=0.0) == came[0]
    other.close()


def test_what_a_lease_holds_goes_with_it(metadata: Metadata) -> None:
    _, begin = metadata.items("")
    while True:  # a second may be over before the put is there
        short = metadata.lease(1)
        try:
            metadata.put("lost", b"1", lease=short)
            break
        except LeaseExpiredError:
            pass
    (gone,) = [each for each in watched(metadata, "lost", begin, 2) if each.value is None]
    assert gone.key == "lost"
    with pytest.raises(LeaseExpiredError, match="expired"):
        short.keep_alive()
    with pytest.raises(LeaseExpiredError, match="expired"):
        metadata.put("late", b"", lease=short)
    short.revoke()
    assert metadata.get("late") is None


class Counted:
    """A lease that says that it is short, is not, and counts how often it was kept alive."""

    seconds = 1

    def __init__(self, lease: MetadataLease) -> None:
        self.lease, self.times = lease, 0
        self.fails: list[Exception] = []

    def keep_alive(self) -> None:
        self.times += 1
        if self.fails:
            raise self.fails.pop(0)
        self.lease.keep_alive()

    def revoke(self) -> None:
        self.lease.revoke()


def test_a_kept_lease_lives_until_it_is_closed(metadata: Metadata) -> None:
    lease = metadata.lease(1000)
    metadata.put("kept", b"1", lease=lease)
    counted = Counted(lease)
    counted.fails.append(DisconnectedError("for a moment"))
    with KeptLease(counted) as kept:
        wait_until(lambda: counted.times >= 3)
        assert not kept.lost
        assert metadata.get("kept") is not None
    assert metadata.get("kept") is None
    with KeptLease(Counted(lease)) as kept:
        wait_until(lambda: kept.lost)
    kept.close()


def test_compare_and_put_counts_every_time(opener: Open) -> None:
    def count() -> None:
        mine = opener()
        for _ in range(10):
            while True:
                item = mine.get("count")
                now = (int(item.value), item.revision) if item else (0, 0)
                put = mine.compare_and_put("count", f"{now[0] + 1}".encode(), revision=now[1])
                if put is not None:
                    break
        mine.close()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    metadata = opener()
    item = metadata.get("count")
    assert item is not None
    assert item.value == b"40"
    metadata.close()


def test_what_is_not_understood_is_refused_by_name(metadata: Metadata) -> None:
    for call, named in (
        (lambda: metadata.get(""), "key ''"),
        (lambda: metadata.put("k" * 1025, b""), "key 'kkk"),
        (lambda: metadata.put("a\0b", b""), "NUL"),
        (lambda: metadata.put("\ud800", b""), "surrogate"),
        (lambda: metadata.put("a", "text"), "value of type str"),  # type: ignore[arg-type]
        (lambda: metadata.put("a", bytes(2**20 + 1)), "value of 1048577 bytes"),
        (lambda: metadata.items(None), "prefix None"),  # type: ignore[arg-type]
        (lambda: metadata.compare_and_put("a", b"", revision=-1), "revision -1"),
        (lambda: metadata.watch("a", after=True, seconds=0), "after True"),
        (lambda: metadata.lease(0), "seconds 0"),
        (lambda: metadata.put("a", b"", lease=object()), "lease"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInputError, match=named):
            call()
    assert metadata.items("")[0] == []


def test_published_versions_are_found(opener: Open, metadata: Metadata) -> None:
    ours, other = WeightRegistry(metadata, "Qwen/Qwen3-8B"), WeightRegistry(metadata, "Qwen")
    manifest = Manifest(3, "buffer-0", 100, ())
    first = ours.announce(manifest, "/dev/shm/a", node="n/1", address="10.0.0.1:1")
    assert first == Published("Qwen/Qwen3-8B", 3, "n/1", "all", "/dev/shm/a", 100, 0, "10.0.0.1:1")
    assert other.published() == []
    assert [item.key for item in metadata.items("")[0]] == [
        "weights/Qwen%2FQwen3-8B/0000000003/n%2F1/all"
    ]
    ours.announce(manifest, "/dev/shm/b", node="n2", shard="tp-0")
    assert len(ours.published(3)) == 2
    found: list[list[Published]] = []
    reader = WeightRegistry(opener(), "Qwen/Qwen3-8B")
    waiting = threading.Thread(
        target=lambda: found.append(reader.wait_for(4, seconds=WAIT_SECONDS))
    )
    waiting.start()
    fourth = ours.announce(Manifest(4, "buffer-1", 100, ()), "/dev/shm/a", node="n/1")
    waiting.join(WAIT_SECONDS)
    assert found == [[fourth]]
    assert [each.version for each in ours.published()] == [3, 4]
    assert reader.wait_for(5, seconds=0.0) == []
    ours.withdraw(node="n/1")
    ours.withdraw(node="n2", shard="tp-0")
    assert ours.published() == []
    with pytest.raises(InvalidInputError, match="node ''"):
        ours.announce(manifest, "/dev/shm/a", node="")
    metadata.put("weights/Qwen/0000000001/n/all", b'{"model": 1}')
    with pytest.raises(CorruptionError, match="weights/Qwen/0000000001"):
        other.published()
    reader.metadata.close()


def test_an_etcd_that_is_gone_is_told(tmp_path: Path) -> None:
    pytest.importorskip("etcd3gw", reason="etcd3gw is not installed: pip install 'k15core[etcd]'")
    with etcd(tmp_path) as port:
        metadata = on_etcd(port, "")
        metadata.put("a", b"")
    for call in (
        lambda: metadata.get("a"),
        lambda: metadata.lease(5),
        lambda: metadata.watch("", after=0, seconds=0.1),
    ):
        with pytest.raises(DisconnectedError, match=f"etcd 127.0.0.1:{port}"):
            call()
    metadata.close()
