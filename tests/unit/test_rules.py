"""Rewards by rule: on made-up cases, and on real model outputs with their labels."""

import json
import os
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k15core.errors import InvalidInputError
from k15core.rewards import make_reward
from k15core.rewards.extract import last_boxed, last_code_block, last_number, to_number
from k15core.types import Prompt

HERE = Path(__file__).parents[1] / "data"
SHARED = Path(os.environ.get("K15_SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))
SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def prompt(answer: str) -> Prompt:
    return Prompt(7, np.zeros(0, np.int32), answer)


def rows(excerpt: str, whole: str) -> list:
    missing = not (SHARED / whole).is_file()
    mark = pytest.mark.skipif(missing, reason=f"{whole} is not in ../shared/data")
    return [HERE / excerpt, pytest.param(SHARED / whole, marks=mark)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7.", "7"),
        ("#### 1,234", "1234"),
        ("$1,234,567.50 in all", "1234567.50"),
        ("from 5-3", "3"),
        ("it is -3", "-3"),
        ("it is -$3.5", "-3.5"),
        ("(5)-3", "3"),
        (".5", "0.5"),
        ("1,2", "2"),
        ("<<2*9=18>>18", "18"),
        ("x2", "2"),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.text("abc =(", max_size=8))
def test_a_written_number_is_found(number: Decimal, before: str) -> None:
    written = f"{number:,f}"
    assert to_number(written) == number
    assert last_number(f"1 {before} {written}. So it is.") == number


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x : {y} \right.}", r"\left\{ x : {y} \right."),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\fbox{3}", "3"),
        (r"\boxed 5", "5"),
        (r"\boxed", None),
        ("boxed{4}", None),
    ],
)
def test_last_boxed(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("print(1)", "print(1)"),
        ("so:\n```python\nx = 1\nprint(x)\n```\nthat", "x = 1\nprint(x)"),
        ("```\na\n```\n~~~ c\nb\n~~~", "b"),
        ("````\n```\ninner\n```\n````", "```\ninner\n```"),
        ("```\na\n```\n```\nb", None),
        ("```\na\n~~~\nb\n```", "a\n~~~\nb"),
        ("```a``` is no fence", "```a``` is no fence"),
        ("```\n```", ""),
    ],
)
def test_last_code_block(text: str, code: str | None) -> None:
    assert last_code_block(text) == code


nested = st.recursive(
    st.text("xy+1 ", max_size=4),
    lambda part: st.lists(st.one_of(part, part.map(lambda p: "{" + p + "}")), max_size=3).map(
        "".join
    ),
)


@given(nested, st.text("ab{} ", max_size=6))
def test_balanced_braces_come_back_whole(inside: str, before: str) -> None:
    assert last_boxed(before + r"\boxed{" + inside + "} and } so") == inside.strip()


@pytest.mark.parametrize(
    ("kind", "settings", "answer", "response", "score"),
    [
        ("number", {}, "18", "A: 18.0", 1),
        ("number", {}, "1,000", "It is $1000.", 1),
        ("number", {}, "18", "18 or 19", 0),
        ("number", {}, "18", "eighteen", 0),
        ("number", {"marker": "####"}, "18", "#### 18", 1),
        ("number", {"marker": "####"}, "18", "18", 0),
        ("number", {"marker": "####"}, "18", "18 ####", 0),
        ("number", {"tolerance": 0.01}, "100", "99.5", 1),
        ("number", {"tolerance": 0.01}, "-100", "-98", 0),
        ("boxed", {}, r"\frac{1}{2}", r"\boxed{\dfrac{1}{2}}", 1),
        ("boxed", {}, r"\frac12", r"\boxed{\frac{1}{2}}", 1),
        ("boxed", {}, "18", r"\boxed{18.00}", 1),
        ("boxed", {}, r"\text{east}", r"\boxed{east}", 1),
        ("boxed", {}, "(1, 2)", r"\boxed{\left(1,2\right)}", 1),
        ("boxed", {}, "18", "18", 0),
        ("boxed", {}, "x", r"\boxed{y}", 0),
        ("ending", {}, "b", "3 a>b ! b .", 1),
        ("ending", {}, "b", "! b", 1),
        ("ending", {}, "b", "! b ! c", 0),
        ("ending", {}, "b", "!! b", 0),
        ("ending", {}, "b", "b", 0),
        ("ending", {}, "b", "", 0),
        (
            "ending",
            {"template": "answer is {answer}", "stop": None},
            "b c",
            "The answer is  b c",
            1,
        ),
        ("ending", {"stop": None}, "b", "! b .", 0),
    ],
)
async def test_scores(kind, settings, answer, response, score) -> None:
    assert await make_reward(kind, **settings).score(prompt(answer), response) == score


async def test_an_answer_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="answer of prompt 7 is 'x': expected a number"):
        await make_reward("number").score(prompt("x"), "4")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("ending", {"template": "!"}, "template is '!': expected it to hold {answer}"),
        ("number", {"tolerance": 2}, "tolerance is 2: expected 0 to 1"),
        ("guess", {}, "reward kind is 'guess': expected one of ending, number, boxed, math"),
        ("boxed", {"x": 1}, "reward 'boxed' has no setting 'x': it has none"),
    ],
)
def test_bad_settings_are_named(kind, settings, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_reward(kind, **settings)


@pytest.mark.parametrize("marker", [None, "A:"])
@pytest.mark.parametrize(
    "file", rows("gsm8k_model_solutions.jsonl", "gsm8k/example_model_solutions.jsonl")
)
async def test_agreement_with_the_labels_of_real_gsm8k_solutions(file: Path, marker) -> None:
    reward = make_reward("number", marker=marker)
    for line in file.read_text().splitlines():
        row = json.loads(line)
        expected = prompt(row["ground_truth"].rpartition("A:")[2])
        for solver in SOLVERS:
            score = await reward.score(expected, row[solver]["solution"])
            assert score == row[solver]["is_correct"], row[solver]["solution"]


@pytest.mark.parametrize("file", rows("math_cot.jsonl", "math/math_cot_100.jsonl"))
async def test_agreement_with_the_scores_of_real_math_responses(file: Path) -> None:
    reward = make_reward("boxed")
    for line in file.read_text().splitlines():
        row = json.loads(line)
        for response, score in zip(row["response"], row["score"], strict=True):
            assert await reward.score(prompt(row["gt"]), response) == score, response
