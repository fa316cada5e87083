"""Before torch is imported: small models are fastest on one thread, and waiting must not spin."""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _denormals_as_python_has_them() -> Iterator[None]:
    """A run sets its process to flush denormals; the tests after it share the process."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
