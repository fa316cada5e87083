"""How many threads a pass over the model gets, and that decoding does not depend on it."""

from collections.abc import Iterator

import pytest
import torch
from families import SMALL
from generation import run, stories

from k15core.models.create import new_model
from k15core.models.runtime import WORTH_THREADS, threads_for
from k15core.rollout.embedded import EmbeddedEngine


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_products_leave_the_threads_to_our_own_kernels() -> None:
    with threads_for(WORTH_THREADS - 1) as own:
        assert (own, torch.get_num_threads()) == (2, 1)
    assert torch.get_num_threads() == 2
    with threads_for(WORTH_THREADS) as own:
        assert (own, torch.get_num_threads()) == (1, 2)
    with pytest.raises(ZeroDivisionError), threads_for(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with threads_for(1) as own:
        assert (own, torch.get_num_threads()) == (1, 1)


def test_the_tokens_of_a_stream_do_not_depend_on_the_threads() -> None:
    config = {**SMALL, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8}
    model = new_model(config, seed=1, embedding_std=1.0, head_std=0.25)
    told = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        engine = EmbeddedEngine(model, max_total_tokens=200, slots=48, eos_token_ids=[])
        told[threads] = stories([[5, 6, 7]] * 48)
        run(engine, told[threads], 150)
        assert torch.get_num_threads() == threads
    for one, two in zip(told[1], told[2], strict=True):
        assert (one.tokens, one.log_probs) == (two.tokens, two.log_probs)
