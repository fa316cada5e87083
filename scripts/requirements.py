"""Prints what pyproject.toml asks for, one a line: the package, the extras that tests need, dev.

The package itself is left out: maturin installs it, editable, after these. With the word `core`
only what the package needs itself, and maturin.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())
lines = project["project"]["dependencies"]
if sys.argv[1:] == ["core"]:
    lines += project["build-system"]["requires"]
else:
    for extra in ("train", "megatron", "etcd"):
        lines += project["project"]["optional-dependencies"][extra]
    lines += project["dependency-groups"]["dev"]
print("\n".join(lines))
