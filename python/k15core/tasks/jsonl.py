r"""Any file of problems as a task for a pretrained model: one JSON object a line.

GSM8K, for example, has `question` and `answer`, a worked solution that ends in `#### 72`:

    JsonlTask(path="gsm8k/train.jsonl", model="models/smollm2", prompt_field="question",
              answer_pattern=r"####\s*(.+)", response_field="answer", chat=True,
              difficulty_pattern="<<")  # a calculator annotation a step
"""

from __future__ import annotations

import hashlib
import logging
import random
from typing import TYPE_CHECKING, Literal

import numpy as np

from k15core.errors import InvalidInputError
from k15core.tasks.records import Fields, Record, pattern, read_records
from k15core.tasks.tokenizer import DirectoryTokenizer
from k15core.types import Demonstration, Prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from k15core.types import Tokenizer

_log = logging.getLogger(__name__)


class JsonlTask:
    """The problems of a file, tokenized for the model whose Hugging Face directory is `model`.

    **Lines.** `prompt_field`, `answer_field`, `tags_field` (a list, optional), `difficulty_field`
    (a number, optional), `response_field` (a demonstration; None if there are none) name the
    fields; `answer_pattern`, `response_remove` and `difficulty_pattern` are regular expressions,
    see `records.Fields`. A broken line is refused with file and line number, or with
    `on_broken="skip"` left out, logged, and named in `skipped`.

    **Prompts.** `template` holds `{prompt}`; with `chat` it becomes the user's message in the
    model's chat template, after the message `system` if given. Prompts of more than
    `max_prompt_tokens` are left out and counted in `too_long`, those of a difficulty above
    `max_difficulty` are left out on both sides.

    **Held out.** The lines of `held_out_path`; or, without it, `held_out_share` of the problems, by
    a hash of `seed` and the problem's text, so that the same text never stands on both sides and
    the file's order does not matter. Training problems that also stand in `held_out_path` are
    dropped. `limit` and `held_out_limit` keep the first so many.

    Ids count from 0 through the training prompts and on through the held-out ones.
    """

    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]

    def __init__(
        self,
        path: str | Path,
        model: str | Path,
        *,
        seed: int = 0,
        prompt_field: str = "prompt",
        answer_field: str = "answer",
        tags_field: str = "tags",
        difficulty_field: str = "difficulty",
        response_field: str | None = None,
        answer_pattern: str | None = None,
        response_remove: str | None = None,
        difficulty_pattern: str | None = None,
        template: str = "{prompt}",
        chat: bool = False,
        system: str | None = None,
        held_out_path: str | Path | None = None,
        held_out_share: float = 0.1,
        limit: int | None = None,
        held_out_limit: int | None = None,
        max_difficulty: float | None = None,
        max_prompt_tokens: int | None = None,
        max_demonstration_tokens: int | None = None,
        on_broken: Literal["refuse", "skip"] = "refuse",
    ) -> None:
        if "{prompt}" not in template:
            raise InvalidInputError(f"template is {template!r}: expected it to hold {{prompt}}")
        if system is not None and not chat:
            raise InvalidInputError("system is set, chat is not: a system message needs chat: true")
        if not 0 <= held_out_share < 1:
            raise InvalidInputError(f"held_out_share is {held_out_share}: expected 0 to 1")
        if on_broken not in ("refuse", "skip"):
            raise InvalidInputError(f"on_broken is {on_broken!r}: expected refuse or skip")
        self._seed, self._template, self._chat, self._system = seed, template, chat, system
        self._max_difficulty = max_difficulty
        fields = Fields(
            prompt_field,
            answer_field,
            tags_field,
            difficulty_field,
            response_field,
            pattern("answer_pattern", answer_pattern),
            pattern("response_remove", response_remove),
            pattern("difficulty_pattern", difficulty_pattern),
        )
        self._directory = DirectoryTokenizer(model)
        self.tokenizer = self._directory
        self.too_long = 0
        self.skipped: list[str] = []
        training = self._read(path, fields, skip_broken=on_broken == "skip")
        if held_out_path is None:
            testing = [r for r in training if self._is_held_out(r, held_out_share)]
        else:
            testing = self._read(held_out_path, fields, skip_broken=on_broken == "skip")
        kept_back = {record.prompt for record in testing}
        training = [record for record in training if record.prompt not in kept_back]

        kept = self._tokenized(training, max_prompt_tokens, limit)
        if not kept:
            raise InvalidInputError(
                f"prompt file {path} has no training prompt left: {len(training)} problems are not "
                f"held out, {self.too_long} prompts are longer than {max_prompt_tokens} tokens"
            )
        self.prompts = [_prompt(i, *pair) for i, pair in enumerate(kept)]
        tests = self._tokenized(testing, max_prompt_tokens, held_out_limit)
        self.held_out = [_prompt(i, *pair) for i, pair in enumerate(tests, start=len(kept))]
        self._shown = list(self._demonstrations(kept, max_demonstration_tokens))

    def demonstrations(self, stage: str, step: int, n: int) -> list[Demonstration]:
        """The n demonstrations of one step, in an order of their own for every stage and epoch.

        A pure function of (seed, stage, step, n); step s shows the places s·n to (s + 1)·n of the
        endless sequence of epochs. Raises InvalidInputError where the task has none.
        """
        if not self._shown:
            raise InvalidInputError(
                "the task has no demonstrations: set response_field to a field that holds worked "
                "solutions, or max_demonstration_tokens higher"
            )
        size = len(self._shown)
        orders: dict[int, list[int]] = {}
        chosen = []
        for place in range(step * n, (step + 1) * n):
            epoch, at = divmod(place, size)
            if epoch not in orders:
                order = list(range(size))
                random.Random(f"{self._seed}/{stage}/{epoch}").shuffle(order)
                orders[epoch] = order
            chosen.append(self._shown[orders[epoch][at]])
        return chosen

    def behaviour(self, prompt: Prompt, response: str) -> Mapping[str, tuple[float, float]]:  # noqa: ARG002
        """Nothing: a file says nothing about how its problems are solved."""
        return {}

    def forced_prefix(self, prompt: Prompt) -> str | None:  # noqa: ARG002
        """None: the problems have no first step in common."""
        return None

    def _read(self, path: str | Path, fields: Fields, *, skip_broken: bool) -> list[Record]:
        records, skipped = read_records(path, fields, skip_broken=skip_broken)
        for message in skipped:
            _log.warning("skipped: %s", message)
        self.skipped += skipped
        return [r for r in records if not self._too_hard(r)]

    def _too_hard(self, record: Record) -> bool:
        if self._max_difficulty is None or record.difficulty is None:
            return False
        return record.difficulty > self._max_difficulty

    def _is_held_out(self, record: Record, share: float) -> bool:
        text = f"{self._seed}/{record.prompt}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest, "little") < share * 2**64

    def _tokenized(
        self, records: Iterable[Record], longest: int | None, limit: int | None
    ) -> list[tuple[Record, list[int]]]:
        kept: list[tuple[Record, list[int]]] = []
        for record in records:
            if limit is not None and len(kept) >= limit:
                break
            ids = self.tokenizer.encode(self._text(record.prompt))
            if longest is not None and len(ids) > longest:
                self.too_long += 1
            else:
                kept.append((record, ids))
        return kept

    def _text(self, prompt: str) -> str:
        text = self._template.replace("{prompt}", prompt)
        if not self._chat:
            return text
        messages = [{"role": "user", "content": text}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": self._system})
        return self._directory.chat(messages)

    def _demonstrations(
        self, kept: Iterable[tuple[Record, list[int]]], longest: int | None
    ) -> Iterable[Demonstration]:
        end = self.tokenizer.eos_token_ids[0]
        for record, prompt in kept:
            if record.response is None:
                continue
            ids = [*prompt, *self.tokenizer.encode(record.response), end]
            if longest is None or len(ids) <= longest:
                yield Demonstration(np.array(ids, np.int32), len(prompt))


def _prompt(prompt_id: int, record: Record, ids: Sequence[int]) -> Prompt:
    return Prompt(
        prompt_id=prompt_id,
        input_ids=np.array(ids, np.int32),
        answer=record.answer,
        tags=record.tags,
        difficulty=record.difficulty,
    )
