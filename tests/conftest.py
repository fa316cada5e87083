"""Before torch is imported: small models are fastest on one thread, and waiting must not spin."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")
