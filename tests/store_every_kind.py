"""A log with a record of every kind, for the tests that damage it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from k15core import Prompt, Store

OPTIONS = {"capacity_bytes": 32 << 12, "file_bytes": 4096, "columns": {"values": "float32"}}


def respond(store: Store, n: int, version: int, reason: str = "stop") -> None:
    for lease in store.lease(100, now=0, duration=1):
        tokens = np.arange(n, dtype=np.int32)
        log_probs = -np.ones(n, np.float32)
        who = (lease.trajectory_id, lease.epoch)
        store.append(*who, lease.response_length, tokens, log_probs, version)
        store.set_column(lease.trajectory_id, "values", -log_probs)
        store.finish(*who, reason)
        if reason != "abort":
            store.set_reward(lease.trajectory_id, 1.0)


def write_every_kind(directory: Path) -> None:
    prompt = Prompt(1, np.arange(20, dtype=np.int32), "answer", ("tag",), 0.5)
    with Store(directory, when_full="evict_oldest", sync="never", **OPTIONS) as store:
        store.mark(0)
        store.add_group(prompt, 2)
        respond(store, 30, 1, "abort")
        store.lease(2, now=0, duration=9)
        for _ in range(60):  # what was aborted is in the way, and is moved
            (member,) = store.add_group(prompt, 1)
            respond(store, 200, 1)
            store.drop_groups([store.trajectory(member)["group_id"]])
            store.mark(0)
        while store.stats()["bytes_live"] < OPTIONS["capacity_bytes"] * 0.55:
            store.add_group(prompt, 1)
            respond(store, 200, 1)
        mark = store.mark(0)  # evicts
        store.drop_groups(store.complete_groups()[:1])
        store.sample(groups=1, version=1, max_staleness=1)
        store.add_group(prompt, 1)
        respond(store, 10, 1, "abort")
        store.rewind(mark)
        respond(store, 10, 0)
