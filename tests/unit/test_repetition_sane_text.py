"""Sane text never alarms, whatever it is cut into."""

import json
import os
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from k15core import RepetitionDetector

SHARED = Path(os.environ.get("K15_SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))


def byte_pairs(texts: list[str]) -> list[list[int]]:
    """Tokens of a byte-pair vocabulary learnt from the texts themselves."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=5000, show_progress=False, initial_alphabet=ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def words(texts: list[str]) -> list[list[int]]:
    ids: dict[str, int] = {}
    return [
        [ids.setdefault(word, len(ids)) for word in re.findall(r"\s+|\w+|.", text)]
        for text in texts
    ]


def characters(texts: list[str]) -> list[list[int]]:
    return [[ord(character) for character in text] for text in texts]


def encoded_bytes(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


ALPHABETS = [byte_pairs, words, characters, encoded_bytes]


def alarms(streams: list[list[int]]) -> list[tuple[int, object]]:
    detector = RepetitionDetector(len(streams))
    arrays: list[NDArray[np.int32]] = [np.array(stream, np.int32) for stream in streams]
    found = [(at, detector.extend(at, array)) for at, array in enumerate(arrays)]
    return [(at, loop) for at, loop in found if loop is not None]


@pytest.fixture(scope="module")
def responses() -> list[str]:
    path = SHARED / "math" / "math_cot_100.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there: set K15_SHARED_DATA to the folder of data sets")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = [response for row in rows for response in row["response"]]
    assert len(texts) == 800
    return texts


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_sampled_reasoning_is_no_loop(
    responses: list[str], alphabet: Callable[[list[str]], list[list[int]]]
) -> None:
    assert alarms(alphabet(responses)) == []
    # One after another they are as long as a long response; problems differ, so it stays sane.
    together = ["\n\n".join(responses[k::8]) for k in range(8)]
    assert alarms(alphabet(together)) == []


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_source_code_is_no_loop(alphabet: Callable[[list[str]], list[list[int]]]) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    names = ("argparse", "ast", "calendar", "enum", "fractions", "inspect", "statistics", "typing")
    assert alarms(alphabet([(library / f"{name}.py").read_text() for name in names])) == []


def test_a_sampled_response_that_gets_stuck_is_a_loop(responses: list[str]) -> None:
    detector = RepetitionDetector()
    for text in responses[::80]:
        (sane, stuck) = byte_pairs([text, text + text[-200:] * 12])
        detector.reset(0)
        loop = detector.extend(0, np.array(stuck, np.int32))
        assert loop is not None
        assert loop.kind == "exact"
        assert abs(loop.start - len(sane)) <= 150
