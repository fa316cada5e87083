"""Figure 4 of the report: who has the device, and how weights get from trainer to engine."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from k15core.errors import ProcessDiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from k15core.types import RolloutEngine, Trainer, WeightSource

    Phase = Callable[[str], AbstractContextManager[None]]


class HandOver:
    """Gives the device to the trainer or to the engine, and the engine the trainer's weights.

    With `share_device` the two take turns on one device: the engine stops and the trainer comes
    back (phases stop, reload); the trainer publishes its weights and moves to the host, the engine
    starts on whatever weights and is handed the published ones (publish, offload, start, update).
    Without it each keeps its own, and one phase, handover, is all of it.

    A ProcessDiedError may come out of every phase; `begin_anew` is the way back.
    """

    def __init__(self, trainer: Trainer, engine: RolloutEngine, *, share_device: bool) -> None:
        self._trainer = trainer
        self._engine = engine
        self._share = share_device
        self._engine_has_it = False

    def begin_anew(self) -> None:
        """Before `Trainer.load`: the engine has nothing of the device, whoever died before."""
        if not self._share:
            return
        for give in (self._engine.release, self._trainer.reload):
            with suppress(ProcessDiedError):  # what is dead has given all back; load starts it
                give()
        self._engine_has_it = False

    def to_trainer(self, phase: Phase) -> None:
        """Whatever the engine does not need any more is given back, and the trainer is there."""
        if not self._share:
            return
        if self._engine_has_it:
            with phase("stop"):
                self._engine.release()
            self._engine_has_it = False
        with phase("reload"):
            self._trainer.reload()

    def to_engine(self, phase: Phase, version: int) -> None:
        """The engine has the trainer's present weights, as `version`, and no cache of older ones.

        The trainer must be there: after its construction, `Trainer.load` or `to_trainer`.
        """
        if not self._share:
            with phase("handover"):
                self._engine.acquire()
                with closed(self._trainer.weights()) as weights:
                    self._engine.update_weights(weights, version)
            return
        with phase("publish"):
            weights = self._trainer.weights()
        with closed(weights):
            with phase("offload"):
                self._trainer.offload()
            self._engine_has_it = True
            with phase("start"):
                self._engine.acquire()
            with phase("update"):
                self._engine.update_weights(weights, version)


def untimed(_: str) -> AbstractContextManager[None]:
    """A phase that nobody counts."""
    return nullcontext()


@contextmanager
def closed(weights: WeightSource) -> Iterator[WeightSource]:
    """The weights, let go of in the end where they hold something: a buffer of shared memory."""
    try:
        yield weights
    finally:
        close = getattr(weights, "close", None)
        if close is not None:
            close()
