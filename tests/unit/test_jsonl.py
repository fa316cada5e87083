"""Prompt files: fields, held-out split, demonstrations, broken lines; GSM8K as it is published."""

import json
import os
from pathlib import Path

import pytest
from byte_tokenizer import save_byte_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k15core.errors import InvalidInputError
from k15core.rewards import make_reward
from k15core.tasks import make_task
from k15core.tasks.jsonl import JsonlTask

GSM8K = Path(__file__).parents[1] / "data" / "gsm8k_train.jsonl"
SHARED = Path(os.environ.get("K15_SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))
AS_GSM8K = {
    "prompt_field": "question",
    "answer_pattern": r"####\s*(.+)",
    "response_field": "answer",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def write(tmp_path: Path):
    def write(rows: list, name: str = "prompts.jsonl") -> Path:
        file = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("\n".join(lines) + "\n")
        return file

    return write


def text(task: JsonlTask, prompt) -> str:
    return task.tokenizer.decode(prompt.input_ids.tolist())


def test_fields_as_they_are_named_by_default(model: Path, write) -> None:
    rows = [
        {"prompt": "1 + 1?", "answer": "2", "tags": ["sum"], "difficulty": 1},
        {"prompt": "é?", "answer": 2.5},
    ]
    task = make_task("jsonl", path=write(rows), model=model, held_out_share=0)
    first, second = task.prompts
    assert (text(task, first), first.answer, first.tags, first.difficulty) == (
        "1 + 1?",
        "2",
        ("sum",),
        1.0,
    )
    assert (text(task, second), second.answer, second.tags, second.difficulty) == (
        "é?",
        "2.5",
        (),
        None,
    )
    assert [p.prompt_id for p in task.prompts] == [0, 1]
    assert list(task.held_out) == []
    assert task.behaviour(first, "2") == {}
    assert task.forced_prefix(first) is None
    with pytest.raises(InvalidInputError, match="no demonstrations: set response_field"):
        task.demonstrations("sft", 0, 1)


def test_an_answer_that_is_an_object_is_its_json(model: Path, write) -> None:
    answer = {"cases": [{"stdin": "é", "stdout": "2"}]}
    task = make_task(
        "jsonl", path=write([{"prompt": "?", "answer": answer}]), model=model, held_out_share=0
    )
    assert json.loads(task.prompts[0].answer) == answer


def test_gsm8k_with_template_and_chat(model: Path) -> None:
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    task = JsonlTask(
        GSM8K,
        model,
        **AS_GSM8K,
        response_remove=r"<<[^>]*>>",
        chat=True,
        system="Be brief.",
        template="{prompt} End with ####.",
        held_out_share=0,
    )
    decode = task.tokenizer._backend.decode
    for prompt, row in zip(task.prompts, rows, strict=True):
        assert prompt.answer == row["answer"].split("#### ")[1]
        assert decode(prompt.input_ids.tolist(), skip_special_tokens=False) == (
            "<|start|>system\nBe brief.<|end|>\n<|start|>user\n"
            f"{row['question']} End with ####.<|end|>\n<|start|>assistant\n"
        )
    solutions = {row["question"]: row["answer"] for row in rows}
    for shown in task.demonstrations("sft", 0, len(rows)):
        assert shown.input_ids[-1] == task.tokenizer.eos_token_ids[0]
        asked = text(task, task.prompts[0].__class__(0, shown.input_ids[: shown.prompt_length], ""))
        question = asked.split("user\n")[1].split(" End with")[0]
        response = task.tokenizer.decode(shown.input_ids[shown.prompt_length :].tolist())
        assert "<<" not in response
        assert response.split("#### ")[1] == solutions[question].split("#### ")[1]


async def test_the_demonstrations_of_gsm8k_earn_the_reward(model: Path) -> None:
    task = JsonlTask(GSM8K, model, **AS_GSM8K, held_out_share=0)
    answers = {text(task, p): p for p in task.prompts}
    for kind, how in (("number", {}), ("number", {"marker": "####"}), ("math", {})):
        reward = make_reward(kind, **how)
        for shown in task.demonstrations("sft", 3, 8):
            asked, answered = (
                task.tokenizer.decode(part.tolist())
                for part in (
                    shown.input_ids[: shown.prompt_length],
                    shown.input_ids[shown.prompt_length :],
                )
            )
            assert await reward.score(answers[asked], answered) == 1


@given(st.integers(0, 10_000), st.floats(0.05, 0.6), st.permutations(range(60)))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_split_is_seeded_disjoint_and_blind_to_order(model, write, seed, share, order) -> None:
    rows = [{"prompt": f"problem {i % 40}", "answer": str(i)} for i in range(60)]

    def split(rows: list) -> tuple[set[str], set[str]]:
        task = JsonlTask(write(rows), model, seed=seed, held_out_share=share)
        sides = [text(task, p) for p in task.prompts], [text(task, p) for p in task.held_out]
        assert len(sides[0]) + len(sides[1]) == 60
        return set(sides[0]), set(sides[1])

    training, testing = split(rows)
    assert not training & testing, "a text that stands in the file twice is on one side"
    assert split([rows[i] for i in order]) == (training, testing)


def test_the_share_is_about_what_was_asked_for(model: Path, write) -> None:
    rows = [{"prompt": f"problem {i}", "answer": "1"} for i in range(2000)]
    task = JsonlTask(write(rows), model, held_out_share=0.2)
    assert abs(len(task.held_out) - 400) < 4 * (2000 * 0.16) ** 0.5
    other = JsonlTask(write(rows), model, held_out_share=0.2, seed=1)
    assert [text(task, p) for p in task.held_out] != [text(other, p) for p in other.held_out]


def test_a_held_out_file_drops_its_problems_from_training(model: Path, write) -> None:
    rows = [{"prompt": f"problem {i}", "answer": "1"} for i in range(10)]
    train, test = write(rows), write([*rows[7:], {"prompt": "new", "answer": "1"}], "test.jsonl")
    task = JsonlTask(train, model, held_out_path=test)
    assert [text(task, p) for p in task.prompts] == [f"problem {i}" for i in range(7)]
    assert [text(task, p) for p in task.held_out] == ["problem 7", "problem 8", "problem 9", "new"]
    assert [p.prompt_id for p in task.held_out] == [7, 8, 9, 10]
    short = JsonlTask(train, model, held_out_path=test, limit=2, held_out_limit=1)
    assert [len(short.prompts), len(short.held_out)] == [2, 1]


def test_long_prompts_and_demonstrations_are_left_out(model: Path, write) -> None:
    rows = [{"prompt": "p" * n, "answer": "1", "response": "r" * n} for n in range(1, 11)]
    task = JsonlTask(
        write(rows),
        model,
        response_field="response",
        held_out_share=0,
        max_prompt_tokens=6,
        max_demonstration_tokens=9,
    )
    assert [len(p.input_ids) for p in task.prompts] == [1, 2, 3, 4, 5, 6]
    assert task.too_long == 4
    lengths = {len(d.input_ids) for d in task.demonstrations("sft", 0, 4)}
    assert lengths == {3, 5, 7, 9}
    with pytest.raises(InvalidInputError, match="no training prompt left: 10 problems"):
        JsonlTask(write(rows), model, held_out_share=0, max_prompt_tokens=0)


@given(st.integers(0, 50), st.integers(1, 40), st.sampled_from(["a", "b"]))
@settings(max_examples=40)
def test_demonstrations_are_a_function_of_seed_stage_and_step(model, step, n, stage) -> None:
    task, twin = (JsonlTask(GSM8K, model, **AS_GSM8K, held_out_share=0) for _ in range(2))

    def shown(task: JsonlTask, step: int, n: int) -> list[bytes]:
        return [d.input_ids.tobytes() for d in task.demonstrations(stage, step, n)]

    twin.demonstrations("c", step + 1, n)
    assert shown(task, step, n) == shown(twin, step, n)
    one_by_one = [shown(task, i, 1)[0] for i in range(step * n, step * n + n)]
    assert shown(task, step, n) == one_by_one
    whole_epoch = shown(task, step, 24)
    assert len(set(whole_epoch)) == 24, "an epoch shows every demonstration once"
    assert shown(task, step + 1, 24) != whole_epoch


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON .*: expected one object a line"),
        ("[1]", "a JSON list: expected an object"),
        ({"answer": "1"}, r"field 'prompt' is missing: expected text \(the line has answer\)"),
        ({"prompt": "a"}, "field 'answer' is missing"),
        ({"prompt": 3, "answer": "1"}, "field 'prompt' is 3: expected text"),
        ({"prompt": " ", "answer": "1"}, "field 'prompt' is ' ': expected text"),
        ({"prompt": "a", "answer": True}, "field 'answer' is True: expected text"),
        ({"prompt": "a", "answer": "1", "tags": "x"}, "field 'tags' is 'x': expected a list"),
        ({"prompt": "a", "answer": "1", "difficulty": "hard"}, "field 'difficulty' is 'hard'"),
        ('{"prompt": "a", "answer": "1", "difficulty": NaN}', "field 'difficulty' is nan"),
    ],
)
def test_a_broken_line_is_named(model: Path, write, line, message: str) -> None:
    good = {"prompt": "a", "answer": "1"}
    file = write([good, "", line, good])
    with pytest.raises(InvalidInputError, match=rf"prompts.jsonl line 3: {message}"):
        JsonlTask(file, model, held_out_share=0)
    task = JsonlTask(file, model, held_out_share=0, on_broken="skip")
    assert len(task.prompts) == 2
    assert len(task.skipped) == 1
    assert "prompts.jsonl line 3: " in task.skipped[0]


def test_bytes_that_are_no_text_are_named(model: Path, write) -> None:
    file = write([{"prompt": "a", "answer": "1"}])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b'{"prompt": "\xff"}\n')
    with pytest.raises(InvalidInputError, match=r"prompts.jsonl line 2: 'utf-8' codec"):
        JsonlTask(file, model)


def test_the_last_match_of_the_pattern_is_the_answer(model: Path, write) -> None:
    file = write([{"prompt": "q", "answer": "#### 1 no, #### 2"}])
    for pattern in (r"####\s*(\d+)", r"(?<=#### )\d+"):
        task = JsonlTask(file, model, answer_pattern=pattern, held_out_share=0)
        assert task.prompts[0].answer == "2"


def test_difficulties_can_be_counted_and_bounded(model: Path, write) -> None:
    steps = [0, 3, 1, 2]
    rows = [{"prompt": f"{n} steps", "answer": "<<1=1>>" * n + "1"} for n in steps]
    file = write([*rows, {"prompt": "labelled", "answer": "<<", "difficulty": 0.5}])
    task = JsonlTask(file, model, difficulty_pattern="<<", held_out_share=0)
    assert [p.difficulty for p in task.prompts] == [0.0, 3.0, 1.0, 2.0, 0.5]
    easy = JsonlTask(
        file, model, difficulty_pattern="<<", max_difficulty=1, held_out_path=write(rows, "test")
    )
    assert [text(easy, p) for p in easy.held_out] == ["0 steps", "1 steps"]
    assert [text(easy, p) for p in easy.prompts] == ["labelled"]
    unlabelled = JsonlTask(file, model, max_difficulty=1, held_out_share=0)
    assert len(unlabelled.prompts) == 5


def test_an_answer_without_the_pattern_is_named(model: Path, write) -> None:
    file = write([{"question": "q", "answer": "no marks"}])
    with pytest.raises(InvalidInputError, match="line 1: field 'answer' is 'no marks': expected a"):
        JsonlTask(file, model, **AS_GSM8K)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"template": "x"}, "template is 'x': expected it to hold {prompt}"),
        ({"system": "x"}, "system is set, chat is not"),
        ({"held_out_share": 1}, "held_out_share is 1: expected 0 to 1"),
        ({"on_broken": "keep"}, "on_broken is 'keep': expected refuse or skip"),
        ({"answer_pattern": "("}, r"answer_pattern is '\(': not a regular expression"),
        ({"path": "none.jsonl"}, "prompt file none.jsonl does not exist"),
        ({"model": "none"}, "model directory none does not exist"),
        ({"colour": 1}, "task 'jsonl' has no setting 'colour'"),
    ],
)
def test_bad_settings_are_named(model: Path, wrong, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_task("jsonl", **{"path": GSM8K, "model": model, **AS_GSM8K, **wrong})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(InvalidInputError, match="task 'jsonl' needs the setting 'model'"):
        make_task("jsonl", path="x")


def test_the_whole_of_gsm8k(model: Path) -> None:
    file = SHARED / "gsm8k/train.jsonl"
    if not file.is_file():
        pytest.skip("gsm8k/train.jsonl is not in ../shared/data")
    task = JsonlTask(file, model, **AS_GSM8K)
    assert len(task.prompts) + len(task.held_out) == 7473
    assert task.skipped == []
