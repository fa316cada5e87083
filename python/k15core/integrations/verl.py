"""verl: packed batches under verl's names, as a padded DataProto or a TensorDict without padding.

    write_packed(store, from_dataproto(rollouts))        # what verl sampled, into a store
    update = to_dataproto(store.sample(groups=64, …))    # groups of a store, for a verl trainer

| here | verl |
|---|---|
| input_ids | prompts, responses, input_ids, attention_mask, position_ids |
| loss_mask | response_mask (and loss_mask in TensorDicts) |
| rollout_log_probs | rollout_log_probs, of the response |
| rewards | rm_scores, at the last token of the response |
| group_ids | uid |
| versions | min_global_steps, max_global_steps |
| columns | the same name, of the response |

Names and padding are those of verl 0.9.1 (`verl/experimental/agent_loop/agent_loop.py`). See
docs/verl.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import NonTensorStack, TensorDict
from verl import DataProto

from k15core.errors import InvalidInputError
from k15core.types import FINISH_REASONS, PackedBatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import DTypeLike, NDArray

_SCORES = ("token_level_scores", "rm_scores")


def to_dataproto(
    batch: PackedBatch,
    *,
    prompt_width: int | None = None,
    response_width: int | None = None,
    pad_token_id: int = 0,
) -> DataProto:
    """A batch [B] as a DataProto: prompts padded on the left, responses on the right.

    The widths are those of the longest unless given. `non_tensor_batch` has `uid`,
    `min_global_steps`, `max_global_steps`, and `trajectory_ids`. `batch.columns` are tensors by
    their names, of the response. A response of length 0 has no place for its reward. Raises
    InvalidInputError if something is longer than its width, or a column has a name of verl's.
    """
    prompts, responses = batch.prompt_lengths, batch.response_lengths()
    widths = []
    for name, lengths, width in (
        ("prompt_width", prompts, prompt_width),
        ("response_width", responses, response_width),
    ):
        longest = int(lengths.max(initial=0))
        if width is not None and width < longest:
            raise InvalidInputError(f"{name} = {width}: expected at least {longest}, the longest")
        widths.append(longest if width is None else width)
    left = widths[0]
    shape = (len(batch), sum(widths))
    starts = batch.cu_seqlens[:-1] - (left - prompts)  # where column 0 would lie in the pack
    columns = np.arange(shape[1])
    mask = (columns >= (left - prompts)[:, None]) & (columns < (left + responses)[:, None])
    source = (starts[:, None] + columns)[mask]

    def spread(values: NDArray[Any], fill: float = 0) -> NDArray[Any]:
        padded = np.full(shape, fill, values.dtype)
        padded[mask] = values[source]
        return padded

    input_ids = spread(batch.input_ids.astype(np.int64), pad_token_id)
    scores = np.zeros((len(batch), widths[1]), np.float32)
    scored = np.flatnonzero(responses)
    scores[scored, responses[scored] - 1] = batch.rewards[scored]
    tensors = {
        "prompts": input_ids[:, :left],
        "responses": input_ids[:, left:],
        "response_mask": spread(batch.loss_mask.astype(np.int64))[:, left:],
        "input_ids": input_ids,
        "attention_mask": mask.astype(np.int64),
        "position_ids": (mask.cumsum(axis=1) - 1).clip(min=0),
        "rollout_log_probs": spread(batch.rollout_log_probs)[:, left:],
        "rm_scores": scores,
    }
    for name, values in _own(batch, tensors):
        tensors[name] = spread(values)[:, left:]
    return DataProto.from_dict(
        tensors={name: torch.from_numpy(array.copy()) for name, array in tensors.items()},
        non_tensors=_of_rows(batch),
    )


def to_tensordict(batch: PackedBatch) -> TensorDict:
    """A batch [B] as verl's TensorDict without padding: jagged tensors under the same names."""
    spans = [slice(a, b) for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)]
    firsts = [x.start + n for x, n in zip(spans, batch.prompt_lengths, strict=True)]
    answers = [slice(first, x.stop) for first, x in zip(firsts, spans, strict=True)]
    questions = [slice(x.start, first) for first, x in zip(firsts, spans, strict=True)]
    scores = np.zeros(len(batch.input_ids), np.float32)
    for answer, reward in zip(answers, batch.rewards, strict=True):
        scores[answer][-1:] = reward
    ids = batch.input_ids.astype(np.int64)
    mask = batch.loss_mask.astype(np.int64)
    columns: dict[str, Any] = {
        "prompts": _jagged(ids, questions),
        "responses": _jagged(ids, answers),
        "response_mask": _jagged(mask, answers),
        "loss_mask": _jagged(mask, answers),
        "input_ids": _jagged(ids, spans),
        "position_ids": _jagged(batch.position_ids.astype(np.int64), spans),
        "rollout_log_probs": _jagged(batch.rollout_log_probs, answers),
        "rm_scores": _jagged(scores, answers),
    }
    for name, values in _own(batch, columns):
        columns[name] = _jagged(values, answers)
    for name, values in _of_rows(batch).items():
        columns[name] = NonTensorStack(*values.tolist())
    return TensorDict(columns, batch_size=[len(batch)])


def from_dataproto(data: DataProto, *, columns: Mapping[str, str] | None = None) -> PackedBatch:
    """A DataProto [B] as a batch, the members of a group next to each other.

    Needs `prompts`, `responses`, `attention_mask`, `rollout_log_probs`, `token_level_scores` or
    `rm_scores` in `batch` and `uid` in `non_tensor_batch`; takes `response_mask`,
    `min_global_steps`, `index` (the prompt's id, where it is a number). `trajectory_ids` are the
    rows in `data`. The versions of all tokens are `min_global_steps`, the oldest: verl does not say
    which token came under which. A response that fills its width counts as cut by length.
    `columns`, as of `Store.columns()`, names tensors of the response that become columns, with
    their dtypes; those that are not there are left out.
    """
    columns = columns or {}
    tensors = {str(name): data.batch[name] for name in data.batch.keys()}  # noqa: SIM118
    _need(tensors, "prompts", "responses", "attention_mask", "rollout_log_probs")
    kept = tensors["attention_mask"].cpu().numpy() != 0
    left = tensors["prompts"].shape[1]
    rows: dict[str, list[NDArray[Any]]] = {
        "prompts": _unpad(tensors["prompts"], kept[:, :left]),
        "responses": _unpad(tensors["responses"], kept[:, left:]),
    }
    for name in ("rollout_log_probs", "response_mask", *_SCORES, *columns):
        if name in tensors:
            rows[name] = _unpad(tensors[name], kept[:, left:])
    width = kept.shape[1] - left
    filled = np.array([len(response) == width for response in rows["responses"]])
    return _pack(rows, data.non_tensor_batch, filled, columns)


def from_tensordict(data: TensorDict, *, columns: Mapping[str, str] | None = None) -> PackedBatch:
    """verl's TensorDict without padding as a batch: the keys of `from_dataproto` as jagged tensors,
    and no attention mask. Every response counts as ended by itself.
    """
    columns = columns or {}
    keys = {str(key) for key in data.keys()}  # noqa: SIM118 (a TensorDict iterates over its rows)
    tensors = {key: data.get(key) for key in keys if isinstance(data.get(key), torch.Tensor)}
    _need(tensors, "prompts", "responses", "rollout_log_probs")
    names = ("prompts", "responses", "rollout_log_probs", "response_mask", *_SCORES, *columns)
    rows = {
        name: [row.detach().cpu().numpy() for row in tensors[name].unbind(0)]
        for name in names
        if name in tensors
    }
    others = {key: np.array(data[key], object) for key in keys - tensors.keys()}
    return _pack(rows, others, np.zeros(len(rows["responses"]), bool), columns)


def _pack(
    rows: Mapping[str, list[NDArray[Any]]],
    others: Mapping[str, NDArray[Any]],
    cut: NDArray[Any],
    columns: Mapping[str, str],
) -> PackedBatch:
    scores = next((rows[name] for name in _SCORES if name in rows), None)
    if scores is None:
        raise InvalidInputError(f"keys = {sorted(rows)}: expected {' or '.join(_SCORES)}")
    if "uid" not in others:
        raise InvalidInputError(f"non-tensor keys = {sorted(others)}: expected uid, of the group")
    group_of = {uid: place for place, uid in reversed(list(enumerate(others["uid"])))}
    firsts = np.array([group_of[uid] for uid in others["uid"]], np.int64)
    order = np.argsort(firsts, kind="stable")
    group_ids = np.unique(firsts, return_inverse=True)[1][order]

    def take(values: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [values[row] for row in order]

    prompts, responses = take(rows["prompts"]), take(rows["responses"])
    lengths = np.array([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], np.int64)
    masks = rows.get("response_mask") or [np.ones(len(row)) for row in rows["responses"]]

    def join(after: list[NDArray[Any]], dtype: DTypeLike) -> NDArray[Any]:
        pieces: list[NDArray[Any]] = [np.zeros(0, dtype)]
        for prompt, values in zip(prompts, after, strict=True):
            pieces += [np.zeros(len(prompt), dtype), values.astype(dtype)]
        return np.concatenate(pieces)

    steps = _numbers(others.get("min_global_steps"), len(order))
    versions = np.zeros(len(order), np.int64) if steps is None else steps
    indices = _numbers(others.get("index"), len(order))
    ids = [piece for pair in zip(prompts, responses, strict=True) for piece in pair]
    places = [np.arange(n, dtype=np.int32) for n in lengths]
    return PackedBatch(
        input_ids=np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32),
        position_ids=np.concatenate([np.zeros(0, np.int32), *places]),
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        max_seqlen=int(lengths.max(initial=0)),
        loss_mask=join(take(masks), np.uint8),
        rollout_log_probs=join(take(rows["rollout_log_probs"]), np.float32),
        versions=join(
            [np.full(len(r), v) for r, v in zip(responses, versions[order], strict=True)],
            np.uint32,
        ),
        rewards=np.array([row.sum() for row in take(scores)], np.float32),
        group_ids=group_ids,
        trajectory_ids=order,
        prompt_ids=group_ids if indices is None else indices[order],
        prompt_lengths=np.array([len(prompt) for prompt in prompts], np.int32),
        finish_reasons=np.where(
            cut[order], FINISH_REASONS.index("length"), FINISH_REASONS.index("stop")
        ).astype(np.uint8),
        columns={n: join(take(rows[n]), dtype) for n, dtype in columns.items() if n in rows},
    )


def _own(batch: PackedBatch, taken: Mapping[str, Any]) -> list[tuple[str, NDArray[Any]]]:
    """The columns of a batch, as signed numbers where torch knows little of unsigned ones."""
    signed = {"uint16": np.int16, "uint32": np.int32}
    for name in batch.columns:
        if name in taken:
            raise InvalidInputError(f"column {name}: expected a name that verl does not use")
    return [
        (name, values.view(signed.get(values.dtype.name, values.dtype)))
        for name, values in batch.columns.items()
    ]


def _of_rows(batch: PackedBatch) -> dict[str, NDArray[Any]]:
    oldest, newest = [], []
    for row, first in enumerate(batch.cu_seqlens[:-1] + batch.prompt_lengths):
        versions = batch.versions[first : batch.cu_seqlens[row + 1]]
        oldest.append(int(versions[0]) if len(versions) else None)
        newest.append(int(versions[-1]) if len(versions) else None)
    return {
        "uid": np.array([str(group) for group in batch.group_ids], object),
        "min_global_steps": np.array(oldest, object),
        "max_global_steps": np.array(newest, object),
        "trajectory_ids": batch.trajectory_ids.astype(object),
        "index": batch.prompt_ids.astype(object),
    }


def _jagged(values: NDArray[Any], spans: list[slice]) -> torch.Tensor:
    lengths = [span.stop - span.start for span in spans]
    offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))
    pieces = [values[:0], *(values[span] for span in spans)]
    return torch.nested.nested_tensor_from_jagged(
        torch.from_numpy(np.concatenate(pieces)), offsets, min_seqlen=0
    )


def _unpad(tensor: torch.Tensor, kept: NDArray[Any]) -> list[NDArray[Any]]:
    values = tensor.detach().cpu().numpy()
    return [row[keep] for row, keep in zip(values, kept, strict=True)]


def _numbers(values: NDArray[Any] | None, n: int) -> NDArray[np.int64] | None:
    """Whole numbers [n], 0 where there is none; None if something else is among them."""
    if values is None:
        return None
    if not all(value is None or isinstance(value, int | np.integer) for value in values):
        return None
    return np.array([value or 0 for value in values], np.int64).reshape(n)


def _need(tensors: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if name not in tensors:
            raise InvalidInputError(f"keys = {sorted(tensors)}: expected {name} among them")
