"""Becomes the engine once it holds the lock that there is one of: `launch.py LOCK COMMAND ...`.

Run as a file of its own, without the package, as it costs each start what it imports. The lock is
held by an open descriptor that the engine inherits, for as long as it lives.
"""

import fcntl
import os
import sys

lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("another engine process holds", sys.argv[1], file=sys.stderr)
    sys.exit(75)
os.set_inheritable(lock, True)
os.execvp(sys.argv[2], sys.argv[2:])
