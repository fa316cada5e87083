"""Metadata for many machines, in etcd, by its JSON gateway (the client is OpenStack's etcd3gw)."""

from __future__ import annotations

import base64
import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import etcd3gw
import requests
from etcd3gw.exceptions import ConnectionFailedError, ConnectionTimeoutError, Etcd3Exception

from k15core.deploy.closing import Closing
from k15core.deploy.metadata.base import (
    Event,
    Item,
    MetadataLease,
    check_key,
    check_prefix,
    check_revision,
    check_seconds,
    check_value,
)
from k15core.errors import DisconnectedError, InvalidInputError, LeaseExpiredError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EtcdMetadata"]

TIMEOUT_SECONDS = 30.0
HISTORY_SECONDS = 1.0
"""How long a watch waits at least for changes of the past: nothing says that there are none."""


class EtcdMetadata(Closing):
    """`Metadata` in an etcd (3.4 or later) at `host` and `port`, under `prefix`.

    `options` go to etcd3gw.client untouched: protocol, ca_cert, cert_key, cert_cert, … A call whose
    connection breaks raises DisconnectedError: whether it was carried out is then not known.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 2379,
        *,
        prefix: str = "k15core/",
        timeout: float = TIMEOUT_SECONDS,
        **options: Any,
    ) -> None:
        self.prefix = check_prefix(prefix)
        self.timeout = timeout
        self._client = etcd3gw.client(host=host, port=port, timeout=timeout, **options)
        self._name = f"etcd {host}:{port}"

    def get(self, key: str) -> Item | None:
        """See `Metadata.get`."""
        answer = self._call("/kv/range", {"key": self._encoded(check_key(key))})
        items = [self._item(each) for each in answer.get("kvs", [])]
        return items[0] if items else None

    def items(self, prefix: str) -> tuple[list[Item], int]:
        """See `Metadata.items`."""
        answer = self._call("/kv/range", self._range(check_prefix(prefix)))
        return [self._item(each) for each in answer.get("kvs", [])], _revision(answer)

    def put(self, key: str, value: bytes, *, lease: MetadataLease | None = None) -> int:
        """See `Metadata.put`."""
        return _revision(self._call("/kv/put", self._put_request(key, value, lease)))

    def compare_and_put(
        self, key: str, value: bytes, *, revision: int, lease: MetadataLease | None = None
    ) -> int | None:
        """See `Metadata.compare_and_put`."""
        request = self._put_request(key, value, lease)
        compared = {
            "key": request["key"],
            "target": "MOD",
            "result": "EQUAL",
            "mod_revision": check_revision(revision, "revision"),
        }
        body = {"compare": [compared], "success": [{"request_put": request}]}
        answer = self._call("/kv/txn", body)
        return _revision(answer) if answer.get("succeeded") else None

    def delete(self, key: str) -> bool:
        """See `Metadata.delete`."""
        answer = self._call("/kv/deleterange", {"key": self._encoded(check_key(key))})
        return int(answer.get("deleted", 0)) > 0

    def lease(self, seconds: int) -> MetadataLease:
        """See `Metadata.lease`. An etcd may make it longer: its least is set by its elections."""
        with self._named():
            return EtcdLease(self, self._client.lease(check_seconds(seconds)), seconds)

    def watch(self, prefix: str, *, after: int, seconds: float) -> list[Event]:
        """See `Metadata.watch`. May wait HISTORY_SECONDS where `seconds` is less."""
        request = self._range(check_prefix(prefix))
        request["start_revision"] = check_revision(after, "after") + 1
        deadline = time.monotonic() + seconds
        # etcd3gw's own watcher takes each piece that arrives for a whole message.
        with self._named():
            answers = self._client.session.post(
                self._client.get_url("/watch"),
                json={"create_request": request},
                stream=True,
                timeout=(self.timeout, max(seconds, HISTORY_SECONDS)),
            )
        try:
            with answers:
                for answer in self._answers(answers):
                    if int(answer.get("compact_revision", 0)):
                        raise InvalidInputError(
                            f"after {after}: changes are kept from revision "
                            f"{answer['compact_revision']} on; ask for the items anew"
                        )
                    if answer.get("canceled"):
                        raise DisconnectedError(f"{self._name}: watch ended: {answer}")
                    if events := [self._event(each) for each in answer.get("events", [])]:
                        return events
                    if _revision(answer) <= after and time.monotonic() >= deadline:
                        return []
        except requests.exceptions.ConnectionError as error:
            if "timed out" in str(error):  # what requests makes of silence
                return []
            raise DisconnectedError(f"{self._name}: {error}") from error
        except requests.exceptions.RequestException as error:
            raise DisconnectedError(f"{self._name}: {error}") from error
        raise DisconnectedError(f"{self._name}: the watch ended")

    def close(self) -> None:
        """See `Metadata.close`."""
        self._client.session.close()

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._named():
            return dict(self._client.post(self._client.get_url(path), json=body))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """The client's errors as ours."""
        try:
            yield
        except (ConnectionFailedError, ConnectionTimeoutError) as error:
            raise DisconnectedError(f"{self._name}: {error or error.detail_text}") from error
        except Etcd3Exception as error:
            text = f"{self._name}: {error} {error.detail_text or ''}"
            if "lease not found" in text:
                raise LeaseExpiredError(f"{self._name}: the lease has expired") from error
            raise StorageError(text) from error
        except requests.exceptions.RequestException as error:
            raise DisconnectedError(f"{self._name}: {error}") from error

    @staticmethod
    def _answers(stream: requests.Response) -> Iterator[dict[str, Any]]:
        for line in stream.iter_lines():
            if line:
                answer = json.loads(line)
                yield answer.get("result", {"canceled": True, "error": answer.get("error")})

    def _encoded(self, key: str) -> str:
        return _encode(self.prefix.encode() + key.encode())

    def _range(self, prefix: str) -> dict[str, Any]:
        """All keys that begin with a prefix: up to the first that is greater than each of them."""
        first = (self.prefix + prefix).encode()
        kept = first.rstrip(b"\xff")
        end = kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"
        return {"key": _encode(first or b"\0"), "range_end": _encode(end)}

    def _put_request(self, key: str, value: bytes, lease: MetadataLease | None) -> dict[str, Any]:
        request = {"key": self._encoded(check_key(key)), "value": _encode(check_value(value))}
        if lease is not None:
            if not isinstance(lease, EtcdLease):
                raise InvalidInputError(f"lease {lease!r}: expected one of this metadata")
            request["lease"] = str(lease.number)
        return request

    def _key(self, found: dict[str, Any]) -> str:
        return base64.b64decode(found["key"]).decode().removeprefix(self.prefix)

    def _item(self, found: dict[str, Any]) -> Item:
        value = base64.b64decode(found.get("value", ""))
        return Item(self._key(found), value, int(found["mod_revision"]))

    def _event(self, found: dict[str, Any]) -> Event:
        item = self._item(found["kv"])
        return Event(item.key, None if found.get("type") == "DELETE" else item.value, item.revision)


class EtcdLease:
    """A lease of an EtcdMetadata."""

    def __init__(self, metadata: EtcdMetadata, lease: Any, seconds: int) -> None:
        self.metadata = metadata
        self.number = int(lease.id)
        self.seconds = seconds
        self._lease = lease

    def keep_alive(self) -> None:
        """See `MetadataLease.keep_alive`."""
        with self.metadata._named():
            if self._lease.refresh() <= 0:
                raise LeaseExpiredError(f"{self.metadata._name}: lease {self.number} has expired")

    def revoke(self) -> None:
        """See `MetadataLease.revoke`."""
        try:
            with self.metadata._named():
                self._lease.revoke()
        except LeaseExpiredError:
            pass


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _revision(answer: dict[str, Any]) -> int:
    return int(answer["header"]["revision"])
