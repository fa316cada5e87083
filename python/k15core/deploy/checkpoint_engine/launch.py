"""Becomes the engine once it holds the lock that there is one of: `launch.py LOCK COMMAND ...`.

Run as a file of its own, without the package, as it costs each start what it imports. The lock is
held by an open descriptor that the engine inherits, for as long as it lives.
"""

import fcntl
import os
import sys

LOCKED = 75


def main(path: str, command: list[str]) -> None:
    """Take the lock and become the command; exits with LOCKED where another holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another engine process holds", path, file=sys.stderr)
        sys.exit(LOCKED)
    os.set_inheritable(lock, True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
