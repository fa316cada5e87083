"""Reading and writing model directories: safetensors under Hugging Face parameter names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from k15core.errors import InvalidInputError
from k15core.models.config import WEIGHT_FILES, ModelConfig
from k15core.models.lean import LeanModel, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from k15core.types import Tokenizer, WeightSource


class DirectoryWeights:
    """The WeightSource of a model directory: tensors are read one at a time."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors in the files' order. Raises InvalidInputError where one is missing."""
        for name, part in self.slices():
            yield name, part[:]

    def slices(self) -> Iterator[tuple[str, Any]]:
        """As `tensors`, but safetensors slices, of which only the part indexed is read.

        A slice knows its `get_shape()`; it is good until the next one is asked for.
        """
        single, index = (self.directory / name for name in WEIGHT_FILES)
        if single.is_file():
            files = [single]
        elif index.is_file():
            content = json.loads(index.read_text())
            files = [self.directory / name for name in sorted(set(content["weight_map"].values()))]
        else:
            raise InvalidInputError(
                f"model directory {self.directory}: no weights, "
                f"expected {' or '.join(WEIGHT_FILES)}"
            )
        for path in files:
            if not path.is_file():
                raise InvalidInputError(
                    f"model directory {self.directory}: no {path.name}, "
                    f"though {index.name} names it"
                )
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                        yield name, file.get_slice(name)
            except SafetensorError as error:
                raise InvalidInputError(f"{path}: not a safetensors file ({error})") from error


class ModelWeights:
    """The WeightSource of a model in this process."""

    def __init__(self, model: LeanModel) -> None:
        self.model = model

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and detached tensors that share the model's memory; a tied lm_head is left out."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach()


@torch.no_grad()
def copy_weights(
    model: LeanModel, tensors: Iterable[tuple[str, object]], *, where: str = "weights"
) -> None:
    """Copy tensors into the model by name, whatever their dtype and device.

    Every parameter must come exactly in its shape; only a tied lm_head may come in addition. Raises
    InvalidInputError, having possibly copied some.
    """
    wanted = parameter_shapes(model.config)
    missing = dict(wanted)
    for name, tensor in tensors:
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith("rotary_emb.inv_freq"):  # a buffer that old exports carry
            continue
        if name not in wanted:
            raise InvalidInputError(
                f"{where}: parameter {name} is not one of {model.config.family}"
            )
        value = torch.as_tensor(tensor)
        if tuple(value.shape) != wanted[name]:
            raise InvalidInputError(
                f"{where}: {name} has shape {tuple(value.shape)}, expected {wanted[name]}"
            )
        model.get_parameter(name).copy_(value)
        missing.pop(name, None)
    if missing:
        raise InvalidInputError(f"{where}: no parameter {next(iter(missing))}, expected it")


def load_model(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LeanModel:
    """Load a Hugging Face directory (one safetensors file, or shards with an index)."""
    config = ModelConfig.from_directory(directory)
    model = LeanModel(config, device=device, dtype=dtype)
    copy_weights(model, DirectoryWeights(directory).tensors(), where=f"model directory {directory}")
    return model


def save_model(
    model: LeanModel, directory: str | Path, *, tokenizer: Tokenizer | None = None
) -> None:
    """Write a model of this process as `write_model` does."""
    write_model(model.config, ModelWeights(model), directory, tokenizer=tokenizer)


def write_model(
    config: ModelConfig,
    weights: WeightSource,
    directory: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a directory that transformers loads: config.json, model.safetensors, tokenizer files.

    The files are written in place: to replace a model safely, write a new directory and rename it.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config.source), indent=2) + "\n")
    tensors = {name: torch.as_tensor(value).contiguous() for name, value in weights.tensors()}
    save_file(tensors, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
