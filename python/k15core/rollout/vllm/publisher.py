"""From whatever holds new weights to a directory in shared memory that vLLM's workers can read."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from k15core.deploy.shared_weights import SharedWeights, WeightDirectory, WeightWriter
from k15core.errors import InvalidInputError
from k15core.models.config import ModelConfig
from k15core.models.lean import parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from k15core.types import WeightSource


_COUNTER = itertools.count()
"""Engines of this process that publish by themselves: each has a directory of its own."""


class Publisher:
    """Publishes the weights of one engine, where they are not published yet.

    `model` is the engine's model directory; `directory` is where to publish, by default a new one
    under /dev/shm that goes with the engine.
    """

    def __init__(self, model: str | Path, directory: str | Path | None) -> None:
        self._expected = _parameters(model)
        self._directory = None if directory is None else Path(directory)
        self._own: WeightDirectory | None = None
        self._writer: WeightWriter | None = None
        self._published = 0

    @contextmanager
    def directory_of(self, source: WeightSource, version: int) -> Iterator[tuple[Path, int]]:
        """The directory and the published version of a source's weights, for as long as one needs.

        Raises InvalidInputError if the parameters are not the model's.
        """
        where = f"weights of version {version}"
        if isinstance(source, SharedWeights):
            entries = {}
            for entry in source.manifest.tensors:
                if entry.shard is not None:
                    raise InvalidInputError(
                        f"{where}: {entry.name} is a shard, expected whole tensors"
                    )
                entries[entry.name] = entry.shape
            check_parameters(entries, self._expected, where)
            yield source.directory, source.version
            return
        self._published += 1
        manifest = self._open_writer().publish(
            self._checked(source.tensors(), where), self._published
        )
        yield self._home(), manifest.version

    def close(self) -> None:
        """Remove what was published here."""
        if self._writer is not None:
            self._writer.close(unlink=True)
            self._writer = None
        if self._own is not None:
            self._own.close()
            self._own = None

    def _checked(
        self, tensors: Iterable[tuple[str, object]], where: str
    ) -> Iterator[tuple[str, Tensor]]:
        """The tensors, and a refusal where they end before all parameters have come."""
        import torch

        seen: dict[str, tuple[int, ...]] = {}
        for name, tensor in tensors:
            value = torch.as_tensor(tensor)
            seen[name] = tuple(value.shape)
            yield name, value
        check_parameters(seen, self._expected, where)

    def _open_writer(self) -> WeightWriter:
        if self._writer is None:
            self._writer = WeightWriter(self._home())
        return self._writer

    def _home(self) -> Path:
        if self._directory is None:
            self._own = WeightDirectory(f"vllm{next(_COUNTER)}")
            self._directory = self._own.path
        return self._directory


def check_parameters(
    given: dict[str, tuple[int, ...]],
    expected: dict[str, tuple[int, ...]] | None,
    where: str,
) -> None:
    """Raise InvalidInputError unless the names and shapes are the model's; a tied lm_head may come.

    Nothing is checked for a family whose parameters are not known here (`expected` None).
    """
    if expected is None:
        return
    for name, shape in given.items():
        if name not in expected:
            if name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq"):
                continue
            raise InvalidInputError(f"{where}: parameter {name} is not one of the model's")
        if shape != expected[name]:
            raise InvalidInputError(f"{where}: {name} has shape {shape}, expected {expected[name]}")
    missing = next((name for name in expected if name not in given), None)
    if missing is not None:
        raise InvalidInputError(f"{where}: no parameter {missing}, expected it")


def _parameters(model: str | Path) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of a model's parameters; None for families that only vLLM knows."""
    try:
        return parameter_shapes(ModelConfig.from_directory(model))
    except InvalidInputError:
        return None
