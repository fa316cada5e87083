"""Damage at every kind of record: verify names it, repair keeps everything else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from log_reader import (
    HEADER,
    KINDS,
    Record,
    crc32c,
    flip,
    log_files,
    overwrite,
    records,
    word,
)
from store_every_kind import write_every_kind
from store_model import Fact, ModelStore

from k15core import Prompt, Store
from k15core._core import StoreReader, repair_store, verify_store
from k15core.errors import CorruptionError, InvalidInputError, StorageError

OPTIONS = {
    "capacity_bytes": 64 << 12,
    "file_bytes": 4096,
    "sync": "never",
    "columns": {"values": "float32"},
}
DATA = ["Group", "Append", "Finish", "Abort", "Reward", "Use", "Drop", "Column"]


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("every-kind")
    write_every_kind(directory)
    return directory


class History:
    """A store in which everything happens, and what happened, one fact for each record of data."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random, self.model = random.Random(seed), ModelStore(1)
        self.store = Store(directory, **OPTIONS)
        self.leases: dict[int, int] = {}
        for _ in range(120):
            getattr(
                self,
                self.random.choice(["group", "append", "append", "append", "end", "use", "column"]),
            )()
        self.store.close()

    def group(self) -> None:
        model, k = self.model, self.random.randint(1, 3)
        tokens = np.arange(self.random.randint(1, 30), dtype=np.int32)
        members = self.store.add_group(Prompt(model.next_group, tokens, "a"), k, version=0)
        model.record("group", model.next_group, members[0], k, tokens.tolist(), version=0)
        model.next_group, model.next_trajectory = model.next_group + 1, members[-1] + 1

    def held(self) -> int | None:
        for lease in self.store.lease(100, now=0, duration=1e9):
            self.leases[lease.trajectory_id] = lease.epoch
        unfinished = self.model.unfinished()
        return self.random.choice(unfinished) if unfinished else None

    def append(self) -> None:
        if (who := self.held()) is None:
            return
        n = self.random.choice([1, 2, 40])
        tokens = np.array([self.random.randrange(1000) for _ in range(n)], np.int32)
        log_probs, offset = -tokens.astype(np.float32), len(self.model.trajectories[who].tokens)
        self.store.append(who, self.leases[who], offset, tokens, log_probs, 0)
        rows = zip(tokens.tolist(), log_probs.tolist(), [1] * n, strict=True)
        self.model.record("append", who, list(rows), version=0)

    def end(self) -> None:
        if (who := self.held()) is None:
            return
        reason = self.random.choice(["stop", "stop", "length", "abort"])
        self.store.finish(who, self.leases.pop(who), reason)
        if reason == "abort":
            self.model.record("abort", who)
            return
        self.model.record("finish", who, reason)
        if self.random.random() < 0.8:
            self.store.set_reward(who, 0.5)
            self.model.record("reward", who, 0.5)

    def column(self) -> None:
        ids = [i for i, t in self.model.trajectories.items() if t.tokens]
        ids = [i for i in ids if self.model.alive(self.model.trajectories[i].group_id)]
        if not ids:
            return
        who = self.random.choice(ids)
        length = len(self.model.trajectories[who].tokens)
        offset = self.random.randrange(length)
        n = self.random.randint(1, length - offset)
        values = np.array([self.random.random() for _ in range(n)], np.float32)
        self.store.set_column(who, "values", values, offset=offset)
        self.model.record("column", who, "values", offset, values.tolist())

    def use(self) -> None:
        kind = self.random.choice(["use", "drop"])
        if self.random.random() > 0.3:
            return
        if kind == "use" and self.model.complete():
            group_id = self.model.complete()[0]
            self.store.sample(groups=1, version=0, max_staleness=0)
        elif kind == "drop" and self.model.groups:
            group_id = self.random.choice(list(self.model.groups))
            if not self.model.alive(group_id):
                return
            self.store.drop_groups([group_id])
        else:
            return
        self.model.record(kind, group_id)


class Remains:
    """What is left of the facts when one is lost, worked out fact by fact.

    `known` says whether the damaged record's header tells what it was, `tokens` whether it is long
    enough to have held tokens.
    """

    def __init__(self, facts: list[Fact], lost: int, *, known: bool, tokens: bool) -> None:
        self.gone, self.model = facts[lost], ModelStore(1)
        self.may_hide_tokens = tokens and not known
        self.holes = {self.gone.subject} if self.gone.kind == "append" else set()
        self.proved: set[int] = set()  # an append or an abort shows that nothing is missing
        for fact in facts[:lost]:
            self.take(fact)
        self.open = set(self.model.trajectories)
        for fact in facts[lost + 1 :]:
            if getattr(self, f"after_{fact.kind}", self.take)(fact):
                self.take(fact)

    def take(self, fact: Fact) -> None:
        known = self.model.groups if fact.kind in ("use", "drop") else self.model.trajectories
        if fact.kind == "group" or fact.subject in known:
            self.model.record(fact.kind, fact.subject, *fact.value, version=0)

    def after_append(self, fact: Fact) -> bool:
        who = fact.subject
        if who in self.holes:
            return False
        if self.gone.kind == "abort" and who == self.gone.subject and who not in self.proved:
            self.model.record("abort", who, version=0)
        self.proved.add(who)
        return True

    def after_column(self, fact: Fact) -> bool:
        """Stands as far as its tokens are there: all of them, or it does not."""
        trajectory = self.model.trajectories.get(fact.subject)
        _, offset, values = fact.value
        return trajectory is not None and offset + len(values) <= len(trajectory.tokens)

    def after_abort(self, fact: Fact) -> bool:
        self.holes.discard(fact.subject)
        self.proved.add(fact.subject)
        return True

    def after_finish(self, fact: Fact) -> bool:
        doubtful = self.may_hide_tokens and fact.subject in self.open - self.proved
        return not doubtful and fact.subject not in self.holes

    def after_reward(self, fact: Fact) -> bool:
        trajectory = self.model.trajectories.get(fact.subject)
        return trajectory is not None and trajectory.reason is not None


def same(store: Store, model: ModelStore) -> None:
    alive = [i for i in sorted(model.groups) if model.alive(i)]
    assert store.pending_groups(2**32 - 1) == alive
    assert store.complete_groups() == model.complete()
    for group_id in alive:
        assert store.group(group_id)["prompt"].input_ids.tolist() == model.groups[group_id].prompt
        for member in model.groups[group_id].members:
            wanted, view = model.trajectories[member], store.trajectory(member)
            columns = ("tokens", "log_probs", "loss_mask", "versions")
            rows = list(zip(*(view[name].tolist() for name in columns), strict=True))
            assert (member, rows) == (member, wanted.tokens)
            assert (member, view["finish_reason"]) == (member, wanted.reason)
            assert (member, view["reward"]) == (member, wanted.reward)
            assert (member, view["columns"]["values"].tolist()) == (member, wanted.column("values"))


@pytest.mark.parametrize("seed", range(4))
def test_repair_keeps_exactly_what_is_whole(seed: int, tmp_path: Path) -> None:
    history = History(tmp_path / "whole", seed)
    found = [record for path in log_files(tmp_path / "whole") for record in records(path)]
    data = [record for record in found if record.kind in DATA]
    facts = history.model.facts
    assert [record.kind.lower() for record in data] == [fact.kind for fact in facts]
    kinds: dict[str, list[int]] = {}
    for place, record in enumerate(data):
        kinds.setdefault(record.kind, []).append(place)
    for places in kinds.values():
        for lost in history.random.sample(places, min(5, len(places))):
            for in_header in (False, True):
                check_one(tmp_path, data[lost], facts, lost, in_header=in_header)
    assert set(kinds) == set(DATA) or seed


def check_one(
    tmp_path: Path, record: Record, facts: list[Fact], lost: int, *, in_header: bool
) -> None:
    copy = Path(shutil.copytree(tmp_path / "whole", tmp_path / "copy"))
    flip(copy / record.path.name, record.offset + (16 if in_header else 4), 3)
    with pytest.raises(CorruptionError):
        Store(copy, **OPTIONS)
    done = repair_store(copy)
    (damage,) = done["before"]["damages"]
    assert (damage["offset"], damage["record"]) == (record.offset, record.number)
    assert damage["kind"] == (None if in_header else record.kind)
    size, is_last = record.end - record.offset, lost == len(facts) - 1
    # Behind the last record there is nothing that tells how many are lost.
    assert damage["records"] in ((1, None) if is_last else (1,))
    model = Remains(facts, lost, known=not in_header, tokens=size >= 64).model
    if not in_header and not record.payload:
        # All of it is in the header: nothing is lost with the checksum of nothing.
        model.facts = facts
        model.refresh()
    with Store(copy, **OPTIONS) as store:
        same(store, model)
        epochs = [lease.epoch for lease in store.lease(1, now=0, duration=1)]
        assert all(epoch > 2**32 for epoch in epochs)
    assert verify_store(copy)["damages"] == []
    assert (len(list(copy.glob("*.damaged")))) == len(done["set_aside"]) > 0
    shutil.rmtree(copy)


def views(directory: Path) -> dict[int, dict[str, object]]:
    """Everything that a store holds, by trajectory."""
    with StoreReader(directory, max_uses=9) as reader:
        found = {i: reader.trajectory(i) for i in reader.trajectory_ids()}
    for view in found.values():
        view.update({f"column {name}": values for name, values in view.pop("columns").items()})
    return {
        i: {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in view.items()}
        for i, view in found.items()
    }


def same_but_for_losses(
    whole: dict[str, object], now: dict[str, object], kind: str, *, is_known: bool, named: set[int]
) -> None:
    """A trajectory is as it was, unless it was named, or the record took something away."""
    columns = ("tokens", "log_probs", "loss_mask", "versions")
    if kind in ("Mark", "Rewind"):  # what a rewind took back is back, and what came then is named
        if whole["trajectory_id"] in named:
            return
        whole, now = now, whole
    for name in columns:
        assert now[name] == whole[name][: len(now[name])]  # type: ignore[index,arg-type]
    if is_known and whole["trajectory_id"] not in named and kind not in ("Mark", "Rewind"):
        for name in {*columns, "reward", "finish_reason", "prompt_tokens"}:
            assert now[name] == whole[name]
    assert now["reward"] in (whole["reward"], None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["header", "payload"])
def test_every_kind_of_record(kind: str, where: str, every_kind: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(every_kind, tmp_path / "copy"))
    whole = views(copy)
    found = [r for path in log_files(copy) for r in records(path) if r.kind == kind]
    for record in random.Random(kind).sample(found, min(3, len(found))):
        shutil.rmtree(copy)
        shutil.copytree(every_kind, copy)
        place = 24 if where == "header" else 4 if not record.payload else HEADER
        flip(record.path, record.offset + place, 5)
        found_before = contents(copy)
        verified = verify_store(copy)
        assert contents(copy) == found_before
        (damage,) = verified["damages"]
        assert (damage["file"], damage["offset"]) == (str(record.path), record.offset)
        assert (damage["record"], damage["kind"]) == (
            record.number,
            kind if where == "payload" else None,
        )
        if where == "payload" and damage["subject"]:
            assert damage["subject_id"] == record.subject
        assert verified["opening"] == "refused"
        done = repair_store(copy)
        named = {lost["trajectory_id"] for lost in done["trajectories"]}
        now = views(copy)
        for i in whole.keys() & now.keys():
            same_but_for_losses(whole[i], now[i], kind, is_known=where == "payload", named=named)
        for i in whole.keys() - now.keys():
            assert i in named or whole[i]["group_id"] in done["groups_lost"] or where == "header"
        assert verify_store(copy)["damages"] == []
        with Store(copy, **OPTIONS) as store:
            assert store.recovery_report()["torn"] is None
        aside = {path.name.removesuffix(".damaged"): path for path in copy.glob("*.damaged")}
        assert {name: path.read_bytes() for name, path in aside.items()} == {
            name: data for name, data in found_before.items() if name.endswith(".log")
        }


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_is_found_and_repaired(seed: int, every_kind: Path, tmp_path: Path) -> None:
    """Zeroed pages, truncations, missing files, damaged headers, several at once."""
    rng = random.Random(seed)
    copy = Path(shutil.copytree(every_kind, tmp_path / "copy"))
    for _ in range(rng.randint(1, 4)):
        path = rng.choice(log_files(copy))
        how = rng.choice(["zero", "noise", "truncate", "unlink", "header", "flip"])
        size, at = path.stat().st_size, rng.randrange(128, 3000)
        if how == "zero":
            overwrite(path, at, bytes(rng.choice([8, 64, 512])))
        elif how == "noise":
            overwrite(path, at, rng.randbytes(rng.choice([8, 64, 512])))
        elif how == "truncate":
            path.write_bytes(path.read_bytes()[: rng.randrange(size)])
        elif how == "unlink":
            path.unlink()
        elif size > 128:
            flip(path, rng.randrange(128) if how == "header" else at % size, rng.randrange(8))
    verified = verify_store(copy)
    if verified["opening"] == "refused":
        assert verified["damages"]
        assert repair_store(copy)["set_aside"]
    assert verify_store(copy)["damages"] == []
    with Store(copy, **OPTIONS) as store:
        store.mark(1)


def test_several_damages_are_all_named(every_kind: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(every_kind, tmp_path / "copy"))
    files = log_files(copy)
    damaged = [next(r for r in records(path)[1:] if r.payload) for path in files[::2]]
    for record in damaged:
        flip(record.path, record.offset + HEADER, 0)
    flip(files[1], 66, 1)
    named = [(d["file"], d["offset"]) for d in verify_store(copy)["damages"]]
    expected = [(str(record.path), record.offset) for record in damaged]
    assert named == sorted([*expected, (str(files[1]), 64)])
    assert repair_store(copy)["set_aside"]


def test_a_damaged_file_header_loses_nothing(every_kind: Path, tmp_path: Path) -> None:
    whole = views(every_kind)
    for at in (3, 13, 20, 36, 65, 73, 100):
        copy = Path(shutil.copytree(every_kind, tmp_path / str(at)))
        flip(log_files(copy)[1], at, 2)
        (damage,) = verify_store(copy)["damages"]
        assert damage["records"] == 0
        done = repair_store(copy)
        assert done["trajectories"] == done["groups_lost"] == []
        assert done["unknown_lost"] == 0
        assert views(copy) == whole


def test_what_is_no_damage(every_kind: Path, tmp_path: Path) -> None:
    before = contents(every_kind)
    verified = verify_store(every_kind)
    assert (verified["damages"], verified["opening"]) == ([], "clean")
    assert set(verified["kinds"]) == set(KINDS)
    assert repair_store(every_kind)["set_aside"] == []
    assert contents(every_kind) == before
    copy = Path(shutil.copytree(every_kind, tmp_path / "copy"))
    last = records(log_files(copy)[-1])[-1]
    overwrite(last.path, 64, word(last.offset))  # killed before it could publish, or acknowledge
    flip(last.path, last.end - 1, 0)
    verified = verify_store(copy)
    assert (verified["damages"], verified["opening"]) == ([], "cut")
    assert verified["torn"]["offset"] == last.offset
    with StoreReader(copy) as reader:
        assert reader.inspect()["torn"] == verified["torn"]


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path, **OPTIONS) as store:
        store.add_group(Prompt(0, np.ones(3, np.int32), ""), 1, version=0)
        for look in (verify_store, repair_store, StoreReader):
            with pytest.raises(StorageError, match="another opener holds it"):
                look(tmp_path)
    with StoreReader(tmp_path) as reader, StoreReader(tmp_path) as other:
        assert reader.trajectory_ids() == other.trajectory_ids() == [0]
        assert verify_store(tmp_path)["opening"] == "clean"
        with pytest.raises(StorageError, match="another opener holds it"):
            Store(tmp_path, **OPTIONS)
    with pytest.raises(InvalidInputError, match="closed"):
        reader.inspect()


def test_what_is_no_store_is_refused_and_not_made_one(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        for look in (verify_store, repair_store, StoreReader):
            with pytest.raises(InvalidInputError, match="expected the directory of a store"):
                look(directory)
    assert list(tmp_path.iterdir()) == []


def test_another_format_is_left_alone(every_kind: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(every_kind, tmp_path / "copy"))
    path = log_files(copy)[0]
    head = bytearray(path.read_bytes()[:128])
    head[8] = 3
    head[12:16] = crc32c(bytes(head[:12] + head[16:64])).to_bytes(4, "little")
    overwrite(path, 0, bytes(head))
    before = contents(copy)
    for look in (verify_store, repair_store):
        with pytest.raises(CorruptionError, match="written in format 3"):
            look(copy)
    assert contents(copy) == before


def test_a_reader_answers_as_the_store_does(tmp_path: Path) -> None:
    history = History(tmp_path, 9)
    with StoreReader(tmp_path) as reader:
        found, ids = reader.inspect(), reader.trajectory_ids()
        answers = {i: reader.trajectory(i) for i in ids}
        segments = {i: reader.segments(i) for i in ids}
    with Store(tmp_path, **OPTIONS) as store:
        same(store, history.model)
        stats = store.stats()
        for i in ids:
            np.testing.assert_equal(store.trajectory(i), answers[i])
    for state, count in found["trajectories"].items():
        assert stats[state] == count
    assert found["tokens"] == stats["tokens"]
    assert found["groups"]["ready"] == len(history.model.complete())
    for i in ids:
        pieces = [f.value[0] for f in history.model.facts if (f.kind, f.subject) == ("append", i)]
        assert [s["n"] for s in segments[i]] == [
            len(p) for p in pieces[len(pieces) - len(segments[i]) :]
        ]
        assert sum(s["n"] for s in segments[i]) == len(answers[i]["tokens"])
