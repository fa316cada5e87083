"""Runs model-written code in sandboxes, thousands of runs a second.

`Sandbox` is a pool of slots: each is a small process of its own that untrusted programs are started
from. Nothing is forked from Python.
"""

from k15core.sandbox.examine import Examination, examine
from k15core.sandbox.limits import Limits
from k15core.sandbox.local import Capability, Sandbox, Submission

__all__ = ["Capability", "Examination", "Limits", "Sandbox", "Submission", "examine"]
