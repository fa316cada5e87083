"""The command line on bad input: one sentence, exit code 2, nothing lost. Real runs, tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from k15core.cli import main

ROOT = Path(__file__).parents[2]
DOORS = str(ROOT / "recipes" / "doors.yaml")
TINY = [
    "threads=1",
    "task={kind: doors, pool: 64, held_out_per_difficulty: 2}",
    "sft=null",
    "rollout={engine: {kind: embedded, slots: 32}, segment_budget: 9, max_response_tokens: 16}",
    "train={iterations: 3, prompts: 4, responses: 2, mini_batches: 2, learning_rate: 1e-3}",
]


def tiny(*more: str) -> list[str]:
    return [word for setting in [*TINY, *more] for word in ("--set", setting)]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which a command is refused."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


def test_dry_run_prints_a_recipe_that_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", DOORS, "--dry-run", "--seed", "3", "--set", "train.iterations=9"]) == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(capsys.readouterr().out)
    assert main(["train", str(resolved), "--dry-run"]) == 0
    again = capsys.readouterr().out
    assert again == resolved.read_text()
    assert "seed: 3" in again
    assert "iterations: 9" in again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["trian.iterations=3"], "trian = {'iterations': 3}: unknown key"),
        (["train.iterations=soon"], "train.iterations = 'soon': input should be a valid integer"),
        (["task.kind=windows"], "task kind is 'windows': expected one of doors, jsonl"),
        (["task.pol=3"], "task doors: pol = 3: unknown key"),
        (["reward.kind=applause"], "reward kind is 'applause': expected one of"),
        (["rollout.engine.kind=steam"], "engine kind is 'steam': expected one of"),
        (["rollout.engine.slots=0"], "slots = 0: expected"),
        (["rollout.repetition={min_repeat: 3}"], "min_repeat"),
        (["sampling={rule: luck}"], "rule"),
        (["train.prompts=100000"], "train.prompts = 100000: expected at most"),
        (["evaluation.prompts=100000"], "evaluation.prompts = 100000: expected at most 560"),
        (["model={directory: /nowhere}"], "/nowhere"),
        (["model.new.model_type=mamba"], "mamba"),
        (["model.init.embeding_std=1.0"], "embeding_std = 1.0: unknown key"),
        (["algorithm.tau=-1.0"], "algorithm.tau = -1.0"),
        (["device=quantum"], "device"),
    ],
)
def test_a_bad_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: list[str], message: str
) -> None:
    words = [word for change in changes for word in ("--set", change)]
    assert message in refusal(capsys, "train", DOORS, "--runs", str(tmp_path), *words)
    assert not (tmp_path / "doors").exists(), "a refused run leaves no directory behind"


def test_files_that_are_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert "expected a YAML file" in refusal(capsys, "train", nowhere)
    assert "recipe.yaml" in refusal(capsys, "train", "--resume", nowhere)
    assert nowhere in refusal(capsys, "report", nowhere)
    assert nowhere in refusal(capsys, "compare", nowhere, nowhere)
    assert nowhere in refusal(capsys, "model", "import", nowhere, str(tmp_path / "out"))
    assert "--resume" in refusal(capsys, "train")


def test_a_model_directory_without_a_tokenizer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    said = refusal(
        capsys, "train", DOORS, "--runs", str(tmp_path),
        "--set", f"task={{kind: jsonl, path: {prompts}}}",
        "--set", f"model={{directory: {tmp_path / 'model'}}}",
    )  # fmt: skip
    assert "tokenizer" in said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", DOORS, "--runs", str(runs), "--name", "tiny", *tiny()]) == 0
    return runs / "tiny"


def test_a_run_leaves_what_the_docs_say(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for name in (
        "held_out_before", "held_out_after", "length_sft", "length_peak", "length_end",
        "caught_peak", "seconds", "seed", "tokens_per_second",
    ):  # fmt: skip
        assert name in summary
    assert "<html" in (finished / "report.html").read_text()
    assert list((finished / "tensorboard").iterdir())


def test_the_trained_model_is_a_hugging_face_directory(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    ids = tokenizer("a>b | 1 a", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, 4, model.config.vocab_size)


def test_a_finished_run_resumes_to_its_report(finished: Path) -> None:
    before = (finished / "rollouts.jsonl").read_bytes()
    assert main(["train", "--resume", str(finished)]) == 0
    assert (finished / "rollouts.jsonl").read_bytes() == before


def test_a_store_of_another_format_is_refused_and_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", DOORS, "--runs", str(tmp_path), "--name", "old", *tiny()]) == 0
    capsys.readouterr()
    log = next((tmp_path / "old" / "store").glob("*.log"))
    data = bytearray(log.read_bytes())
    data[8] ^= 0x7F
    log.write_bytes(data)
    said = refusal(capsys, "train", "--resume", str(tmp_path / "old"))
    assert log.name in said
    assert log.read_bytes() == data


@pytest.mark.skipif(os.geteuid() != 0, reason="it mounts a small tmpfs: run the tests as root")
def test_a_full_disk(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; from k15core.cli import main\n"
        "mount = 'mount -t tmpfs -o size=8m k15'.split()\n"
        "subprocess.run([*mount, sys.argv[1]], check=True)\n"
        "sys.exit(main(['train', *sys.argv[2:], '--runs', sys.argv[1]]))"
    )
    # In a mount namespace of its own, so that nothing stays mounted.
    ran = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", script, str(tmp_path), DOORS, *tiny()],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in ran.stderr or "permission denied" in ran.stderr:
        pytest.skip("root may not mount here: it needs CAP_SYS_ADMIN (docker run --privileged)")
    assert ran.returncode == 2, ran.stderr
    assert "No space left on device" in ran.stderr
    assert "Traceback" not in ran.stderr
