import contextlib
import ctypes
import errno
import os
import signal
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
PORT, NAME = (int(sys.argv[1]), "\0" + sys.argv[2]) if len(sys.argv) > 2 else (0, "")


def call(number, *arguments):
    words = [a if isinstance(a, bytes) or a is None else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def attempt(what, action):
    try:
        got = action()
    except (OSError, ValueError, MemoryError) as error:
        print("held:", what, "->", error)
    else:
        print("BREACH:", what, "->", repr(got)[:200])
    sys.stdout.flush()


def refused(what, number, *arguments):
    try:
        got = call(number, *arguments)
    except OSError as error:
        held = error.errno in (errno.EPERM, errno.ENOSYS)
        print("held:" if held else "BREACH: it was looked at:", what, "->", error)
    else:
        print("BREACH:", what, "->", got)
    sys.stdout.flush()


def ignore_signals():
    for number in range(1, 65):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
