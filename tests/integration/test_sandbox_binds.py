"""What a user shows of the host beside and on top of the root's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from oci_images import Layout, archive, shell
from sandboxes import need

from k15core.errors import InvalidInputError
from k15core.sandbox import Sandbox


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    (folder / "file").write_text("mine\n")
    (folder / "deep/file").write_text("deep\n")
    tmp_path.chmod(0o755)
    return folder


def see(binds: dict[str, str | Path], runner: str, *, writable: bool = False) -> dict[str, str]:
    need(runner)
    with Sandbox(slots=1, runner=runner, binds=binds, writable_root=writable) as sandbox:
        seen = {}
        for target in binds:
            source = f"cat {target}/file 2>/dev/null || cat {target}"
            seen[target] = sandbox.run(source, language="bash").stdout.decode()
        return seen


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("runner", ["direct", "crun", "crun-plain"])
def test_beside_in_and_over_each_other(mine: Path, runner: str, writable: bool) -> None:
    other = mine.parent / "other"
    other.mkdir()
    (other / "file").write_text("other\n")
    binds: dict[str, str | Path] = {
        "/opt/mine/deep": other,  # in what comes after it
        "/opt/mine": mine,
        "/opt/other": other,  # beside it
        "/usr/local/share": mine,  # over what is there
        "/opt/mine/file": other / "file",
    }
    assert see(binds, runner, writable=writable) == {
        "/opt/mine/deep": "other\n",
        "/opt/mine": "other\n",
        "/opt/other": "other\n",
        "/usr/local/share": "mine\n",
        "/opt/mine/file": "other\n",
    }


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/usr/local/mine", "a path that /usr has, which is shown read-only, or one outside"),
        ("/bin/mine", "a path that /usr has"),
        ("/tmp/mine", "a path outside of /tmp, which every run has anew"),
        ("/proc/mine", "a path outside of /proc"),
        ("/dev", "a path outside of /dev"),
        ("/usr/bin/env", "a path where a directory can be, as a file is there"),
    ],
)
def test_a_place_that_cannot_be_is_refused(mine: Path, target: str, expected: str) -> None:
    need()
    with pytest.raises(InvalidInputError) as refused:
        Sandbox(slots=1, binds={target: mine})
    assert str(refused.value).startswith(f"binds = {target}: expected {expected}")


def test_beside_what_an_image_has(mine: Path, tmp_path: Path) -> None:
    need()
    layout = Layout(tmp_path / "layout")
    layout.image([archive(shell() | {"opt/rust/file": b"the image's\n"})])
    image = {"root": f"oci:{layout.path}", "image_cache": tmp_path / "cache"}
    with pytest.raises(InvalidInputError, match="a path that /opt has"):
        Sandbox(slots=1, binds={"/opt/mine": mine}, **image)  # type: ignore[arg-type]
    binds = {"/opt/rust": mine, "/mine": mine}
    with Sandbox(slots=1, binds=binds, **image) as sandbox:  # type: ignore[arg-type]
        result = sandbox.run("cat /opt/rust/file /mine/file", language="bash")
    assert result.stdout == b"mine\nmine\n", result
