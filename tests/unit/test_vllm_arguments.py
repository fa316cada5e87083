"""With what vLLM is started: our defaults, the caller's arguments over them, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from k15core.deploy.vllm.arguments import command_line, engine_arguments, set_environment
from k15core.errors import InvalidInputError

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
}
GIVEN = {"max_total_tokens": 256, "slots": 16, "device": "cpu", "load": "dummy"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_the_callers_arguments_lie_over_ours(model: Path) -> None:
    ours = engine_arguments(model, **GIVEN)
    assert (ours["max_model_len"], ours["max_num_seqs"], ours["dtype"]) == (256, 16, "float32")
    assert ours["load_format"] == "dummy"
    assert ours["kv_cache_memory_bytes"] == (16 * 8 + 1) * 32 * 2 * 4 * 3 * 32
    theirs = engine_arguments(
        model, **GIVEN, given={"dtype": "bfloat16", "max_model_len": 400, "anything": 3}
    )
    assert theirs == {**ours, "dtype": "bfloat16", "max_model_len": 400, "anything": 3}
    gpu = engine_arguments(model, **{**GIVEN, "device": "cuda", "load": "directory"})
    assert gpu["enable_sleep_mode"] is True
    assert gpu["load_format"] == "auto"
    assert "dtype" not in gpu


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 0}, "slots = 0"),
        ({"max_total_tokens": 513}, "max_position_embeddings = 512"),
        ({"load": "disk"}, "load = 'disk'"),
        ({"given": {"logprobs_mode": "raw_logprobs"}}, "logprobs_mode = 'raw_logprobs'"),
        ({"given": {"max_model_len": 100}}, "max_model_len = 100"),
    ],
)
def test_what_the_engines_cannot_work_with_is_refused(
    model: Path, changes: dict, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        engine_arguments(model, **{**GIVEN, **changes})


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"config\.json cannot be read"):
        engine_arguments(tmp_path, **GIVEN)
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(InvalidInputError, match="num_attention_heads"):
        engine_arguments(tmp_path, **GIVEN)


def test_arguments_as_a_command_line() -> None:
    given = {"max_model_len": 9, "enforce_eager": True, "b_c": False, "d": None, "e": {"f": [1]}}
    assert command_line(given) == [
        "--max-model-len", "9", "--enforce-eager", "--no-b-c", "--e", '{"f": [1]}',
    ]  # fmt: skip


def test_the_callers_environment_wins() -> None:
    environment = {"OMP_NUM_THREADS": "7"}
    set_environment("cpu", environment)
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["TORCHDYNAMO_DISABLE"] == "1"
