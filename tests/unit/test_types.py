import numpy as np

from k15core.types import PackedBatch


def batch(lengths: list[tuple[int, int]]) -> PackedBatch:
    """Trajectories of (prompt, response) tokens; input_ids count up over the whole batch."""
    total = [p + r for p, r in lengths]
    cu = np.concatenate(([0], np.cumsum(total))).astype(np.int32)
    mask = np.concatenate([[0] * p + [1] * r for p, r in lengths])
    rows = np.arange(len(lengths))
    return PackedBatch(
        input_ids=np.arange(cu[-1], dtype=np.int32),
        position_ids=np.concatenate([np.arange(n) for n in total]).astype(np.int32),
        cu_seqlens=cu,
        max_seqlen=max(total),
        loss_mask=mask.astype(np.uint8),
        rollout_log_probs=np.zeros(cu[-1], np.float32),
        versions=mask.astype(np.uint32),
        rewards=rows.astype(np.float32),
        group_ids=rows,
        trajectory_ids=rows,
        prompt_ids=rows,
        prompt_lengths=np.array([p for p, _ in lengths], np.int32),
        finish_reasons=rows.astype(np.uint8),
    )


def test_select_takes_rows_in_order() -> None:
    whole = batch([(2, 3), (1, 4), (3, 0)])
    part = whole.select([2, 0])
    assert part.cu_seqlens.tolist() == [0, 3, 8]
    assert part.input_ids.tolist() == [10, 11, 12, 0, 1, 2, 3, 4]
    assert part.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert part.rewards.tolist() == [2.0, 0.0]
    assert part.max_seqlen == 5
    assert part.response_lengths().tolist() == [0, 3]


def test_copy_owns_its_memory() -> None:
    whole = batch([(2, 3)])
    twin = whole.copy()
    whole.input_ids[:] = -1
    assert twin.input_ids.tolist() == [0, 1, 2, 3, 4]
