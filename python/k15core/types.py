"""The words that the rooms share: what travels along the arrows, and the protocols at their ends.

Shapes in brackets: B trajectories, T packed tokens, G groups, k responses a prompt. Every per-token
array has the length of `input_ids`; entry t belongs to token t given the tokens before it; prompt
entries are 0. Ids are 64 bit ints. numpy is imported at first use, never at import.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from k15core.packing import MicroBatch as MicroBatch
from k15core.packing import PackedBatch as PackedBatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "repetition", "abort"]

FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "repetition", "abort")
"""The code of a finish reason in `PackedBatch.finish_reasons` is its place in this tuple."""


@dataclass(frozen=True)
class Prompt:
    """One problem of a prompt set. `difficulty` grows with hardness; None where nobody labelled."""

    prompt_id: int
    input_ids: NDArray[np.int32]
    answer: str
    tags: tuple[str, ...] = ()
    difficulty: float | None = None


@dataclass(frozen=True)
class Demonstration:
    """One example for supervised fine-tuning: the loss is taken on the response only."""

    input_ids: NDArray[np.int32]
    prompt_length: int


@dataclass(frozen=True)
class Lease:
    """A worker's claim on an unfinished trajectory.

    `input_ids` [T] is the prompt and the response so far, `versions` [T] the policy version of each
    token (0 on the prompt). `epoch` is the fencing token that `append` and `finish` must show.
    """

    trajectory_id: int
    epoch: int
    deadline: float
    input_ids: NDArray[np.int32]
    prompt_length: int
    versions: NDArray[np.uint32]

    @property
    def response_length(self) -> int:
        """Tokens generated so far."""
        return len(self.input_ids) - self.prompt_length


class Store(Protocol):
    """One store, two faces: unfinished (lease, append, finish) and finished (reward, sample)."""

    def add_group(self, prompt: Prompt, k: int, *, version: int = 0) -> list[int]:
        """Open k unfinished trajectories for the prompt under a policy version; their ids."""
        ...

    def lease(
        self,
        n: int,
        *,
        now: float,
        duration: float,
        order: Literal["oldest", "stalest", "longest"] = "oldest",
    ) -> list[Lease]:
        """Claim up to n unfinished trajectories that nobody holds at `now` (seconds)."""
        ...

    def append(
        self,
        trajectory_id: int,
        epoch: int,
        offset: int,
        tokens: NDArray[np.int32],
        log_probs: NDArray[np.float32],
        version: int,
    ) -> None:
        """Add tokens [n] and their log-probs [n] at response position `offset`.

        Does nothing if the same bytes are there already. Raises ConflictError if `offset` is not
        the length, LeaseExpiredError if another worker holds the trajectory.
        """
        ...

    def release(self, trajectory_id: int, epoch: int) -> None:
        """Give a lease back before its deadline."""
        ...

    def unfinished(self) -> int:
        """How many trajectories wait for more tokens."""
        ...

    def finish(self, trajectory_id: int, epoch: int, reason: FinishReason) -> None:
        """End the trajectory: from now on it is in the finished face. Moves no tokens."""
        ...

    def set_reward(self, trajectory_id: int, reward: float) -> None:
        """Record the score of a finished trajectory."""
        ...

    def sample(
        self,
        *,
        groups: int | None = None,
        tokens: int | None = None,
        max_staleness: int,
        version: int,
        strategy: Literal["fifo", "uniform", "priority"],
        seed: int,
        weights: Mapping[int, float] | tuple[NDArray[np.int64], NDArray[Any]] | None = None,
        max_segment_staleness: int | None = None,
    ) -> PackedBatch:
        """Take whole groups, by count or token budget, not staler than asked at `version`.

        "priority" takes them by the `weights` of their prompts. Tokens more than
        `max_segment_staleness` versions old come with a `loss_mask` of 0.
        """
        ...

    def drop_groups(self, group_ids: Sequence[int]) -> None:
        """Remove groups for good."""
        ...

    def group(self, group_id: int) -> Mapping[str, Any]:
        """Its `prompt`, `trajectory_ids` and `created_version`."""
        ...

    def trajectory(self, trajectory_id: int) -> Mapping[str, Any]:
        """What is stored about a trajectory: `group_id`, `state`, `deadline` of its lease, …"""
        ...

    def mark(self, version: int) -> int:
        """Name the present point and the policy version that a run restarted here rolls out."""
        ...

    def rewind(self, mark: int) -> None:
        """Undo what was consumed since; acknowledged work of the mark's version is kept."""
        ...


class PromptSampler(Protocol):
    """Which prompts to roll out next: uniform, priority, curriculum, composed."""

    def sample(
        self, n: int, *, seed: int, iteration: int = 0, replace: bool = False
    ) -> NDArray[np.int64]:
        """Draw n prompt ids [n], without replacement unless asked."""
        ...

    def update(
        self, prompt_ids: NDArray[np.int64], mean_rewards: NDArray[np.float32], version: int
    ) -> None:
        """Take in the mean reward of a group for each prompt [n], measured under `version`."""
        ...

    def state(self) -> bytes:
        """Everything that a checkpoint needs to go on as if nothing had happened."""
        ...


@dataclass(frozen=True)
class Loop:
    """A repetition found in the tail of a stream, in tokens of the whole response.

    `start` is where the loop begins, `period` its length (0 for a near-repeat, which has none),
    `covered` how many tokens it covers.
    """

    start: int
    period: int
    covered: int
    kind: Literal["exact", "near"]


class RepetitionDetector(Protocol):
    """Watches streams of tokens and says when one has begun to loop."""

    def push(self, token: int) -> Loop | None:
        """Add one token; a Loop if the tail has become one."""
        ...

    def push_many(
        self, streams: NDArray[np.int64], tokens: NDArray[np.int32]
    ) -> list[tuple[int, Loop]]:
        """Add token i to stream streams[i]; the streams that loop, with what was found."""
        ...


@dataclass(frozen=True)
class Chunk:
    """New tokens of one stream, as an engine hands them out.

    `finish_reason` "length" means that the stream's `max_new_tokens` are spent; `loop` is set with
    "repetition".
    """

    trajectory_id: int
    tokens: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    version: int
    finish_reason: FinishReason | None = None
    loop: Loop | None = None


class WeightSource(Protocol):
    """Where new weights come from: shared memory, a directory, a model in this process."""

    def tensors(self) -> Iterable[tuple[str, object]]:
        """Hugging Face parameter names with their tensors, one at a time."""
        ...


class StreamEngine(Protocol):
    """Continues leased trajectories: token ids in, tokens with log-probs and version out."""

    def start(
        self,
        leases: Sequence[Lease],
        *,
        max_new_tokens: Sequence[int],
        temperature: float,
        seed: int,
    ) -> None:
        """Take in streams to continue, each for at most max_new_tokens[i] more tokens.

        Noise is a function of (seed, trajectory_id, position in the response); temperature 0 is
        greedy. May be called while `chunks` is being consumed.
        """
        ...

    def chunks(self) -> AsyncIterator[Chunk]:
        """New tokens as they come, until no stream is left."""
        ...

    def stop(self, trajectory_ids: Sequence[int]) -> None:
        """Sample no more for these streams. Tokens sampled already still come, in a last chunk each
        whose finish_reason is None; ids that do not run are ignored."""
        ...


class RolloutEngine(StreamEngine, Protocol):
    """A stream engine that is handed new weights, and can lend its device's memory to a trainer.

    Any call may raise ProcessDiedError where the engine is a process of its own: its streams are
    gone then, with what `chunks` had not handed out. `acquire` and `update_weights` bring it back.
    """

    version: int
    """That of the weights it samples with."""

    def update_weights(self, source: WeightSource, version: int) -> None:
        """Load new weights and drop every KV cache of the old ones. No stream may be running."""
        ...

    def acquire(self) -> None:
        """Take the device's memory: start or wake up, on whatever weights. Nothing if it is there.

        `update_weights` must follow before streams are started. Also starts a process that died.
        """
        ...

    def release(self) -> None:
        """Give the device's memory back, until `acquire`. No stream may be running."""
        ...

    def close(self) -> None:
        """End for good: no process, file or memory is left. A second call does nothing."""
        ...


class Trainer(Protocol):
    """Owns the policy that is trained.

    Any call may raise ProcessDiedError where workers are processes of their own. `load` starts what
    died and returns to a checkpoint.
    """

    learning_rate: Any
    """Of the next step: a number, or a function of the count of steps."""

    def log_probs(self, batch: PackedBatch) -> NDArray[np.float32]:
        """Log-probs [T] of the batch's tokens under the present weights, 0 on prompts."""
        ...

    def step(
        self,
        batch: PackedBatch,
        advantages: NDArray[np.float32],
        old_log_probs: NDArray[np.float32],
        *,
        responses: int,
    ) -> dict[str, float]:
        """One optimizer step. `responses` is the P·k of the loss, skipped groups included."""
        ...

    def imitate(
        self, demonstrations: Sequence[Demonstration], *, learning_rate: float, weight_decay: float
    ) -> dict[str, float]:
        """One supervised step on the responses of demonstrations, by the same optimizer."""
        ...

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments (once an iteration, report section 2.3.2)."""
        ...

    def weights(self) -> WeightSource:
        """The present weights, for the hand-over to an engine."""
        ...

    def save(self, directory: str) -> None:
        """Write weights, optimizer and whatever else `load` needs to go on bit for bit."""
        ...

    def load(self, directory: str) -> None:
        """Return to what `save` wrote."""
        ...

    def offload(self) -> None:
        """Give the device's memory to others: weights, gradients and moments move to the host."""
        ...

    def reload(self) -> None:
        """Bring back what `offload` moved. Nothing if it is there."""
        ...

    def close(self) -> None:
        """End for good: no process, file or memory is left. A second call does nothing."""
        ...


class Reward(Protocol):
    """Scores one response between 0 and 1. An infrastructure fault raises; it is never a 0."""

    async def score(self, prompt: Prompt, response: str) -> float:
        """The score of a response text."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back. `save_pretrained` writes the Hugging Face files."""

    eos_token_ids: tuple[int, ...]

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        ...

    def encode(self, text: str) -> list[int]:
        """Text to token ids, without special tokens added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids to text; the end-of-sequence token is not shown."""
        ...

    def save_pretrained(self, directory: str) -> None:
        """Write the tokenizer's Hugging Face files into a model directory."""
        ...


class Task(Protocol):
    """A set of problems: what is trained on, what is held out, and how a teacher would answer."""

    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]

    def demonstrations(self, stage: str, step: int, n: int) -> list[Demonstration]:
        """Examples of one SFT step: a pure function of (task seed, stage, step)."""
        ...

    def behaviour(self, prompt: Prompt, response: str) -> Mapping[str, tuple[float, float]]:
        """Task statistics by name, each as (numerator, denominator), to be summed and divided."""
        ...

    def forced_prefix(self, prompt: Prompt) -> str | None:
        """A first step to force in the control evaluation, or None where the task has none."""
        ...


@dataclass(frozen=True)
class RunResult:
    """What a sandboxed program did.

    `verdict` is one of ok, nonzero_exit, signalled, cpu_limit, wall_limit, memory_limit,
    output_limit, compile_error, sandbox_error; only the last says nothing about the program, and
    `message` then tells what failed. For compile_error the output is the compiler's. `truncated`:
    stdout or stderr is cut at its limit. `peak_memory` is in bytes, 0 where the host cannot tell.
    `files` are those that were asked for; what could not be handed out is in `refused_files`, with
    the reason.
    """

    verdict: str
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool
    cpu_seconds: float
    wall_seconds: float
    peak_memory: int
    files: dict[str, bytes] = field(default_factory=dict)
    refused_files: dict[str, str] = field(default_factory=dict)
    message: str = ""


class Sandbox(Protocol):
    """Runs untrusted programs: in process, or through the daemon's client, by the same calls."""

    def run(
        self,
        source: str,
        *,
        language: str,
        stdin: bytes = b"",
        files: dict[str, bytes] | None = None,
        limits: object | None = None,
    ) -> RunResult:
        """Run one program to its verdict."""
        ...

    def run_many(self, jobs: Sequence[dict[str, object]]) -> list[RunResult]:
        """Run programs side by side; results in the order of the jobs."""
        ...
