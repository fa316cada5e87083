"""Images as roots: unpacked, checked, cached, and what runs see of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import oci_images
import pytest
from oci_images import Layout, archive, shell
from sandboxes import need

from k15core.errors import InvalidInputError
from k15core.sandbox import Sandbox

UPPER = {
    "greeting": b"hello\n",
    "data/.wh.old": b"",
    "gone/.wh..wh..opq": b"",
    "gone/new": b"new\n",
    "link": "/greeting",
}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """An image of a shell and one layer on top that takes things away."""
    layout = Layout(tmp_path_factory.mktemp("images") / "layout")
    lower = shell() | {"data/old": b"1", "data/kept": b"kept\n", "gone/a": b"", "gone/b/c": b""}
    modes = {"data/kept": 0o600, "bin/bash": 0o6755}
    environment = ["GREETING=of the image", "PATH=/bin:/usr/bin"]
    layout.image([archive(lower, modes), archive(UPPER)], name="v1", environment=environment)
    return layout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["direct", "crun"])
def sandbox(request: pytest.FixtureRequest, layout: Layout, cache: Path) -> Iterator[Sandbox]:
    need(request.param)
    root = f"oci:{layout.path}"
    with Sandbox(slots=1, runner=request.param, root=root, image_cache=cache) as sandbox:
        yield sandbox


def test_a_run_sees_the_image_with_its_whiteouts(sandbox: Sandbox) -> None:
    source = """
cat /link /data/kept
echo /data/* /gone/*
echo "$GREETING $PATH $HOME"
touch /data/x 2>/dev/null || echo read-only
"""
    result = sandbox.run(source, language="bash")
    expected = "hello\nkept\n/data/kept /gone/new\nof the image /bin:/usr/bin /tmp\nread-only\n"
    assert result.stdout.decode() == expected, result


def test_files_go_in_and_out(sandbox: Sandbox) -> None:
    source = 'cat in/file > out; echo "$PWD"'
    result = sandbox.run(source, language="bash", files={"in/file": b"12"}, fetch=["out"])
    assert (result.stdout, result.files) == (b"/tmp\n", {"out": b"12"})


def test_set_id_bits_are_gone(sandbox: Sandbox) -> None:
    result = sandbox.execute(["/bin/stat", "-c", "%a", "/bin/bash"])
    assert int(result.stdout, 8) & 0o6000 == 0, result


def open_image(layout: Layout, cache: Path, name: str = "") -> None:
    Sandbox(slots=1, root=f"oci:{layout.path}{name}", image_cache=cache).close()


def refusal(layout: Layout, cache: Path, name: str = "") -> str:
    with pytest.raises(InvalidInputError) as refused:
        open_image(layout, cache, name)
    left = [path.name for path in cache.rglob("*") if path.is_dir() and path.name != "images-1"]
    assert not [name for name in left if len(name) >= 64], left
    return str(refused.value)


def test_an_image_is_unpacked_once(layout: Layout, tmp_path: Path) -> None:
    need()
    open_image(layout, tmp_path)
    (root,) = [path for path in tmp_path.glob("images-1/*") if path.is_dir()]
    (root / "mark").write_text("")
    open_image(layout, tmp_path, ":v1")
    assert (root / "mark").exists()
    assert oct(root.parent.stat().st_mode & 0o777) == "0o700"


UNPACK = """
import sys
from k15core.sandbox import Sandbox
with Sandbox(slots=1, root=sys.argv[1], image_cache=sys.argv[2]) as sandbox:
    print(sandbox.run("cat /greeting", language="bash").stdout.decode(), end="")
"""


def test_processes_that_want_it_at_once_unpack_it_once(layout: Layout, tmp_path: Path) -> None:
    need()
    command = [sys.executable, "-c", UNPACK, f"oci:{layout.path}", str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[0] for process in processes] == [b"hello\n"] * 4
    names = sorted(path.suffix for path in tmp_path.glob("images-1/*"))
    assert names == ["", ".lock"]


@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
def test_layers_are_unpacked_however_they_are_packed(packing: str, tmp_path: Path) -> None:
    need()
    layout = Layout(tmp_path / "layout")
    layout.image([archive(shell()), archive(UPPER)], packing=packing)
    root = f"oci:{layout.path}"
    with Sandbox(slots=1, root=root, image_cache=tmp_path / "cache") as sandbox:
        assert sandbox.run("cat /greeting", language="bash").stdout == b"hello\n"


def test_layers_of_a_real_compressor_are_read(tmp_path: Path) -> None:
    need()
    if shutil.which("zstd") is None:
        pytest.skip("zstd is missing: apt install zstd")
    command = ["zstd", "-19", "--long=23", "-c"]

    def pack(layer: bytes) -> bytes:
        return subprocess.run(command, input=layer, capture_output=True, check=True).stdout

    layout = Layout(tmp_path / "layout")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(oci_images.PACKINGS, "+zstd", pack)
        layout.image([archive(shell()), archive(UPPER)], packing="+zstd")
    root = f"oci:{layout.path}"
    with Sandbox(slots=1, root=root, image_cache=tmp_path / "cache") as sandbox:
        assert sandbox.run("cat /greeting", language="bash").stdout == b"hello\n"


DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


@pytest.mark.parametrize("kind", [oci_images.INDEX, DOCKER_LIST])
def test_of_an_index_the_image_for_this_machine_is_taken(kind: str, tmp_path: Path) -> None:
    need()
    layout = Layout(tmp_path / "layout")
    ours = layout.image([archive(shell()), archive(UPPER)], listed=False)
    other = layout.image([archive({"greeting": b"not ours"})], listed=False)
    platforms = {"linux/arm64": other, "linux/amd64": ours, "unknown/unknown": other}
    # Tools nest them: the layout's index has an index, which has one of platforms.
    inner = layout.index(platforms, kind, listed=False)
    layout.index({"linux/amd64": inner})
    with Sandbox(slots=1, root=f"oci:{layout.path}", image_cache=tmp_path / "cache") as sandbox:
        assert sandbox.run("cat /greeting", language="bash").stdout == b"hello\n"


def test_an_index_without_an_image_for_this_machine_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.index({"linux/arm64": layout.image([archive({"a": b""})], listed=False)})
    assert refusal(layout, tmp_path / "cache").endswith("expected an image for linux on amd64")
    deep = Layout(tmp_path / "deep")
    inner = deep.image([archive({"a": b""})], listed=False)
    for _ in range(4):
        inner = deep.index({"linux/amd64": inner}, listed=False)
    deep.list(inner)
    assert refusal(deep, tmp_path / "cache").endswith("expected indexes that come to a manifest")


def test_an_unknown_kind_of_content_is_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layer")
    layout.image([archive({"a": b"1"})], packing="+br")
    message = refusal(layout, tmp_path / "cache")
    kind = "application/vnd.oci.image.layer.v1.tar+br"
    assert message == f"root = a layer of {kind}: expected a layer of tar, tar+gzip or tar+zstd"
    other = Layout(tmp_path / "manifest")
    descriptor = other.blob(b"{}", "application/vnd.example.chart.v1+json")
    other.list(descriptor)
    message = refusal(other, tmp_path / "cache")
    start = f'root = {descriptor["digest"]} of media type "application/vnd.example.chart.v1+json"'
    assert message == f"{start}: expected an image's manifest or an index, of OCI or Docker (v2)"


def test_what_a_killed_process_left_is_no_hindrance(layout: Layout, tmp_path: Path) -> None:
    need()
    directory = tmp_path / "images-1"
    directory.mkdir(mode=0o700)
    digits = str(layout.manifests[0]["digest"]).removeprefix("sha256:")
    (directory / f"{digits}.partial/half").mkdir(parents=True)
    open_image(layout, tmp_path)
    assert not (directory / digits / "half").exists()


def test_a_wrong_digest_is_found(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    descriptor = layout.image([archive({"a": b"1" * 1000})], packing="")
    blobs = sorted((layout.path / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    layer = blobs[-1]
    content = bytearray(layer.read_bytes())
    content[600] ^= 1
    layer.write_bytes(content)
    assert f"expected sha256:{layer.name}" in refusal(layout, tmp_path / "cache")
    manifest = layout.blob_path(descriptor)
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert f"expected {descriptor['digest']}" in refusal(layout, tmp_path / "cache")


def test_a_missing_blob_is_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image([archive({"a": b"1"})])
    for path in (layout.path / "blobs/sha256").iterdir():
        content = path.read_bytes()
        path.unlink()
        message = refusal(layout, tmp_path / "cache")
        assert f"the image's blob sha256:{path.name}: No such file" in message
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"../x": b""}, "has `..` in it"),
        ({"a": "..", "a/x": b""}, "leads out of the root"),
        ({"a": b"", "a/x": b""}, "is no directory"),
        ({"a/.wh...": b""}, "a whiteout of no file"),
    ],
)
def test_a_hostile_layer_is_refused(
    files: dict[str, bytes | str], why: str, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "hostile")
    lower = archive({"a/b": b""} if "a/.wh..." in files else {"b": b""})
    layout.image([lower, archive(files)])
    message = refusal(layout, tmp_path / "cache")
    assert why in message, message
    assert message.startswith("root = layer sha256:")


def test_which_image_is_meant_must_be_clear(tmp_path: Path) -> None:
    two = Layout(tmp_path / "two")
    for name in ("a", "b"):
        two.image([archive({name: b""})], name=name)
    assert refusal(two, tmp_path / "cache").endswith("`oci:DIRECTORY:NAME` with one of a, b")
    message = refusal(two, tmp_path / "cache", ":c")
    assert message == 'root = image "c": expected one of the layout\'s names: a, b'
    assert "index.json" in refusal(Layout(tmp_path / "empty"), tmp_path / "cache")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's directory")
def test_a_cache_of_others_is_refused(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "images-1").mkdir(mode=0o777)
    (tmp_path / "images-1").chmod(0o777)
    with pytest.raises(InvalidInputError, match="a directory that only this user can use"):
        open_image(layout, tmp_path)
