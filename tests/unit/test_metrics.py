"""metrics.jsonl: what is written can be read, and a crash costs at most the line being written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from k15core.errors import InvalidInputError, StorageError
from k15core.report.metrics import MetricsWriter, read_metrics
from k15core.report.tensorboard import scalars


def a_run(directory: Path, iterations: int, *, tensorboard: bool = False) -> None:
    with MetricsWriter(directory, tensorboard=tensorboard) as metrics:
        metrics.write("run", name="r", seed=3, iterations=iterations, recipe={"a": 1})
        metrics.write("sft", stage="textbook", step=10, steps=10, loss=1.5, probe={"misread": 0.5})
        metrics.write("evaluation", iteration=0, label="held_out", pass_rate=0.25)
        for i in range(1, iterations + 1):
            metrics.write("iteration", iteration=i, pass_rate=i / 100, phase_seconds={"train": 1})
            metrics.write("event", iteration=i, text=f"event {i}")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write("run", name="π", seed=np.int64(7))
        metrics.write(
            "iteration",
            iteration=np.int32(1),
            pass_rate=np.float32(0.5),
            loss=float("nan"),
            kl=np.float64("inf"),
            length_quantiles=np.array([1.0, 2.0, np.nan]),
            segments_histogram={1: np.int64(3)},
            skipped=np.bool_(True),
            path=Path("x"),
            text="a lone \ud800 surrogate\nand a line feed",
        )
    raw = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(raw) == 2
    assert raw[0].startswith('{"kind": "run"')
    metrics_read = read_metrics(tmp_path)
    assert metrics_read.run["name"] == "π"
    (record,) = metrics_read.iterations
    assert record.pop("seconds") >= 0
    assert record == {
        "kind": "iteration",
        "iteration": 1,
        "pass_rate": 0.5,
        "loss": None,
        "kl": None,
        "length_quantiles": [1.0, 2.0, None],
        "segments_histogram": {"1": 3},
        "skipped": True,
        "path": "x",
        "text": "a lone \ud800 surrogate\nand a line feed",
    }


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("iterations", {"iteration": 1}, r"kind is 'iterations'; expected one of run, sft"),
        ("iteration", {}, r"iteration of a line of kind 'iteration' is None; expected int"),
        ("iteration", {"iteration": "1"}, r"is '1'; expected int"),
        ("event", {"iteration": True, "text": ""}, r"is True; expected int"),
        ("event", {"iteration": 1, "text": "", "x": {"y": [object()]}}, r"x\.y\[0\] is a object"),
    ],
)
def test_a_wrong_line_is_refused_and_not_written(
    tmp_path: Path, kind: str, fields: dict[str, object], message: str
) -> None:
    with (
        MetricsWriter(tmp_path, tensorboard=False) as metrics,
        pytest.raises(InvalidInputError, match=message),
    ):
        metrics.write(kind, **fields)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_rewind_drops_later_iterations_and_goes_on(tmp_path: Path) -> None:
    a_run(tmp_path, 5)
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.rewind(3)
        metrics.write("iteration", iteration=4, pass_rate=0.9)
    read = read_metrics(tmp_path)
    assert [r["pass_rate"] for r in read.iterations] == [0.01, 0.02, 0.03, 0.9]
    assert [r["text"] for r in read.events] == ["event 1", "event 2", "event 3"]
    assert len(read.sft) == len(read.evaluations) == 1


def test_rewind_before_sft_keeps_the_run_only(tmp_path: Path) -> None:
    a_run(tmp_path, 2)
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.rewind(-1)
    read = read_metrics(tmp_path)
    assert read.run["seed"] == 3
    assert read.sft == read.iterations == read.evaluations == read.events == []


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    a_run(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    last = len(whole.splitlines()[-1]) + 1
    path.write_bytes(whole[:-cut])
    assert len(read_metrics(tmp_path).events) == 2
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        assert path.read_bytes() == whole[:-last]
        metrics.write("event", iteration=3, text="again")
    assert [r["text"] for r in read_metrics(tmp_path).events] == ["event 1", "event 2", "again"]


def test_what_write_returned_from_survives_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys; from k15core.report.metrics import MetricsWriter\n"
        "m = MetricsWriter(sys.argv[1], tensorboard=False); m.write('run', name='r', seed=0)\n"
        "for i in range(10**6):\n"
        "    m.write('iteration', iteration=i); print(i, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    said += [int(line) for line in process.communicate()[0].splitlines(True) if line[-1] == "\n"]
    found = [r["iteration"] for r in read_metrics(tmp_path).iterations]
    assert found[: len(said)] == said
    assert len(found) <= len(said) + 1


def test_seconds_go_on_after_a_resume(tmp_path: Path) -> None:
    now = 5000.0
    with MetricsWriter(tmp_path, tensorboard=False, clock=lambda: now) as metrics:
        metrics.write("run", name="r", seed=0)
        now += 1000
        metrics.write("event", iteration=1, text="late", seconds=3.0)
    now = 77.0
    with MetricsWriter(tmp_path, tensorboard=False, clock=lambda: now) as metrics:
        now += 10
        metrics.write("event", iteration=2, text="later")
        assert read_metrics(tmp_path).seconds() == 1010.0
        metrics.rewind(1)
        now += 1
        metrics.write("event", iteration=2, text="again")
    assert [r["seconds"] for r in read_metrics(tmp_path).events] == [1000.0, 1001.0]


def test_the_later_of_two_lines_counts(tmp_path: Path) -> None:
    a_run(tmp_path, 2)
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write("iteration", iteration=1, pass_rate=0.7)
        metrics.write("evaluation", iteration=0, label="held_out", pass_rate=0.8)
        metrics.write("evaluation", iteration=0, label="greedy", pass_rate=0.1)
        for text in ("a", "b"):
            metrics.write("transcript", iteration=0, when="before", prompt_id=1, prompt=text)
            metrics.write("transcript", iteration=1, when="during", prompt_id=1, prompt=text)
    read = read_metrics(tmp_path)
    assert sorted(r["prompt"] for r in read.transcripts) == ["a", "b", "b"]
    assert [r["pass_rate"] for r in read.iterations] == [0.7, 0.02]
    assert [r["pass_rate"] for r in read.evaluated()] == [0.8]
    assert [r["pass_rate"] for r in read.evaluated("greedy")] == [0.1]


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such run directory"):
        read_metrics(tmp_path / "absent")
    with pytest.raises(InvalidInputError, match=r"holds no metrics\.jsonl"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InvalidInputError, match="the run never began"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{half", r"line 2: not JSON"),
        ("\xff\xfe", r"line 2: not JSON"),
        ("[1]", r"line 2: not a JSON object"),
        ('{"kind": "sft", "stage": "x"}', r"line 2: step of a line of kind 'sft' is None"),
        ('{"kind": ["run"]}', r"line 2: kind is \['run'\]; expected one of"),
    ],
)
def test_a_broken_line_is_named_by_number(tmp_path: Path, line: str, message: str) -> None:
    first = json.dumps({"kind": "run", "name": "r", "seed": 0})
    (tmp_path / "metrics.jsonl").write_bytes(f"{first}\n{line}\n".encode("latin-1"))
    with pytest.raises(InvalidInputError, match=message):
        read_metrics(tmp_path)


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write metrics there"):
        MetricsWriter(Path("/proc/self/nowhere"))
    resource = pytest.importorskip("resource")
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write("run", name="r", seed=0)
        size = (tmp_path / "metrics.jsonl").stat().st_size
        old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        old_action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, old_limit[1]))
        try:
            with pytest.raises(StorageError, match="cannot append a line"):
                metrics.write("event", iteration=1, text="x" * 1000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
            signal.signal(signal.SIGXFSZ, old_action)
        metrics.write("event", iteration=1, text="after")
    assert [r["text"] for r in read_metrics(tmp_path).events] == ["after"]


def points(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars in a directory of event files, read without TensorBoard."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
            at += 16 + length
    return found


def test_tensorboard_has_the_same_scalars_and_follows_a_rewind(tmp_path: Path) -> None:
    a_run(tmp_path, 4, tensorboard=True)
    found = points(tmp_path / "tensorboard")
    assert found["sft/textbook/loss"] == [(10, 1.5)]
    assert found["sft/textbook/probe/misread"] == [(10, 0.5)]
    assert found["held_out/pass_rate"] == [(0, 0.25)]
    assert [step for step, _ in found["rollout/pass_rate"]] == [1, 2, 3, 4]
    assert found["time/train"] == [(i, 1.0) for i in (1, 2, 3, 4)]
    with MetricsWriter(tmp_path) as metrics:
        metrics.rewind(2)
        metrics.write("iteration", iteration=3, pass_rate=0.5)
    assert points(tmp_path / "tensorboard")["rollout/pass_rate"] == [
        (1, pytest.approx(0.01)),
        (2, pytest.approx(0.02)),
        (3, 0.5),
    ]


def test_tags_of_an_evaluation_and_an_iteration() -> None:
    step, tags = scalars(
        {
            "kind": "evaluation",
            "iteration": 5,
            "label": "held_out",
            "pass_rate": 0.5,
            "mean_length": None,
            "by_difficulty": {"3": {"pass_rate": 0.25}},
            "behaviour": {"caught": 0.75},
        }
    )
    assert step == 5
    assert tags == {
        "held_out/pass_rate": 0.5,
        "held_out/caught": 0.75,
        "held_out_by_difficulty/3": 0.25,
    }
    _, tags = scalars({"kind": "iteration", "iteration": 5, "kl": 0.5, "resumed": 3, "seconds": 9})
    assert tags == {"train/kl": 0.5, "rollout/resumed": 3.0}
