"""OpenTofu itself judges the Terraform module: its form, names and types, and what it would make.

Juju's provider is a stand-in with the documented schema alone (testbed/builds/juju-provider); nothing is applied.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import cache, setup

PROJECT = Path(__file__).resolve().parents[2]
MODULE = PROJECT / "deploy/terraform"
METADATA = yaml.safe_load((PROJECT / "metadata.yaml").read_text())
MODEL = "abe22490-a845-4a4d-ba52-7ec80a60aff5"

Tofu = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def programs() -> tuple[Path, Path]:
    if not (cache.root() / setup.opentofu_name() / cache.DONE).exists() and not os.environ.get("BUILD_OPENTOFU"):
        pytest.skip("NOT VALIDATED: deploy/terraform, since OpenTofu is not built yet; `make terraform` does it")
    return setup.opentofu(), setup.juju_provider()


@pytest.fixture
def tofu(programs, tmp_path) -> Tofu:
    """Run OpenTofu on a copy of the module, with the stand-in in the provider's place."""
    program, provider = programs
    settings = tmp_path / "tofurc"
    settings.write_text(f'provider_installation {{ dev_overrides {{ "juju/juju" = "{provider}" }} }}\n')
    shutil.copytree(MODULE, tmp_path / "module")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TF_CLI_CONFIG_FILE": str(settings)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "module"
        return subprocess.run(
            [program, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture
def plan(tofu) -> Callable[..., list[dict[str, Any]]]:
    """Give what would be made with these variables, a resource an entry."""

    def make(**variables: object) -> list[dict[str, Any]]:
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in variables.items()}
        words = [f"-var={name}={text}" for name, text in texts.items()]
        done = tofu("plan", "-input=false", "-no-color", "-out=plan", f"-var=model_uuid={MODEL}", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(tofu("show", "-json", "plan").stdout)["planned_values"]["root_module"]["resources"]

    return make


def edit(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "module/main.tf"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_module_is_written_as_opentofu_writes_it(tofu):
    done = tofu("fmt", "-check", "-diff")

    assert (done.returncode, done.stdout) == (0, "")


def test_the_module_is_valid(tofu):
    answer = json.loads(tofu("validate", "-json").stdout)

    assert answer["valid"], answer["diagnostics"]
    assert [one["summary"] for one in answer["diagnostics"]] == ["Provider development overrides are in effect"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    channel ", "    chanel ", 'An argument named "chanel" is not expected here'),
        ("  model_uuid = var.model_uuid\n", "", 'The argument "model_uuid" is required'),
        ("revision = var.revision", 'revision = "newest"', "a number is required"),
        ("var.control_plane", "var.controlplane", 'variable with the name "controlplane" has not been declared'),
    ],
)
def test_what_the_provider_would_not_take_is_found(tofu, tmp_path, old, new, said):
    edit(tmp_path, old, new)

    answer = json.loads(tofu("validate", "-json").stdout)

    assert not answer["valid"]
    assert said in " ".join(one["detail"] for one in answer["diagnostics"])


def test_it_makes_the_application_and_relates_it_to_the_control_plane(plan):
    application, integration = plan(keystone_url="https://keystone.example:5000/v3", config={"log-level": "debug"})

    assert application["values"]["charm"][0]["name"] == METADATA["name"]
    assert application["values"]["config"] == {"keystone-url": "https://keystone.example:5000/v3", "log-level": "debug"}
    assert [(one["name"], one["endpoint"]) for one in integration["values"]["application"]] == [
        ("kubernetes-control-plane", "juju-info"),
        (METADATA["name"], "kubernetes-master"),
    ]


def test_further_relations_go_to_the_charms_own_endpoints_and_no_url_is_set_without_one(plan):
    others = {
        "keystone-credentials": {"name": "keystone", "endpoint": "identity-credentials"},
        "cos-agent": {"name": "grafana-agent", "endpoint": "cos-agent"},
    }
    assert set(others) <= {*METADATA["requires"], *METADATA["provides"]}

    made = plan(integrations=others)

    (application,) = (one["values"] for one in made if one["type"] == "juju_application")
    assert application["config"] == {}
    related = {
        frozenset((end["name"], end["endpoint"]) for end in one["values"]["application"])
        for one in made
        if one["name"] == "other"
    }
    assert related == {
        frozenset({(METADATA["name"], own), (other["name"], other["endpoint"])}) for own, other in others.items()
    }
