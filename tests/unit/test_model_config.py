import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from k15core.errors import InvalidInputError
from k15core.models.config import Llama3Scaling, ModelConfig, check_directory
from k15core.models.create import new_model
from k15core.models.weights import load_model, save_model

QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "eos_token_id": [3, 1],
}


class Tokens:
    eos_token_ids = (1,)

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))

    def save_pretrained(self, directory: str) -> None:
        Path(directory, "tokenizer.json").write_text("{}")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(new_model(QWEN3, seed=0), tmp_path, tokenizer=Tokens())
    return tmp_path


def edit(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def test_a_complete_directory(directory: Path) -> None:
    config = check_directory(directory)
    assert config.eos_token_ids == (3, 1)
    assert config.source["architectures"] == ["Qwen3ForCausalLM"]
    (directory / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert check_directory(directory).eos_token_ids == (7,)


def test_layouts_of_rope() -> None:
    old = {**QWEN3, "rope_theta": 5e5, "rope_scaling": None}
    new = {**QWEN3, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert ModelConfig.from_dict(old) == ModelConfig.from_dict(new)
    scaling = {
        "type": "llama3",
        "factor": 32,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 8192,
    }
    read = ModelConfig.from_dict({**old, "rope_scaling": scaling})
    assert read.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    assert read.rope_theta == 5e5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type = 'gemma3', expected one of llama, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu', expected silu"),
        ({"use_sliding_window": True}, "use_sliding_window = True, expected false"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type = 'yarn', expected default or llama3"),
        ({"rope_scaling": {"type": "llama3"}}, r"rope_parameters\['factor'\] = None, expected"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5, expected 1.0"),
        ({"hidden_size": ...}, "hidden_size = None, expected a positive integer"),
        ({"hidden_size": "16"}, "hidden_size = '16', expected a positive integer"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "expected a divisor of 3 heads"),
        ({"head_dim": 7}, "head_dim = 7, expected an even number"),
    ],
)
def test_what_is_refused(directory: Path, changes: dict[str, object], message: str) -> None:
    edit(directory, **changes)
    with pytest.raises(InvalidInputError, match=message) as error:
        check_directory(directory)
    assert str(directory) in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "no config.json, expected a Hugging Face model directory"),
        ("model.safetensors", "no weights, expected one of model.safetensors"),
        ("tokenizer.json", "no tokenizer, expected one of tokenizer.json"),
    ],
)
def test_a_missing_file(directory: Path, name: str, message: str) -> None:
    (directory / name).unlink()
    with pytest.raises(InvalidInputError, match=message) as error:
        check_directory(directory)
    assert str(directory) in str(error.value)


def test_broken_files(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InvalidInputError, match="not a safetensors file"):
        load_model(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(InvalidInputError, match=r"no weights, expected model\.safetensors or"):
        load_model(directory)
    (directory / "config.json").write_text("[]")
    with pytest.raises(InvalidInputError, match="expected a JSON object"):
        load_model(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(InvalidInputError, match="not JSON"):
        load_model(directory)


def test_weights_must_fit(directory: Path) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    wrong = weights["model.norm.weight"][:3].clone()
    for changes, message in (
        ({"model.norm.weight": wrong}, r"has shape \(3,\), expected \(16,\)"),
        ({"extra.weight": wrong}, "parameter extra.weight is not one of qwen3"),
    ):
        save_file({**weights, **changes}, path)
        with pytest.raises(InvalidInputError, match=message):
            load_model(directory)
    del weights["model.norm.weight"]
    save_file(weights, path)
    with pytest.raises(InvalidInputError, match=r"no parameter model\.norm\.weight"):
        load_model(directory)


def test_shards(directory: Path) -> None:
    want = load_model(directory)
    names = list(want.state_dict())
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: want.state_dict()[name] for name in part}, directory / file)
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    got = load_model(check_directory(directory) and directory)
    assert all(torch.equal(got.state_dict()[name], want.state_dict()[name]) for name in names)
    (directory / "b.safetensors").unlink()
    with pytest.raises(InvalidInputError, match=r"no b\.safetensors, though model\."):
        load_model(directory)


def test_a_new_model_is_a_function_of_its_seed() -> None:
    a, b, c = (new_model(QWEN3, seed=s, embedding_std=1.0, qk_norm_gain=2.0) for s in (1, 1, 2))
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(a.embedding, c.embedding)
    assert a.get_parameter("model.layers.1.self_attn.q_norm.weight").eq(2.0).all()
    assert 0.8 < float(a.embedding.detach().std()) < 1.2
    o = a.get_parameter("model.layers.0.self_attn.o_proj.weight")
    assert 0.8 < float(o.detach().std()) * 4 * 2 < 1.2
