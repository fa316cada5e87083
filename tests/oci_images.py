"""OCI image layouts made by hand, of a shell and what it needs from this host."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
NAMES = ["bash", "cat", "chmod", "head", "ls", "rm", "stat", "touch"]
PROGRAMS = [f"/bin/{name}" for name in NAMES]


def zstd(content: bytes) -> bytes:
    """A zstd frame whose blocks are plain, so that it needs no compressor (RFC 8878, 3.1.1)."""
    most = 1 << 17
    frame = b"\x28\xb5\x2f\xfd\xa0" + len(content).to_bytes(4, "little")
    for at in range(0, len(content), most):
        block = content[at : at + most]
        is_last = at + most >= len(content)
        frame += (len(block) << 3 | is_last).to_bytes(3, "little") + block
    return frame


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "+gzip": lambda layer: gzip.compress(layer, 1),
    "+zstd": zstd,
}


@dataclass
class Layout:
    """An image layout in a directory; what is added is written at once."""

    path: Path
    manifests: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.path / "blobs/sha256").mkdir(parents=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, content: bytes, media_type: str) -> dict[str, object]:
        digits = hashlib.sha256(content).hexdigest()
        (self.path / "blobs/sha256" / digits).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digits}", "size": len(content)}

    def image(
        self,
        layers: list[bytes],
        *,
        name: str | None = None,
        environment: list[str] | None = None,
        packing: str = "+gzip",
        listed: bool = True,
    ) -> dict[str, object]:
        """Add an image of these layers (tar archives); its manifest's descriptor.

        `packing` is the end of the layers' media type, "" for none. What is not listed in the
        layout's own index is for an index that is: `index()`.
        """
        identities = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": environment or [], "WorkingDir": "/nowhere"},
            "rootfs": {"type": "layers", "diff_ids": identities},
        }
        pack = PACKINGS.get(packing, lambda layer: layer)
        packed = [self.blob(pack(layer), LAYER + packing) for layer in layers]
        text = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(text, "application/vnd.oci.image.config.v1+json"),
            "layers": packed,
        }
        descriptor = self.blob(json.dumps(manifest).encode(), MANIFEST)
        if listed:
            self.list(descriptor, name)
        return descriptor

    def index(
        self, images: dict[str, dict[str, object]], media_type: str = INDEX, *, listed: bool = True
    ) -> dict[str, object]:
        """Add an index of images by platform ("linux/amd64"); its descriptor."""
        entries = []
        for platform, descriptor in images.items():
            system, architecture = platform.split("/")
            entries.append(descriptor | {"platform": {"os": system, "architecture": architecture}})
        text = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        descriptor = self.blob(text, media_type)
        if listed:
            self.list(descriptor)
        return descriptor

    def list(self, descriptor: dict[str, object], name: str | None = None) -> None:
        """Put an entry into the layout's own index."""
        if name is not None:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.manifests.append(descriptor)
        index = {"schemaVersion": 2, "manifests": self.manifests}
        (self.path / "index.json").write_text(json.dumps(index))

    def blob_path(self, descriptor: dict[str, object]) -> Path:
        return self.path / "blobs/sha256" / str(descriptor["digest"]).removeprefix("sha256:")


def archive(files: dict[str, bytes | str], modes: dict[str, int] | None = None) -> bytes:
    """A tar archive of files by path; a string is what a symbolic link says."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.mode = (modes or {}).get(path, 0o755)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def shell() -> dict[str, bytes | str]:
    """The files of a root in which bash and a few programs run."""
    paths = set(PROGRAMS)
    for program in PROGRAMS:
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        paths |= set(re.findall(r"(/\S+)", said))
    return {path.lstrip("/"): Path(path).read_bytes() for path in sorted(paths)}
