"""vLLM's built-in repetition check, called as its scheduler does: once for each new token.

Arguments: a .npy file of streams [streams, tokens], max_pattern_size, min_count. Each line on stdin
is answered with CPU nanoseconds a token. The check reads the tail only and keeps nothing between
calls, so what it costs a stream is measured at positions spread over the streams.
"""

import json
import sys
import time

import numpy as np
from vllm.sampling_params import RepetitionDetectionParams
from vllm.v1.core.sched.utils import check_sequence_repetition
from vllm.v1.utils import ConstantList

SECONDS = 0.3
"""How long a round samples positions, at least."""


def main(path: str, max_pattern_size: int, min_count: int) -> None:
    streams = np.load(path).tolist()
    params = RepetitionDetectionParams(
        max_pattern_size=max_pattern_size, min_pattern_size=1, min_count=min_count
    )
    least = max_pattern_size * min_count
    draws = np.random.default_rng(0)
    for _ in sys.stdin:
        spent, checked = 0.0, 0
        while spent < SECONDS:
            tokens = streams[draws.integers(len(streams))]
            count = int(draws.integers(least, len(tokens)))
            # What Request.output_token_ids is: a read-only face of the list of output tokens.
            output = tokens[:count]
            output_token_ids = ConstantList(output)
            following = tokens[count : count + 16]
            found = False
            start = time.thread_time()
            for token in following:
                output.append(token)
                found |= check_sequence_repetition(output_token_ids, params)
            spent += time.thread_time() - start
            checked += len(following)
            assert not found
        print(json.dumps(spent / checked * 1e9), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
