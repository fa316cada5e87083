"""The exceptions of k15core. Everything that the library refuses is a subclass of `Error`.

Messages name the field, the value and what was expected; where there is a way out, they say it.
"""


class Error(Exception):
    """Base of every exception that k15core raises on purpose."""


class InvalidInputError(Error, ValueError):
    """An argument, a recipe, a prompt file or a model directory is not what was expected."""


class ConflictError(Error):
    """An append does not continue what is stored: another writer was there, or a gap would open."""


class LeaseExpiredError(Error):
    """The lease epoch is older than the trajectory's: another worker holds it now."""


class CapacityError(Error):
    """The store is full, and the caller chose that it then refuses."""


class CorruptionError(Error):
    """Stored bytes do not match their checksum, or a file is of a format that is not ours."""


class StorageError(Error, OSError):
    """The operating system refused to read or write: a full disk, a missing permission."""


class DisconnectedError(Error, ConnectionError):
    """No process serves the store, or its server ended in the middle of a call.

    Whether that call was carried out is not known; what was acknowledged before is kept.
    """


class ProcessDiedError(Error):
    """A worker process of the trainer or of an engine ended, or does not answer any more.

    What it held in memory is lost; the store and the checkpoints are not. `Trainer.load` and
    `RolloutEngine.acquire` start it again.
    """


class VerifierError(Error):
    """A verifier failed by itself. Nothing is known about the response: it is not a wrong one."""


class SandboxError(Error):
    """The sandbox itself failed, or is closed. Nothing is known about the program."""


class UnenforceableError(SandboxError):
    """This host cannot hold a run to a limit that was asked for; the message says how it could."""
