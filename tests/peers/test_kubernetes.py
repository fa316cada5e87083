"""The manifests against the schemas that Kubernetes publishes, unknown fields refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

validate = pytest.importorskip(
    "kubernetes_validate",
    reason="needs kubernetes-validate, which `make test-peers` installs",
)

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "sandboxd" / "kubernetes"
VERSIONS = {"sandboxd": ["1.30", "1.34", "1.37"], "engines": ["1.34", "1.37"]}
FILES = [
    (path, version)
    for name, versions in VERSIONS.items()
    for path in sorted((DEPLOY / name / "kubernetes").glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for version in versions
]


@pytest.mark.parametrize(
    ("path", "version"), FILES, ids=lambda given: getattr(given, "stem", given)
)
def test_a_manifest_is_what_kubernetes_takes(path: Path, version: str) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        validate.validate(document, version, strict=True)


def test_a_field_that_it_does_not_know_is_refused() -> None:
    document = next(iter(yaml.safe_load_all((FOLDER / "deployment.yaml").read_text())))
    document["spec"]["template"]["spec"]["containers"][0]["port"] = 8080
    with pytest.raises(validate.ValidationError):
        validate.validate(document, "1.34", strict=True)
