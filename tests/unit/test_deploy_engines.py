"""The pod of the report's Figure 4: its containers agree with each other and with our commands."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from k15core.cli import parser, sandbox
from k15core.config import load_recipe

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "engines"


def manifests() -> dict[str, dict[str, Any]]:
    """All by kind."""
    folder = DEPLOY / "kubernetes"
    files = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in folder.glob("*.yaml")} == {*files, "kustomization.yaml"}
    documents = [each for name in files for each in yaml.safe_load_all((folder / name).read_text())]
    return {each["kind"]: each for each in documents}


@pytest.fixture
def pod() -> dict[str, Any]:
    return dict(manifests()["Job"]["spec"]["template"]["spec"])


def served(pod: dict[str, Any]) -> argparse.Namespace:
    """The engine container's command, as the command line understands it."""
    (engine,) = pod["initContainers"]
    words, rest = sandbox.split_arguments(engine["args"])
    return parser().parse_args(words, argparse.Namespace(program_arguments=rest))


def trained(pod: dict[str, Any]) -> tuple[str, argparse.Namespace]:
    """The trainer's first command: the recipe's name, and what the command line makes of it."""
    (trainer,) = pod["containers"]
    (script,) = trainer["args"]
    resume, first = re.findall(r"exec k15 ([^;\n]+)", script.replace("\\\n", ""))
    assert parser().parse_args(shlex.split(resume)).resume == "runs/policy"
    options = parser().parse_args(shlex.split(first))
    return Path(options.recipe).name, options


def test_the_engine_is_a_sidecar_that_outlives_its_end(pod: dict[str, Any]) -> None:
    (engine,) = pod["initContainers"]
    assert engine["restartPolicy"] == "Always"
    options = served(pod)
    assert options.program_arguments[0] == "--dtype=bfloat16"
    for probe in ("startupProbe", "livenessProbe"):
        words = engine[probe]["exec"]["command"]
        assert words[0] == "k15"
        asked = parser().parse_args(words[1:])
        assert asked.url == f"http://{options.listen}"


def test_both_containers_share_gpus_and_memory(pod: dict[str, Any]) -> None:
    found = manifests()
    (engine,), (trainer,) = pod["initContainers"], pod["containers"]
    (claim,) = pod["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == found["ResourceClaimTemplate"]["metadata"]["name"]
    for container in (engine, trainer):
        assert container["resources"]["claims"] == [{"name": claim["name"]}]
        assert not any("gpu" in name for name in container["resources"]["limits"])
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    storage = volumes["runs"]["persistentVolumeClaim"]["claimName"]
    assert storage == found["PersistentVolumeClaim"]["metadata"]["name"]


def test_trainer_and_engine_name_the_same_things(pod: dict[str, Any]) -> None:
    options = served(pod)
    name, training = trained(pod)
    recipe = load_recipe(ROOT / "recipes" / name, [*training.overrides, f"name={training.name}"])
    settings = recipe.rollout.engine.model_extra or {}
    assert training.engine == "vllm_server"
    assert settings["checkpoint_engine"] == f"http://{options.listen}"
    assert recipe.deploy.share_device
    assert options.weights == f"{recipe.deploy.weights}/trainer"
    assert options.slots == settings["slots"]
    assert Path(options.model).name == Path(recipe.model.directory or "").name
    longest = recipe.task.model_extra["max_prompt_tokens"] + recipe.rollout.max_response_tokens
    assert options.max_total_tokens == longest


def test_the_image_has_what_the_containers_call() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    copies = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    assert ["recipes", "/opt/k15core/recipes"] in copies
    assert 'ENTRYPOINT ["k15"]' in lines
