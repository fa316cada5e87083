"""Runs model-written code in sandboxes, thousands of runs a second.

`Sandbox` is a pool of slots: each is a small process of its own that untrusted programs are started
from. Nothing is forked from Python. `Client` runs them through the daemon (`k15 sandbox serve`), on
this machine or another, by the same calls.
"""

from k15core.sandbox.client import Client
from k15core.sandbox.examine import Examination, examine
from k15core.sandbox.limits import Limits
from k15core.sandbox.local import Capability, Sandbox
from k15core.sandbox.session import Session, SessionFile
from k15core.sandbox.submission import Submission

__all__ = [
    "Capability",
    "Client",
    "Examination",
    "Limits",
    "Sandbox",
    "Session",
    "SessionFile",
    "Submission",
    "examine",
]
