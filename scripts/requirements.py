"""Prints what pyproject.toml asks for, one requirement a line: the package's, [train]'s and dev's.

The package itself is left out: maturin installs it, editable, after these.
"""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())
print("\n".join(project["project"]["dependencies"]))
print("\n".join(project["project"]["optional-dependencies"]["train"]))
print("\n".join(project["dependency-groups"]["dev"]))
