"""The ways to deploy in deploy/ name the charm's own options and endpoints, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

from config import CharmConfig

PROJECT = Path(__file__).resolve().parents[3]
DEPLOY = PROJECT / "deploy"
ENDPOINT = "kubernetes-master"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


OPTIONS: dict[str, Any] = read(PROJECT / "config.yaml")["options"]
METADATA: dict[str, Any] = read(PROJECT / "metadata.yaml")


def check(options: dict[str, Any]) -> None:
    """Have the charm itself read the options."""
    assert set(options) <= set(OPTIONS)
    CharmConfig.model_validate({name.replace("-", "_"): value for name, value in options.items()})


def test_the_sample_configuration_is_valid_and_what_it_comments_out_is_the_default():
    text = (DEPLOY / "config.yaml").read_text()
    check(yaml.safe_load(text)["kubernetes-keystone"])

    shown = dict(re.findall(r"^  # ([a-z0-9-]+): *([^|\n]*)\|?$", text, re.MULTILINE))
    assert len(shown) > 5
    for name, value in shown.items():
        default = OPTIONS[name].get("default", "")
        assert default == "" if value == "" else default == yaml.safe_load(value), name


def test_the_overlay_relates_the_charms_endpoint_to_one_that_every_charm_has():
    overlay = read(DEPLOY / "overlay.yaml")
    application = overlay["applications"][METADATA["name"]]

    assert set(overlay) == {"applications", "relations"}
    assert list(overlay["applications"]) == [METADATA["name"]], "the bundle's own are left as they are"
    # A subordinate: no units, machines or constraints, see https://documentation.ubuntu.com/juju/latest/reference/bundle/
    assert set(application) == {"charm", "channel", "options"}
    assert application["charm"] == METADATA["name"]
    assert re.fullmatch(r"[a-z0-9.]+/(edge|beta|candidate|stable)", application["channel"])
    check(application["options"])
    assert overlay["relations"] == [["kubernetes-control-plane:juju-info", f"{METADATA['name']}:{ENDPOINT}"]]
    assert METADATA["requires"][ENDPOINT]["interface"] == "juju-info"


@pytest.fixture(scope="module")
def module() -> dict[str, Any]:
    """Give the blocks of the Terraform module by `kind` and `kind.name`, all of its files together."""
    found: dict[str, Any] = {}
    for path in (DEPLOY / "terraform").glob("*.tf"):
        for kind, blocks in hcl2.loads(path.read_text()).items():
            for block in blocks if kind in {"variable", "resource", "output"} else ():
                (label, body), *_ = block.items()
                found.setdefault(f"{kind} {_bare(label)}", {}).update(body)
    return found


def _bare(text: str) -> str:
    return text.strip('"')


def test_further_relations_of_the_terraform_module_are_to_the_charms_own_endpoints(module):
    other = module["resource juju_integration"]['"other"']
    readme = (DEPLOY / "README.md").read_text()

    (_, ours) = other["application"]
    assert (ours["name"], ours["endpoint"]) == (
        "${juju_application.kubernetes_keystone.name}", "${each.key}",
    )  # fmt: skip
    shown = set(re.findall(r"^ {8}([a-z-]+) += \{ name", readme, re.MULTILINE))
    assert len(shown) > 1
    assert shown <= {*METADATA["requires"], *METADATA["provides"]}


def test_the_terraform_module_deploys_and_relates_as_the_two_commands_do(module):
    application = module["resource juju_application"]['"kubernetes_keystone"']
    (first, second) = module["resource juju_integration"]['"control_plane"']["application"]

    assert _bare(application["charm"][0]["name"]) == METADATA["name"]
    assert "units" not in application
    assert set(re.findall(r"([a-z-]+) = var", application["config"])) <= set(OPTIONS)
    assert (first["name"], _bare(first["endpoint"])) == ("${var.control_plane}", "juju-info")
    assert _bare(second["endpoint"]) == ENDPOINT


def test_every_variable_of_the_terraform_module_is_declared_described_and_used(module):
    declared = {name.partition(" ")[2] for name in module if name.startswith("variable ")}
    text = (DEPLOY / "terraform/main.tf").read_text()

    assert set(re.findall(r"\bvar\.([a-z_]+)", text)) == declared
    assert [name for name in declared if not module[f"variable {name}"].get("description")] == []
