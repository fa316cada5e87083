"""A pytest plugin for TransferQueue's own end-to-end tests: it adds K15Store to them."""

from __future__ import annotations

import os
from typing import Any

import pytest

import k15core.integrations.transfer_queue  # noqa: F401 (registers the backend)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule(module_path: Any, parent: Any) -> Any:  # noqa: ARG001
    module = yield
    configs = getattr(module.obj, "BACKEND_CONFIGS", None)
    if configs is not None:
        configs["K15Store"] = {
            "controller": {"polling_mode": True},
            "backend": {
                "storage_backend": "K15Store",
                "K15Store": {"directory": os.environ["K15_TEST_DIRECTORY"]},
            },
        }
    return module
