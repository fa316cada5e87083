"""verl's own client against a daemon that has twice as many requests as it can hold.

    python tests/soak/verl_load.py URL CLIENTS SECONDS SLEEP

As many threads as there are clients ask, each the next as soon as the last was answered, for so
long; every program is right. Prints as JSON how many were scored, how many of them as wrong and
why, and the longest that one took. It needs verl: scripts/test_peers.sh makes an environment.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter

from verl.utils.reward_score.sandbox_fusion.utils import _process_single_case


def load(url: str, clients: int, seconds: float, sleep: float) -> dict[str, object]:
    """What verl made of programs that are all right."""
    logging.disable(logging.CRITICAL)
    scores: Counter[str] = Counter()
    took: list[float] = []
    begin = time.monotonic()
    end = begin + seconds

    def work(client: int) -> None:
        turn = 0
        while time.monotonic() < end:
            word = f"{client} {turn}"
            code = f"import time; time.sleep({sleep}); print(input())"
            start = time.monotonic()
            score, facts = _process_single_case(0, word, word, url, code, 10, 512, "python")
            took.append(time.monotonic() - start)
            scores["right" if score is True else f"{score}: {facts['api_request_error']}"] += 1
            turn += 1

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = sum(count for score, count in scores.items() if score != "right")
    seconds = time.monotonic() - begin
    done = {"scored": len(took), "wrong": wrong, "why": dict(scores)}
    return done | {"longest": max(took), "seconds": seconds}


if __name__ == "__main__":
    url, clients, seconds, sleep = sys.argv[1:]
    print(json.dumps(load(url, int(clients), float(seconds), float(sleep))))
