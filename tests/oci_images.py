"""OCI image layouts made by hand, of a shell and what it needs from this host."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
NAMES = ["bash", "cat", "chmod", "head", "ls", "rm", "stat", "touch"]
PROGRAMS = [f"/bin/{name}" for name in NAMES]


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
        compress: bool = True,
    ) -> dict[str, object]:
        """Add an image of these layers (tar archives); its manifest's descriptor."""
        identities = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": environment or [], "WorkingDir": "/nowhere"},
            "rootfs": {"type": "layers", "diff_ids": identities},
        }
        packed = [
            self.blob(gzip.compress(layer, 1), f"{LAYER}+gzip")
            if compress
            else self.blob(layer, LAYER)
            for layer in layers
        ]
        text = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(text, "application/vnd.oci.image.config.v1+json"),
            "layers": packed,
        }
        descriptor = self.blob(json.dumps(manifest).encode(), MANIFEST)
        if name is not None:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.manifests.append(descriptor)
        index = {"schemaVersion": 2, "manifests": self.manifests}
        (self.path / "index.json").write_text(json.dumps(index))
        return descriptor

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
