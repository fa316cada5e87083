"""Tokenizers: round trips, agreement with transformers, what ends a response, bad directories."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from k15core.errors import InvalidInputError
from k15core.tasks.doors import DoorsTask
from k15core.tasks.tokenizer import DirectoryTokenizer, WordTokenizer

TASK = DoorsTask(pool=1, held_out_per_difficulty=1)
WORDS = ["|", "!", "?", *"abcdefgh", *"1234567"]
WORDS += [f"{a}>{b}" for a in "abcdefgh" for b in "abcdefgh" if a != b]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    TASK.tokenizer.save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="module")
def hf(saved: Path):
    return AutoTokenizer.from_pretrained(saved)


@given(st.lists(st.sampled_from(WORDS)))
def test_round_trip(words: list[str]) -> None:
    ids = TASK.tokenizer.encode(" ".join(words))
    assert len(ids) == len(words)
    assert TASK.tokenizer.decode(ids) == " ".join(words)
    ended = TASK.tokenizer.encode(" ".join([*words, "."]))
    assert ended == [*ids, *TASK.tokenizer.eos_token_ids]
    assert TASK.tokenizer.decode(ended) == " ".join(words)


def test_every_word_has_an_id_of_its_own() -> None:
    ids = TASK.tokenizer.encode(" ".join([*WORDS, "."]))
    assert len(set(ids)) == len(ids) == 75
    assert max(ids) + 1 == TASK.tokenizer.vocabulary_size == 77


def test_transformers_agrees_with_what_was_saved(saved: Path, hf) -> None:
    ours = DirectoryTokenizer(saved)
    assert ours.eos_token_ids == TASK.tokenizer.eos_token_ids == (hf.eos_token_id,)
    assert len(hf) == ours.vocabulary_size == TASK.tokenizer.vocabulary_size
    for demonstration in TASK.demonstrations("textbook", 0, 64):
        ids = demonstration.input_ids.tolist()
        text = TASK.tokenizer.decode(ids)
        for tokenizer in (ours, hf, TASK.tokenizer):
            assert tokenizer.encode(f"{text} .") == ids
        assert ours.decode(ids) == hf.decode(ids, skip_special_tokens=True) == text


def test_padding_is_not_shown(saved: Path) -> None:
    for tokenizer in (TASK.tokenizer, DirectoryTokenizer(saved)):
        assert tokenizer.decode([0, 0, *tokenizer.encode("! b .")]) == "! b"


def test_an_end_that_is_no_word_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="eos is 'end': expected one of the words"):
        WordTokenizer(["a"], eos="end")


def test_saving_copies_what_was_loaded(saved: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(saved, source)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (source / "model.safetensors").write_text("not ours to copy")
    DirectoryTokenizer(source).save_pretrained(str(tmp_path / "copy"))
    names = {file.name for file in (tmp_path / "copy").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert DirectoryTokenizer(tmp_path / "copy").eos_token_ids == (2, 5)
    DirectoryTokenizer(source).save_pretrained(str(source))  # onto itself


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [5, 2]}, {"eos_token_id": 9}, (2, 5)),
        ({}, {"eos_token_id": 9}, (2, 9)),
        ({"eos_token_id": None}, {}, (2,)),
    ],
)
def test_a_response_may_end_in_several_ways(
    saved: Path, tmp_path: Path, generation, config, expected
) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert DirectoryTokenizer(tmp_path).eos_token_ids == expected


def test_the_chat_template_is_transformers_own(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    with pytest.raises(InvalidInputError, match="has no chat template"):
        DirectoryTokenizer(tmp_path).chat([{"role": "user", "content": "a"}])
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = DirectoryTokenizer(tmp_path)
    messages = [{"role": "user", "content": "a > b"}]
    assert tokenizer.chat(messages) == "<user>a > b<assistant>"
    assert tokenizer.chat(messages, open_answer=False) == "<user>a > b"


def test_bad_directories_are_refused_in_a_sentence(saved: Path, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            DirectoryTokenizer(tmp_path / "model")

    refused("model directory .* does not exist")
    model = tmp_path / "model"
    model.mkdir()
    refused("has no tokenizer: expected a file tokenizer.json")
    (model / "tokenizer.json").write_text("{")
    refused("tokenizer.json is not a tokenizer")
    shutil.copy(saved / "tokenizer.json", model)
    refused("names no end-of-sequence token")
    (model / "tokenizer_config.json").write_text("{")
    refused("tokenizer_config.json is not JSON")
