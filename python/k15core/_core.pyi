"""The Rust core. Held to the compiled module by mypy's stubtest (`make lint`)."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from k15core.types import FinishReason, Lease, Loop, PackedBatch, Prompt

__all__ = [
    "PriorityIndex",
    "PromptSampler",
    "RepetitionDetector",
    "SandboxPool",
    "SharedStore",
    "Store",
    "StoreReader",
    "StoreServer",
    "StoreWatcher",
    "__version__",
    "attend_cached",
    "checksum",
    "copy_runs",
    "copy_with_checksum",
    "plan_micro_batches",
    "priorities",
    "repair_store",
    "uniforms",
    "verify_store",
]

__version__: str

def attend_cached(
    rows: NDArray[np.int64],
    positions: NDArray[np.int64],
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int = 1,
    asked: NDArray[np.bool_] | None = None,
) -> None:
    """One decode step's attention, in place: each row by itself over the tokens that it holds.

    For each r in `rows`: k[r] and v[r] [K, D] go to place positions[r] of the cache, then q[r]
    [H, D] attends over places 0 … positions[r], scaled by 1 / sqrt(D), into out[r] [H * D]; H is a
    multiple of K, and groups of H / K queries share a key head. q, k, v: [W, heads, D], each row
    without gaps; positions: [W]; keys, values: [R * K, T, D] with R >= W; out: [W, H * D]. A row's
    result is the same to the bit whatever the others are, and on however many `threads`. Where
    `asked` [W] is given and False, key and value are put and the result is left alone. Releases
    the GIL: nobody may write to the arrays meanwhile. Raises InvalidInputError, and writes nothing,
    if sizes do not fit.
    """

def checksum(source: NDArray[np.uint8]) -> int:
    """The CRC-32C of an array of bytes. Releases the GIL: nobody may write to it meanwhile."""

def copy_with_checksum(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> int:
    """Copy bytes to an array of the same length, and take the CRC-32C of what was read.

    Reads each byte once, and writes past the caches. Releases the GIL: nobody may write to either
    meanwhile. Raises InvalidInputError, and writes nothing, if the lengths differ.
    """

def copy_runs(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    width: int,
) -> None:
    """Copy runs of entries of `width` bytes: run i, of lengths[i] entries, from entry sources[i] of
    `source` to entry targets[i] of `target` [R].

    Releases the GIL. Raises InvalidInputError, and writes nothing, if a run is not within both.
    """

def plan_micro_batches(
    cu_seqlens: NDArray[np.int32],
    group_ids: NDArray[np.int64] | None,
    *,
    ranks: int,
    max_tokens: int,
    pad_to_multiple: int,
    pad_total_to_multiple: int,
    count_multiple: int,
) -> list[list[NDArray[np.int64]]]:
    """The rows of each micro-batch of each rank: what `PackedBatch.micro_batches` is made from.

    `group_ids` [B] keeps the rows of a group together.
    """

def uniforms(
    seed: int, trajectory_ids: NDArray[np.int64], positions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """One uniform number in (0, 1) for each stream: a pure function of its three keys [B]."""

def priorities(
    seed: int,
    group_ids: NDArray[np.int64],
    prompt_ids: NDArray[np.int64],
    weights: Mapping[int, float] | tuple[NDArray[np.int64], NDArray[Any]],
) -> NDArray[np.float64]:
    """The numbers [n] by which groups go in `Store.sample(strategy="priority")`, the least first.

    Group group_ids[i] [n] is one of prompt prompt_ids[i] [n]; `weights` are those of `sample`. A
    number is infinite where the weight is 0: such a group is not taken. Raises InvalidInputError if
    a prompt has no weight, or one is none.
    """

@final
class PriorityIndex:
    """Entries 0 … n − 1 with a weight each (0 at first), drawn with probability weight / total.

    Exact: sums are float64, recomputed from the weights at each update, so nothing drifts; an entry
    of weight 0 is never drawn. Updates and draws cost O(log n) an entry. All calls release the GIL,
    and calls from several threads wait for each other. `weights()` and `update` are its checkpoint.
    Whatever is refused (InvalidInputError) changes nothing.

    >>> import numpy as np
    >>> index = PriorityIndex(1000)
    >>> index.update(np.array([3, 700]), np.array([1.0, 3.0]))
    >>> index.total
    4.0
    >>> sorted(index.sample(2, seed=0, replace=False).tolist())
    [3, 700]
    """

    def __new__(cls, n: int) -> PriorityIndex: ...
    def __len__(self) -> int: ...
    @property
    def total(self) -> float:
        """The sum of all weights."""

    def update(
        self, indices: NDArray[np.int64], weights: NDArray[np.float32] | NDArray[np.float64]
    ) -> None:
        """Give entry indices[i] the weight weights[i], from 0 to 1e290, for all i [m].

        Of an entry that comes twice the last weight counts.
        """

    def sample(self, n: int, *, seed: int, replace: bool = True) -> NDArray[np.int64]:
        """Draw n entries [n]: a pure function of the weights and the arguments.

        Without replacement each draw is in proportion to the weights that are left. Raises
        InvalidInputError if fewer than n entries have a weight above 0 (none, with replacement).
        The probability of a draw with replacement is `weights(drawn) / total`.
        """

    def weights(self, indices: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """The weights of the given entries [m], or of all [n]."""

@final
class PromptSampler:
    """Which prompts to roll out next: a rule over success rates, among those a curriculum admits.

    Success rate (report, section 2.3.3, with decay and a prior): s_i = (Σ gamma^age·r +
    prior_rate·prior_count) / (Σ gamma^age + prior_count), r the mean reward of each group, its age
    the newest version ever given to `update` less its own. With gamma < 1 the evidence for a prompt
    that is not drawn fades too: its rate goes back to the prior.

    Rules, P(i) in proportion to: `uniform` 1; `priority` (1 − s_i)^alpha + epsilon; `learnability`
    s_i·(1 − s_i) + epsilon; `thompson` as priority, with a rate drawn for each call from the Beta
    distribution of what is known of the prompt.

    Curriculum: `difficulty` by the labels `difficulty` [n], `pass_rate` by s_i. Iterations from
    `warmup_iterations` on admit only the hard: difficulty ≥ `min_difficulty`, or s_i ≤
    `max_pass_rate`. With `pace_iterations`, the easy come first: iteration 0 admits the easiest
    `pace_start` (0.2) of the range of labels, or of rates from 1 down to 0, and the share grows
    linearly until iteration `pace_iterations` admits all. Both can be used together.

    Where fewer prompts are admitted than are asked for without replacement, all of them are drawn
    and the rest comes from the prompts nearest to the admitted range, by the same rule;
    `admissible` tells how many there are. Asking for more prompts than exist raises
    InvalidInputError, as do unknown ids, rewards outside 0 … 1 and settings that do not fit.

    With gamma = 1 an update costs O(log n) a prompt. All n weights are recomputed, once each time,
    when the admitted range moves, when gamma < 1 and a newer version comes, and at each draw of
    `thompson`.

    >>> import numpy as np
    >>> sampler = PromptSampler(np.arange(100), rule="priority", epsilon=0.001)
    >>> sampler.update(np.array([7, 8]), np.array([1.0, 0.0], np.float32), version=1)
    >>> sampler.success_rates()[6:9].tolist()
    [0.5, 0.75, 0.25]
    >>> drawn = sampler.sample(32, seed=0)
    >>> len(set(drawn.tolist()))
    32
    """

    def __new__(
        cls,
        prompt_ids: NDArray[np.int64],
        *,
        difficulty: NDArray[np.float32] | None = None,
        rule: Literal["uniform", "priority", "learnability", "thompson"] = "uniform",
        alpha: float = 1.0,
        epsilon: float = 0.01,
        gamma: float = 0.9,
        prior_rate: float = 0.5,
        prior_count: float = 1.0,
        curriculum: Literal["none", "difficulty", "pass_rate"] = "none",
        warmup_iterations: int = 0,
        min_difficulty: float | None = None,
        max_pass_rate: float | None = None,
        pace_iterations: int | None = None,
        pace_start: float | None = None,
    ) -> PromptSampler: ...
    def __len__(self) -> int: ...
    @property
    def prompt_ids(self) -> NDArray[np.int64]:
        """The ids [n], in the order in which they were given."""

    def sample(
        self, n: int, *, seed: int, iteration: int = 0, replace: bool = False
    ) -> NDArray[np.int64]:
        """Draw n prompt ids [n]: a pure function of the state and the arguments.

        Iterations are numbered from 0.
        """

    def update(
        self, prompt_ids: NDArray[np.int64], mean_rewards: NDArray[np.float32], version: int
    ) -> None:
        """Take in the mean reward, 0 to 1, of one group for each prompt [m], under `version`."""

    def success_rates(self) -> NDArray[np.float32]:
        """s_i of all prompts [n], in the order of `prompt_ids`."""

    def admissible(self, iteration: int = 0) -> int:
        """How many prompts the curriculum admits at an iteration, before it is widened."""

    def weights(self, *, seed: int = 0, iteration: int = 0) -> NDArray[np.float64]:
        """The weights [n] by which `sample` draws, in the order of `prompt_ids`.

        0 for prompts that the curriculum does not admit at the iteration; it is not widened. Only
        `thompson` depends on the seed. For `Store.sample(strategy="priority")`.
        """

    def state(self) -> bytes:
        """Everything that a checkpoint needs, given the same prompts and settings."""

    def restore(self, state: bytes) -> None:
        """Go back to what `state` gave. Refuses bytes that are damaged or of other prompts."""

@final
class RepetitionDetector:
    """Watches streams of tokens and says when one has begun to loop.

    A tail has period p if each of its tokens equals the one p places before it, the first p
    excepted. It is an exact loop when p is at most `max_period` (1 to 16384) and the tail is at
    least max(`min_repeats` · p, `min_covered`) tokens long: reported never earlier, and at the
    latest when it is 1.5 times that long. Cost: O(log `max_period`) a token, four bytes a token
    kept, of which there are O(`max_period`).

    It is a near-repeat when, of the last w n-grams (`near_ngram` tokens each), the share that are
    different falls below `near_novelty`, where w is `near_window`, twice that, four times that, …
    up to `near_max_window`. `near=False` switches this off. The defaults are meant for tokens; on
    bytes or characters n-grams recur more often in sane text, so make `near_ngram` longer; on a
    handful of symbols everything is a near-repeat, so switch it off.

    A detector has `streams` slots, numbered from 0. A stream reports once: after its loop was
    reported, further tokens of it are ignored until `reset` begins a new stream in its slot. A
    response that goes on in a later iteration is replayed with `extend` first, so that a loop which
    began before the break is seen.

    Calls from several threads wait for each other. Calls with 4096 tokens or more release the GIL.

    Raises InvalidInputError for a setting out of range, a slot that does not exist, arrays of
    different lengths; nothing is added then.

    >>> from k15core import RepetitionDetector
    >>> detector = RepetitionDetector(min_covered=16)
    >>> [loop for token in [5, 6] + [1, 2, 3] * 6 if (loop := detector.push(token))]
    [Loop(start=2, period=3, covered=18, kind='exact')]
    """

    def __new__(
        cls,
        streams: int = 1,
        *,
        max_period: int = 16384,
        min_repeats: int = 4,
        min_covered: int = 256,
        near: bool = True,
        near_ngram: int = 8,
        near_window: int = 1024,
        near_max_window: int = 16384,
        near_novelty: float = 0.125,
    ) -> RepetitionDetector: ...
    def push(self, token: int) -> Loop | None:
        """Add one token to stream 0; the loop, if this token made one."""

    def push_many(
        self, streams: NDArray[np.int64], tokens: NDArray[np.int32]
    ) -> list[tuple[int, Loop]]:
        """Add token i to stream streams[i], in this order [n]; the streams that loop now.

        A stream may be named several times.
        """

    def extend(self, stream: int, tokens: NDArray[np.int32]) -> Loop | None:
        """Add tokens [n] to one stream: what was generated before a break, or a whole response.

        Tokens after the one that made the loop are ignored.
        """

    def reset(self, stream: int) -> None:
        """Empty a slot for a new stream."""

class _TrajectoryView(TypedDict):
    trajectory_id: int
    group_id: int
    prompt_id: int
    state: Literal["unfinished", "finished", "scored", "gone"]
    epoch: int | None
    deadline: float | None
    finish_reason: FinishReason | None
    reward: float | None
    prompt_tokens: NDArray[np.int32]
    tokens: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    loss_mask: NDArray[np.uint8]
    versions: NDArray[np.uint32]
    columns: dict[str, NDArray[Any]]

class _GroupView(TypedDict):
    prompt: Prompt
    trajectory_ids: list[int]
    created_version: int

class _TornTail(TypedDict):
    file: str
    offset: int
    bytes: int
    record: str

class _RecoveryReport(TypedDict):
    files: int
    records: int
    bytes: int
    torn: _TornTail | None

@disjoint_base
class Store:
    """The trajectory store: unfinished trajectories and the replay buffer, in one durable log.

    With a `directory` the log is kept there, in files of `file_bytes` (a part of the capacity
    unless given) whose blocks are allocated before they are written; without one it is kept in
    memory. One opener at a time. An acknowledged call survives `kill -9` at any instant; `sync`
    says when it reaches the disk: "never", "batch" (at `mark`, `rewind`, `flush` and `close`) or
    "always" (before each call returns). Opening reads and checks every record, and voids the leases
    of whoever had it open before.

    `capacity_bytes` (4 GiB) bounds what the log's files take. `when_full` says what `add_group` and
    `append` do when it is reached: "refuse" raises CapacityError; "block" waits until another
    thread has sampled, marked or dropped enough; "evict_oldest" and "evict_stalest" remove whole
    groups that nobody has leased. A group is used up when it was sampled `max_uses` times.

    `columns` declares per-token columns besides the built-in ones, by name and dtype (uint8, int8,
    uint16, int16, uint32, int32, int64, float32, float64). The store remembers them: later openings
    have them without being told, may add more, and are refused another dtype for the same name.

    Every method may be called from any thread, releases the GIL while it works, and raises
    InvalidInputError for an argument that is not what was expected, StorageError if the operating
    system refuses (a full disk: nothing is lost, and the call can be made again).
    """

    def __new__(
        cls,
        directory: str | PathLike[str] | None = None,
        *,
        capacity_bytes: int | None = None,
        when_full: Literal["refuse", "block", "evict_oldest", "evict_stalest"] = "refuse",
        sync: Literal["never", "batch", "always"] = "batch",
        max_uses: int | None = None,
        file_bytes: int | None = None,
        columns: dict[str, str] | None = None,
    ) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        *_exc_info: type[BaseException] | BaseException | TracebackType | None,
    ) -> None: ...
    def close(self) -> None:
        """Flush and let go of the directory. Batches that were sampled stay valid."""

    def flush(self) -> None:
        """Put everything acknowledged on the disk, unless `sync` is "never"."""

    def add_group(self, prompt: Prompt, k: int, *, version: int | None = None) -> list[int]:
        """Open k unfinished trajectories for a prompt under a policy version (0); their ids.

        Group and trajectory ids count up from 0; k is at most 65536.
        """

    def lease(
        self,
        n: int,
        *,
        now: float,
        duration: float,
        order: Literal["oldest", "stalest", "longest"] = "oldest",
        trajectory_ids: Sequence[int] | None = None,
    ) -> list[Lease]:
        """Claim up to n unfinished trajectories that nobody holds at `now`, for `duration` seconds.

        "oldest": created first; "stalest": with the oldest token, those without tokens last;
        "longest": with the longest response. Ties go to the lower trajectory id. Epochs only grow,
        also over restarts and rewinds. With `trajectory_ids` only of these; those among them that
        are finished or held are passed over. InvalidInputError for one that is not there.
        """

    def release(self, trajectory_id: int, epoch: int) -> None:
        """Give a lease back before its deadline. LeaseExpiredError if it is not the holder's."""

    def append(
        self,
        trajectory_id: int,
        epoch: int,
        offset: int,
        tokens: NDArray[np.int32],
        log_probs: NDArray[np.float32],
        version: int,
        *,
        loss_mask: NDArray[np.uint8] | None = None,
    ) -> None:
        """Add tokens [n] with their log-probs [n] at response position `offset`.

        `loss_mask` [n] is 1 for tokens that are trained on: all, unless given. Does nothing if the
        same bytes are there already. ConflictError if `offset` is not the length, LeaseExpiredError
        if `epoch` does not hold the trajectory, CapacityError if the store is full.
        """

    def append_many(
        self,
        trajectory_ids: NDArray[np.int64],
        epochs: NDArray[np.int64],
        offsets: NDArray[np.int64],
        cu_seqlens: NDArray[np.int32],
        tokens: NDArray[np.int32],
        log_probs: NDArray[np.float32],
        version: int,
    ) -> None:
        """`append` for m chunks at once: chunk i is tokens[cu_seqlens[i] : cu_seqlens[i + 1]].

        Everything is checked before anything is written.
        """

    def finish(self, trajectory_id: int, epoch: int, reason: FinishReason) -> None:
        """End a trajectory; the same call again does nothing.

        "abort" discards its tokens and leaves it unfinished, free for the next lease: an aborted
        response never completes a group. A prompt that must not be tried again is for
        `drop_groups`.
        """

    def set_reward(self, trajectory_id: int, reward: float) -> None:
        """Record the score of a finished trajectory. ConflictError if it has another one."""

    def columns(self) -> dict[str, str]:
        """The dtype of each declared column, by name."""

    def set_column(
        self, trajectory_id: int, name: str, values: NDArray[Any], *, offset: int | None = None
    ) -> None:
        """Set a column's values [n] for response tokens from `offset` (0) on, finished or not.

        They are as durable as tokens. A newer value replaces an older one; the same values again do
        nothing. A rewind takes back what was set under a later version, an abort all that its
        tokens had. InvalidInputError for a column that was not declared, another dtype, and values
        beyond the tokens that are there; CapacityError if the store is full.
        """

    def set_column_many(
        self,
        trajectory_ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        cu_seqlens: NDArray[np.int32],
        name: str,
        values: NDArray[Any],
    ) -> None:
        """`set_column` for m ranges: range i gets values[cu_seqlens[i] : cu_seqlens[i + 1]].

        Everything is checked before anything is written.
        """

    def sample(
        self,
        *,
        groups: int | None = None,
        tokens: int | None = None,
        max_staleness: int,
        version: int,
        strategy: Literal["fifo", "uniform", "priority"] = "fifo",
        seed: int = 0,
        columns: Sequence[str] | None = None,
        weights: Mapping[int, float] | tuple[NDArray[np.int64], NDArray[Any]] | None = None,
        max_segment_staleness: int | None = None,
    ) -> PackedBatch:
        """Take whole groups whose members are all finished and scored, and record their use.

        At most `groups` groups and `tokens` tokens (prompts included; the first group that does not
        fit ends the batch). `version` less the oldest version among a group's tokens is at most
        `max_staleness`. Nothing to take gives a batch of 0 rows. With `columns` only groups are
        taken of which every response token has a value in each of them, and `PackedBatch.columns`
        has these [T]; without, it has all that are declared, 0 where nothing was set. Prompt
        entries are 0. The arrays are views without a copy; their memory is reused once nobody holds
        them.

        "fifo" goes by group id, "uniform" by an order drawn from `seed`, "priority" by one drawn
        from `seed` and `weights`: group after group, each in proportion to the weight of its prompt
        among those that are left. `weights` is a mapping from prompt ids to numbers of at least 0,
        or a tuple of prompt ids [n] and weights [n] (float32 or float64), such as
        `(sampler.prompt_ids, sampler.weights(iteration=i))` of a PromptSampler; a group of weight 0
        is not taken. A group's place is a function of the seed, its id and its weight.

        `max_segment_staleness` masks what partial rollouts left behind: response tokens whose
        version is less than `version` minus this have a `loss_mask` of 0.
        """

    def candidates(
        self, *, max_staleness: int, version: int, columns: Sequence[str] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Groups that `sample` could take now: ids [n], ascending, tokens [n], ids of prompts [n].

        Tokens count those of prompts. For whoever chooses by other rules, or over several stores; a
        SharedStore does not have it.
        """

    def take(
        self, group_ids: Sequence[int], *, columns: Sequence[str] | None = None
    ) -> PackedBatch:
        """`sample` for groups that were chosen, in their order, whatever their staleness.

        Those that cannot be sampled, or not any more, are passed over. A SharedStore does not have
        it.
        """

    def mark(self, version: int) -> int:
        """Name the present point, and the policy version that a run restarted here goes on with.

        Marks count up from 1. The two newest can be returned to: a run that dies between a mark and
        the checkpoint that names it needs the one before. What is used up, dropped or evicted stays
        in the log as long as a kept mark lies before it, so a mark frees what died before its
        predecessor; a store that was never marked frees at once.
        """

    def marks(self) -> dict[int, int]:
        """The marks that can be returned to, the oldest first: policy versions by id."""

    def rewind(self, mark: int) -> None:
        """Return to a mark as to what training has consumed: later uses and removals are undone.

        Acknowledged work of the mark's version or an older one stays: groups, tokens, finishes and
        scores. What belongs to later versions, whose weights are gone, is cut, and ids go on from
        what is left. All leases are void, later marks are forgotten.
        """

    def drop_groups(self, group_ids: Sequence[int]) -> None:
        """Remove groups for good (until a rewind to before it)."""

    def unfinished(self) -> int:
        """How many trajectories want tokens, leased or not."""

    def pending_groups(self, before_version: int) -> list[int]:
        """Groups created before a version and not yet used up, dropped or evicted."""

    def groups_of_version(self, version: int) -> list[int]:
        """Groups created under a version, used up or not, until a mark lets go of them."""

    def complete_groups(self) -> list[int]:
        """Groups that can be sampled, whatever their staleness."""

    def group(self, group_id: int) -> _GroupView:
        """A group's prompt, trajectory ids and version."""

    def trajectory(self, trajectory_id: int) -> _TrajectoryView:
        """Everything that is stored about a trajectory, copied."""

    def leases(self) -> list[tuple[int, int, float]]:
        """Who holds what: trajectory id, epoch and deadline of each lease, the earliest first.

        One whose deadline has passed is held until another claim takes it.
        """

    def stats(self) -> dict[str, int]:
        """Counts of trajectories by state, groups, tokens, bytes and files."""

    def recovery_report(self) -> _RecoveryReport:
        """What opening found: files, records, bytes, and the torn tail that was cut, if any."""

    def serve(self, path: str | PathLike[str]) -> StoreServer:
        """Let other processes of this user use the store through a Unix socket at `path`.

        This process may go on using it too. Close the server before the store. StorageError if
        another server has the path, or if something there is not a socket; one that a dead server
        left is replaced.
        """

@final
class SharedStore(Store):
    """A store that another process of this machine and user serves: `Store.serve(path)`.

    All of `Store`, with the same types and errors. Token data goes through shared memory, not
    through the socket: the arrays of `sample` are views of it, others are copies. Threads may
    share it; a forked child must connect for itself.

    The leases taken through it end when it is closed or its process dies. `close` leaves the
    server's store open. DisconnectedError if nobody serves at `path`, or if the server ended in the
    middle of a call; the next call connects to the server that is there then, whose store has kept
    all that was acknowledged and has voided all leases. StorageError if the server is another
    user's or runs another version of k15core.
    """

    def __new__(cls, path: str | PathLike[str]) -> Self: ...
    @property
    def path(self) -> Path:
        """Where the server is."""

@final
class StoreServer:
    """A store that is served: what `Store.serve` returns. A context manager that closes it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        *_exc_info: type[BaseException] | BaseException | TracebackType | None,
    ) -> None: ...
    @property
    def path(self) -> Path:
        """Where clients connect."""

    def close(self) -> None:
        """Let calls under way end, close all connections and remove the socket."""

@final
class SandboxPool:
    """A pool of slots that runs sources; `k15core.sandbox.Sandbox` is its face."""

    def __new__(
        cls,
        spawner: str | PathLike[str],
        *,
        runner: str,
        slots: int,
        least_slots: int,
        limits: dict[str, float | int],
        root: str | None,
        image_cache: str | PathLike[str] | None,
        writable_root: bool,
        binds: Sequence[tuple[str | PathLike[str], str]],
        languages: Sequence[str],
        warm_modules: Sequence[str],
        warm_runs: int,
        allow_unenforced: Sequence[str],
    ) -> Self: ...
    def run(self, submission: dict[str, object]) -> dict[str, Any]:
        """Run one submission: a dict of the fields of `k15core.sandbox.Submission`."""

    def run_many(self, submissions: Sequence[dict[str, object]]) -> list[dict[str, Any]]:
        """Run many, keeping every slot busy; results are in their order."""

    def execute(
        self,
        arguments: Sequence[str],
        *,
        environment: Sequence[str],
        stdin: bytes,
        files: dict[str, tuple[bytes, bool]],
        fetch: Sequence[str],
        limits: dict[str, float | int],
        times: int,
    ) -> dict[str, Any]:
        """Run a program that is in the root already, `times` times; the last result."""

    def languages(self) -> dict[str, str]:
        """The languages by name, each with a sentence on what is missing for it; empty: nothing."""

    def capabilities(self) -> list[tuple[str, bool, str, str]]:
        """What the host can hold a run to: (name, enforced, how, remedy) each."""

    @staticmethod
    def examine(
        languages: Sequence[str], binds: Sequence[tuple[str | PathLike[str], str]]
    ) -> tuple[list[str], list[tuple[str, bool, str, str]], dict[str, str]]:
        """What a sandbox would find here: the runners' names, capabilities, languages."""

    def limits(self) -> dict[str, Any]:
        """The limits of a run that asks for nothing else."""

    @property
    def runner(self) -> str:
        """The name of the runner in use."""

    @property
    def open_slots(self) -> int:
        """How many slots are open now."""

    def close(self) -> None:
        """End the slots and remove all that was made; runs under way are waited for."""

@final
class StoreReader:
    """A store that nobody has open, to be looked at; nothing is changed by it.

    It holds what an opening would find. While it lives nobody gets the store to write to it; other
    readers may look too. `max_uses` (1) decides which groups count as used up. Raises
    InvalidInputError if the directory holds no store, StorageError if it is open, CorruptionError
    if it is damaged.
    """

    def __new__(cls, directory: str | PathLike[str], *, max_uses: int | None = None) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        *_exc_info: type[BaseException] | BaseException | TracebackType | None,
    ) -> None: ...
    def close(self) -> None:
        """Let go of the directory."""

    def trajectory_ids(self) -> list[int]:
        """The ids of all trajectories, in their order."""

    def trajectory(self, trajectory_id: int) -> dict[str, Any]:
        """Everything about one trajectory; see `Store.trajectory`."""

    def segments(self, trajectory_id: int) -> list[dict[str, Any]]:
        """The pieces in which its response was appended.

        Each has offset (in the response), n, version, file and file_offset.
        """

    def inspect(self) -> dict[str, Any]:
        """What the store holds.

        files (each name, bytes, committed, synced, first_record, bytes_live), spare_files,
        spare_bytes, records, kinds (by kind: records, bytes), torn (the tail that an opening cuts,
        or None), trajectories (by state), groups (all, ready, gone), tokens, bytes_live,
        bytes_written, marks (version by id), columns (by name: dtype, and response tokens that have
        a value), version (the newest), staleness (groups by versions
        behind the newest), next_group_id, next_trajectory_id, next_epoch.
        """

@final
class StoreWatcher:
    """Follows the log of a store that another process has open, or nobody.

    It takes no lock, maps nothing and writes nothing: the opener does not notice it. Token data is
    not read. `max_uses` (1) decides which groups count as used up. Raises InvalidInputError if the
    directory holds no store.
    """

    def __new__(cls, directory: str | PathLike[str], *, max_uses: int | None = None) -> Self: ...
    def read(self) -> None:
        """Read what was added to the log since the last time, so that no file of it is missed.

        Raises CorruptionError if a record is damaged: the next time tries again from there.
        ConflictError if the log is written faster than it can be read.
        """

    def look(self) -> dict[str, Any]:
        """`read`, then what the store holds now.

        trajectories (by state), begun (unfinished ones with tokens), groups (all, ready, gone),
        tokens (of responses), staleness (groups by versions behind the newest), version (the
        newest), most_versions (that an unfinished trajectory has tokens of), marks (version by id),
        bytes_live (still needed), bytes_kept (of these: only for a return to a mark),
        bytes_written, bytes_allocated (of files and spares), files, spare_files, flow (what moved
        since the first record that was read: response tokens_in and tokens_out, groups_in and
        groups_out, leases given), restarts (how often it had to begin anew, with flow at 0, because
        the log's oldest files were used again before they were read).
        """

def verify_store(directory: str | PathLike[str]) -> dict[str, Any]:
    """Read and check every record of a store that nobody has open. Changes nothing.

    files, records, bytes and kinds count what is whole. damages names everything that is not, in
    the order of the log: file, offset, bytes, record (number, or None), records (how many, None if
    that is not known, 0 for a file's header), kind and subject with subject_id where the record's
    header is whole, what (a sentence). opening is what `Store` would do: "clean", "cut" (torn
    says what) or "refused" (refusal has the message).

    Raises InvalidInputError if the directory holds no store, StorageError if it is open,
    CorruptionError if it is of another format.
    """

def repair_store(directory: str | PathLike[str]) -> dict[str, Any]:
    """Make a store that is refused open again, without what is damaged.

    Everything whole is written into new files; then the old ones are renamed to `*.log.damaged`.
    A store that opens is left alone: set_aside and written are empty then.

    before is what `verify_store` found. groups_lost lists groups whose prompt is lost.
    trajectories lists what others lost: trajectory_id, group_id (None if that is lost),
    tokens_kept, tokens_lost, finish_lost (it is unfinished again), reward_lost, column_bytes_lost
    (values of columns; what they had replaced is back). others_lost counts
    other records by kind, unknown_lost those whose kind is not known. groups_kept,
    trajectories_kept and tokens_kept count what the store holds now.

    Raises what `verify_store` raises, StorageError if the disk is full. Nothing is changed then.
    """
