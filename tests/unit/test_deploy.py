"""What is shipped to run the daemon with: it agrees with the daemon and with itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "sandboxd"


def manifests() -> dict[str, dict[str, Any]]:
    """All by kind."""
    folder = DEPLOY / "kubernetes"
    files = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in folder.glob("*.yaml")} == {*files, "kustomization.yaml"}
    documents = [each for name in files for each in yaml.safe_load_all((folder / name).read_text())]
    return {each["kind"]: each for each in documents}


def pod() -> dict[str, Any]:
    return dict(manifests()["Deployment"]["spec"]["template"]["spec"])


def needed() -> set[str]:
    """The capabilities that the sandbox asks for before it starts."""
    source = (ROOT / "rust" / "sandbox" / "src" / "capability.rs").read_text()
    return set(re.findall(r'\("CAP_([A-Z_]+)", capability::', source))


def test_privileges_are_those_that_the_sandbox_asks_for() -> None:
    (container,) = pod()["containers"]
    held = container["securityContext"]["capabilities"]
    assert held == {"drop": ["ALL"], "add": held["add"]}
    assert set(held["add"]) == needed()
    unit = (DEPLOY / "k15-sandboxd.service").read_text()
    (line,) = re.findall("^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    assert {name.removeprefix("CAP_") for name in line.split()} == needed()


def test_ports_paths_and_labels_agree() -> None:
    found, (container,) = manifests(), pod()["containers"]
    settings = tomllib.loads((DEPLOY / "sandboxd.toml").read_text())
    (port,) = container["ports"]
    assert settings["listen"].endswith(f":{port['containerPort']}")
    token = Path(settings["token_file"])
    places = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert places["token"] == str(token.parent)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "k15-sandboxd"
    assert pod()["terminationGracePeriodSeconds"] > settings["http"]["grace_seconds"]


def test_the_autoscaler_reads_a_metric_that_the_adapter_makes_of_ours() -> None:
    found = manifests()
    (rule,) = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])["rules"]
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    source = (ROOT / "rust" / "sandboxd" / "src" / "metrics.rs").read_text()
    assert 'with_prefix("k15_sandboxd")' in source
    assert 'register_with_unit("wait"' in source
    assert "k15_sandboxd_wait_seconds_sum" in rule["metricsQuery"]


def test_the_image_takes_what_make_daemon_builds() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    copied = [path for paths in copies for path in paths]
    assert len(copied) == 4
    for path in copied:
        assert (ROOT / path).is_file(), path
    subprocess.run(["sh", "-n", DEPLOY / "entrypoint.sh"], check=True)


def test_systemd_knows_every_line_of_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "k15-sandboxd.service"
    text = (DEPLOY / "k15-sandboxd.service").read_text()
    unit.write_text(text.replace("/usr/local/bin/k15-sandboxd", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", unit]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
