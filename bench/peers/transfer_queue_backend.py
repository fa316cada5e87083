"""A TransferQueue backend of bench/transfer_queue.py; arguments: backend, a directory.

Answers each input line with the seconds that one call took: of a put, then of the get of the
same rows, and so on.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "python"))

import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict

import k15core.integrations.transfer_queue  # noqa: F401 (registers the backend)

ROWS, TOKENS = 512, 8192


def main(backend: str, directory: str) -> None:
    # Ray and TransferQueue log to stdout, which is for answers here.
    answers, sys.stdout = sys.stdout, sys.stderr
    # For the processes of the cluster.
    package = str(Path(__file__).parents[2] / "python")
    os.environ["PYTHONPATH"] = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
    settings: dict[str, dict[str, Any]] = {
        "K15Store": {"directory": f"{directory}/queue", "capacity_bytes": 1 << 30},
        "SimpleStorage": {"num_data_storage_units": 2},
    }
    tq.init(
        OmegaConf.create(
            {
                "controller": {"polling_mode": True},
                "backend": {"storage_backend": backend, backend: settings[backend]},
            }
        )
    )
    tokens = torch.randint(0, 150_000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    fields = TensorDict({"input_ids": tokens}, batch_size=ROWS)
    for turn, _ in enumerate(sys.stdin):
        keys = [f"{turn // 2}_{row}" for row in range(ROWS)]
        start = time.perf_counter()
        if turn % 2 == 0:
            tq.kv_batch_put(keys=keys, partition_id="bench", fields=fields, tags=[{} for _ in keys])
            seconds = time.perf_counter() - start
        else:
            found = tq.kv_batch_get(keys=keys, partition_id="bench")
            seconds = time.perf_counter() - start
            assert torch.equal(list(found["input_ids"])[-1], tokens[-1])
            tq.kv_clear(keys=keys, partition_id="bench")
        print(seconds, file=answers, flush=True)
    tq.close()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
