"""TransferQueue: a storage backend "K15Store", whose values survive `kill -9`.

    import transfer_queue
    import k15core.integrations.transfer_queue  # registers the backend

    transfer_queue.init(OmegaConf.create({"backend": {
        "storage_backend": "K15Store",
        "K15Store": {"directory": "/data/queue", "existing": "clear"},
    }}))

Only the process that calls `init` with a configuration has to import this: the configuration that
the others get from TransferQueue's controller brings it along. See docs/transfer_queue.md.
"""

from k15core.integrations.transfer_queue.backend import (
    Endpoint,
    K15StorageClient,
    K15StorageManager,
    initialize_k15_store,
)
from k15core.integrations.transfer_queue.values import ValueStore

__all__ = [
    "Endpoint",
    "K15StorageClient",
    "K15StorageManager",
    "ValueStore",
    "initialize_k15_store",
]
