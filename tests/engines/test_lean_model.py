import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from families import VARIANTS, reference, save
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from k15core.models.create import new_model
from k15core.models.lean import LeanModel, response_positions
from k15core.models.weights import load_model, save_model

LENGTHS = [1, 37, 5, 120, 64, 2, 33, 33, 7, 90]


@pytest.fixture(params=VARIANTS, scope="module")
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, LeanModel]:
    model = reference(request.param)
    return model, load_model(save(model, tmp_path_factory.mktemp("model")))


def pack(lengths: list[int], vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    input_ids = torch.randint(vocabulary, (sum(lengths),), generator=generator, dtype=torch.int32)
    position_ids = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])
    return input_ids, position_ids, cu_seqlens, max(lengths)


def packed_logits(model: LeanModel, lengths: list[int]) -> Tensor:
    return model.logits(model.forward_packed(*pack(lengths, model.config.vocab_size)))


def plain_logits(model: PreTrainedModel, lengths: list[int]) -> Tensor:
    input_ids, _, cu_seqlens, _ = pack(lengths, model.config.vocab_size)
    rows = [input_ids[a:b].long()[None] for a, b in pairwise(cu_seqlens)]
    return torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in rows])


@torch.no_grad()
def test_log_probs_equal_transformers(pair: tuple[PreTrainedModel, LeanModel]) -> None:
    theirs, ours = pair
    exact = plain_logits(copy.deepcopy(theirs).double(), LENGTHS).log_softmax(-1)
    single = plain_logits(theirs, LENGTHS).log_softmax(-1)
    lean = packed_logits(ours, LENGTHS).log_softmax(-1)
    assert torch.quantile((lean - single).abs().flatten()[::7], 0.99) <= 1e-5
    assert (lean - exact).abs().max() <= 2 * (single - exact).abs().max()
    assert (lean - exact).square().mean() <= 4 * (single - exact).square().mean()


@torch.no_grad()
def test_state_dict_is_transformers_own(pair: tuple[PreTrainedModel, LeanModel]) -> None:
    theirs, ours = pair
    want, got = theirs.state_dict(), ours.state_dict()
    assert {k: v.shape for k, v in want.items()} == {k: v.shape for k, v in got.items()}
    assert all(torch.equal(want[name], got[name]) for name in want)
    theirs.load_state_dict(got)
    ours.load_state_dict(want)


@torch.no_grad()
def test_a_saved_directory_loads_in_transformers(
    pair: tuple[PreTrainedModel, LeanModel], tmp_path: Path
) -> None:
    theirs, ours = pair
    save_model(ours, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(again) is type(theirs)
    want, got = theirs.state_dict(), again.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    torch.testing.assert_close(plain_logits(again, LENGTHS), plain_logits(theirs, LENGTHS))


def test_gradients_equal_transformers(pair: tuple[PreTrainedModel, LeanModel]) -> None:
    theirs, ours = pair
    weight = torch.randn(sum(LENGTHS), generator=torch.Generator().manual_seed(1))
    ids = pack(LENGTHS, ours.config.vocab_size)[0].long()

    def gradients(model: torch.nn.Module, logits: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (logits.log_softmax(-1).gather(1, ids[:, None])[:, 0] * weight.to(logits)).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    double = copy.deepcopy(theirs).double()
    exact = gradients(double, plain_logits(double, LENGTHS))
    single = gradients(theirs, plain_logits(theirs, LENGTHS))
    lean = gradients(ours, packed_logits(ours, LENGTHS))
    assert exact.keys() == lean.keys()
    for name, want in exact.items():
        noise = (single[name] - want).norm() + 1e-6 * want.norm()
        assert (lean[name] - want).norm() <= 3 * noise, name


@torch.no_grad()
def test_packing_does_not_mix_sequences() -> None:
    model = load_like("qwen3")
    lengths = np.random.default_rng(5).integers(1, 90, 64).tolist()
    input_ids, position_ids, cu_seqlens, longest = pack(lengths, model.config.vocab_size)
    packed = model.forward_packed(input_ids, position_ids, cu_seqlens, longest)
    for a, b in pairwise(cu_seqlens.tolist()):
        alone = model.forward_packed(
            input_ids[a:b], position_ids[a:b], torch.tensor([0, b - a], dtype=torch.int32), b - a
        )
        torch.testing.assert_close(packed[a:b], alone, rtol=1e-4, atol=1e-5)


def load_like(variant: str) -> LeanModel:
    theirs = reference(variant)
    config = {**theirs.config.to_dict()}
    model = new_model(config, seed=0)
    model.load_state_dict(theirs.state_dict())
    return model


@pytest.mark.parametrize("chunked", [False, True])
def test_token_log_probs_and_their_gradient(chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_like("qwen2-tied")
    if chunked:
        monkeypatch.setattr("k15core.models.lean.LOGITS_BYTES", 4 * model.config.vocab_size * 10)
    arguments = pack(LENGTHS, model.config.vocab_size)
    input_ids, _, cu_seqlens, _ = arguments
    mask = (torch.arange(sum(LENGTHS)) % 3 > 0).to(torch.uint8)
    positions = response_positions(mask, cu_seqlens)
    assert not set(positions.tolist()) & set(cu_seqlens.tolist())
    assert len(positions) == int(mask.sum()) - int(mask[cu_seqlens[:-1].long()].sum())

    hidden = model.forward_packed(*arguments)
    got = model.token_log_probs(hidden, input_ids, positions, temperature=0.7)
    got.square().sum().backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    logits = model.logits(model.forward_packed(*arguments)) / 0.7
    all_log_probs = logits.log_softmax(-1)[positions - 1]
    want = all_log_probs.gather(1, input_ids[positions].long()[:, None])[:, 0]
    want.square().sum().backward()
    torch.testing.assert_close(got, want)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-3, atol=1e-3)


def test_empty_pack() -> None:
    model = load_like("llama")
    empty = torch.empty(0, dtype=torch.int32)
    hidden = model.forward_packed(empty, empty, torch.zeros(1, dtype=torch.int32), 0)
    assert hidden.shape == (0, model.config.hidden_size)
