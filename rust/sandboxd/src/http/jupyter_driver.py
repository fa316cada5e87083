"""Runs cells in one kernel and prints what came of them, as JSON. It runs inside the sandbox."""

import json
import subprocess
import sys
import time

MISSING = "missing"
"""Status where no kernel can be started for want of a package."""
STREAM = 1 << 20
"""Most characters that are kept of a cell's stdout, and of its stderr."""

LAUNCH = """
import itertools, zmq
from zmq.sugar.socket import Socket
connect, numbers = Socket.connect, itertools.count(1)
def bind_to_random_port(self, address, *more, **options):
    number = next(numbers)
    self.bind(f"ipc:///tmp/.kernel-pipe-{number}")
    return number
def connect_here(self, address, *more):
    if isinstance(address, str):
        address = address.replace("tcp://127.0.0.1:", "ipc:///tmp/.kernel-pipe-")
    return connect(self, address, *more)
Socket.bind_to_random_port, Socket.connect = bind_to_random_port, connect_here
from ipykernel.kernelapp import launch_new_instance
from ipykernel.zmqshell import ZMQInteractiveShell as Shell
Shell.system = Shell.system_piped = Shell.system_raw
launch_new_instance()
"""
"""Starts ipykernel. Whatever transport it is given, it has a pipe of its own over TCP, which the
sandbox does not have; libzmq ends the process for that. Nor has it terminals, which
`!command` would start its commands in."""


def end(status, cells):
    """Tell what came of it. What still runs ends with this process."""
    json.dump({"status": status, "cells": cells}, sys.stdout)
    sys.stdout.flush()
    sys.exit(0)


def start(clock):
    """A kernel, which is spoken to over Unix sockets: the sandbox has no other."""
    try:
        import ipykernel  # noqa: F401
        from jupyter_client.manager import KernelManager
    except ImportError:
        end(MISSING, [])
    manager = KernelManager(kernel_name="python3", transport="ipc")
    manager.kernel_spec.argv = [sys.executable, "-B", "-c", LAUNCH, "-f", "{connection_file}"]
    # What the kernel says outside of cells would come between what is told here.
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=clock)
    except RuntimeError as error:
        sys.exit(f"the kernel does not start: {error}")
    return manager, client


def run(manager, client, code, until):
    """A cell's outputs, and whether it was `ok`, `late`, or took the kernel with it (`dead`)."""
    from queue import Empty

    cell = {"stdout": "", "stderr": "", "display": [], "error": []}
    asked = client.execute(code, allow_stdin=False, stop_on_error=False)
    while True:
        left = until - time.monotonic()
        if left <= 0:
            return cell, "late"
        try:
            message = client.get_iopub_msg(timeout=min(left, 0.5))
        except Empty:
            if manager.is_alive():
                continue
            cell["error"].append(
                {"ename": "DeadKernelError", "evalue": "the kernel has ended", "traceback": []}
            )
            return cell, "dead"
        if message["parent_header"].get("msg_id") != asked:
            continue
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":
            kept = cell[content["name"]] + content["text"]
            cell[content["name"]] = kept[:STREAM]
        elif kind in ("display_data", "execute_result"):
            cell["display"].append(content["data"])
        elif kind == "error":
            cell["error"].append(content)
        elif kind == "status" and content["execution_state"] == "idle":
            return cell, "ok"


def main():
    """Run what is asked for on the standard input."""
    asked = json.load(sys.stdin)
    manager, client = start(asked["start_timeout"])
    end_of_all = time.monotonic() + asked["total_timeout"]
    each = asked["cell_timeout"] or asked["total_timeout"]
    cells = []
    for code in asked["cells"]:
        cell, state = run(manager, client, code, min(end_of_all, time.monotonic() + each))
        cells.append(cell)
        if state != "ok":
            end("TimeLimitExceeded" if state == "late" else "Error", cells)
    end("Finished", cells)


main()
