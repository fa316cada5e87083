"""One token a row from its logits, by noise that the caller brings."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@torch.inference_mode()
def sample(
    logits: Tensor, temperatures: NDArray[np.float64], noise: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Tokens [n] and their log-probs [n] for logits [n, V].

    A token is where the cumulative distribution (float64) of softmax(logits / temperature) passes
    the row's uniform number, its log-prob that of the same distribution (what vLLM calls
    processed_logprobs). Temperature 0 takes the likeliest token, with its log-prob under the
    unscaled softmax. A row's result depends on that row alone.
    """
    greedy = temperatures == 0
    scale = np.where(greedy, 1.0, temperatures)
    values = logits.float()
    if (scale != 1.0).any():
        values = values / torch.from_numpy(scale.astype(np.float32)).to(logits.device)[:, None]
    log_probs = values.log_softmax(-1)
    if greedy.all():
        tokens = log_probs.argmax(-1)
    else:
        cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
        target = torch.from_numpy(noise).to(logits.device)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
        tokens.clamp_(max=logits.shape[1] - 1)  # where every logit is NaN
        if greedy.any():
            tokens = torch.where(
                torch.from_numpy(greedy).to(logits.device), log_probs.argmax(-1), tokens
            )
    chosen = log_probs.gather(1, tokens[:, None])[:, 0]
    return tokens.cpu().numpy(), chosen.cpu().numpy()
