"""Tokenizers: of a Hugging Face directory, and word-level ones made from a list of words.

Both run on the light `tokenizers` package. transformers is loaded only for a directory that has no
tokenizer.json, and for chat templates.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What save_pretrained copies. generation_config.json belongs to them: it names the tokens at which
# an answer ends.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
)
_PAD, _UNKNOWN = "[PAD]", "[UNK]"


class _Backed:
    """What both kinds share: a backend and the ids that end a response."""

    eos_token_ids: tuple[int, ...]

    def __init__(self, backend: Backend, eos_token_ids: tuple[int, ...]) -> None:
        self._backend = backend
        self.eos_token_ids = eos_token_ids

    @property
    def vocabulary_size(self) -> int:
        """One more than the highest token id."""
        return max(self._backend.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Text to token ids, without special tokens added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids to text; special tokens and those that end a response are not shown."""
        shown = [int(i) for i in ids if int(i) not in self.eos_token_ids]
        return str(self._backend.decode(shown, skip_special_tokens=True))


class WordTokenizer(_Backed):
    """One token a word, words apart by blanks. Ids: padding 0, unknown 1, then `words` in order."""

    def __init__(self, words: Sequence[str], *, eos: str) -> None:
        if eos not in words:
            raise InvalidInputError(f"eos is {eos!r}: expected one of the words")
        vocabulary = {word: i for i, word in enumerate([_PAD, _UNKNOWN, *words])}
        backend = Backend(WordLevel(vocabulary, unk_token=_UNKNOWN))
        backend.pre_tokenizer = WhitespaceSplit()
        # single_word: an added token would match inside of longer words too.
        special = [AddedToken(word, single_word=True) for word in (_PAD, _UNKNOWN, eos)]
        backend.add_special_tokens(special)
        super().__init__(backend, (vocabulary[eos],))
        self._eos = eos

    def save_pretrained(self, directory: str) -> None:
        """Write tokenizer.json and tokenizer_config.json, as AutoTokenizer loads them."""
        out = Path(directory)
        out.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(out / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self._eos,
            "pad_token": _PAD,
            "unk_token": _UNKNOWN,
            "clean_up_tokenization_spaces": False,
        }
        (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


class DirectoryTokenizer(_Backed):
    """The tokenizer of a Hugging Face model directory.

    A response ends at the eos token of tokenizer_config.json (first in `eos_token_ids`) and at
    those of generation_config.json, or, where that says nothing, of config.json. Raises
    InvalidInputError for a directory without a tokenizer, or one that names no end.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        backend = _load_backend(self.directory)
        super().__init__(backend, _eos_token_ids(self.directory, backend))

    def save_pretrained(self, directory: str) -> None:
        """Copy the tokenizer's files, and those that say where a response ends."""
        out = Path(directory)
        out.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            source = self.directory / name
            if source.is_file() and source.resolve() != (out / name).resolve():
                shutil.copyfile(source, out / name)

    def chat(self, messages: Sequence[Mapping[str, str]], *, open_answer: bool = True) -> str:
        """Messages of {role, content} as one text, by the directory's chat template.

        With `open_answer` the text ends where the assistant's answer begins. Raises
        InvalidInputError if the directory has no chat template.
        """
        tokenizer = self._transformers
        if not tokenizer.chat_template:
            raise InvalidInputError(
                f"the tokenizer of {self.directory} has no chat template: set a prompt template"
            )
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=open_answer,
        )
        return str(text)

    @functools.cached_property
    def _transformers(self) -> Any:
        return _auto_tokenizer(self.directory)


def _load_backend(directory: Path) -> Backend:
    if not directory.is_dir():
        raise InvalidInputError(f"model directory {directory} does not exist")
    file = directory / "tokenizer.json"
    if file.is_file():
        try:
            return Backend.from_file(str(file))
        except Exception as error:  # noqa: BLE001 - the package raises bare Exception
            raise InvalidInputError(f"{file} is not a tokenizer: {error}") from None
    if not any((directory / name).is_file() for name in ("tokenizer.model", "vocab.json")):
        raise InvalidInputError(
            f"model directory {directory} has no tokenizer: expected a file tokenizer.json"
        )
    backend = getattr(_auto_tokenizer(directory), "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise InvalidInputError(f"{directory}: transformers cannot convert its tokenizer")
    return backend


def _auto_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{directory}: transformers cannot load it: {error}") from None


def _eos_token_ids(directory: Path, backend: Backend) -> tuple[int, ...]:
    found: list[int] = []
    token = _json(directory / "tokenizer_config.json").get("eos_token")
    if isinstance(token, dict):  # an AddedToken written out
        token = token.get("content")
    if token is not None and (id_ := backend.token_to_id(str(token))) is not None:
        found.append(id_)
    for name in ("generation_config.json", "config.json"):
        ids = _json(directory / name).get("eos_token_id")
        if ids is not None:
            found += [int(i) for i in (ids if isinstance(ids, list) else [ids])]
            break
    if not found:
        raise InvalidInputError(
            f"model directory {directory} names no end-of-sequence token: expected eos_token in "
            "tokenizer_config.json or eos_token_id in generation_config.json"
        )
    return tuple(dict.fromkeys(found))


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{file} is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}
