"""What is typed at a real Juju beside the scenarios' own steps: the models they need, and how its answers are read.

Plain functions of text, without a controller; tests/unit/test_real_juju.py tests them.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from tests import scenarios
from tests.juju_output import Status

MINIMUM = (3, 3)  # the first with `juju add-secret` by which actions are given tokens
PROGRAMS: tuple[str, ...] = ("juju", "charmcraft", "kubectl", "curl")
BASE = "--base ubuntu@22.04"

# Keystone's charm with a database of its own. Its certificate is set later, when it has an address.
KEYSTONE = (
    f"deploy mysql-innodb-cluster -n 3 --channel 8.0/stable {BASE} --constraints mem=3072M",
    f"deploy mysql-router keystone-mysql-router --channel 8.0/stable {BASE}",
    f"deploy keystone --channel 2024.1/stable {BASE} --config openstack-origin=cloud:jammy-caracal",
    "integrate keystone-mysql-router:db-router mysql-innodb-cluster:db-router",
    "integrate keystone-mysql-router:shared-db keystone:shared-db",
)
# The smallest bundle of Charmed Kubernetes; and the charm that is all of Canonical Kubernetes, with what its own
# tests give it.
CONTROL_PLANES = {
    "charmed": ("kubernetes-control-plane", ("deploy kubernetes-core --trust",)),
    "canonical": (
        "k8s",
        (f"deploy k8s --channel 1.32/stable {BASE} --constraints 'cores=2 mem=8G root-disk=16G'",),
    ),
}
# After these, hooks run.
CHANGES = (
    "add-relation", "add-unit", "attach-resource", "config", "deploy", "integrate", "refresh", "remove-application",
    "remove-relation",
)  # fmt: skip


class Cluster(NamedTuple):
    """What a kubeconfig says of its cluster."""

    server: str
    ca: bytes


def why_not(found: Mapping[str, bool], version: str, controller: bool) -> str:
    """Say what keeps the scenarios from a real Juju; empty where nothing does.

    Args:
        found: which programs there are.
        version: what `juju version` says.
        controller: whether juju is logged in to one.

    """
    if missing := [name for name, there in found.items() if not there]:
        return f"there is no {', no '.join(missing)} on this machine"
    number = tuple(int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit())
    if number < MINIMUM:
        return f"juju is {version.strip()}, and the steps are typed as for {'.'.join(map(str, MINIMUM))} and later"
    if not controller:
        return "juju has no controller here (juju whoami)"
    return ""


def look_around() -> str:
    """Say what keeps the scenarios from a real Juju on this machine."""
    found = {name: subprocess.run(["which", name], capture_output=True).returncode == 0 for name in PROGRAMS}
    if not found["juju"]:
        return why_not(found, "", False)
    version = subprocess.run(["juju", "version"], capture_output=True, text=True).stdout
    controller = subprocess.run(["juju", "whoami"], capture_output=True).returncode == 0
    return why_not(found, version, controller)


def missing(status: Status, kind: scenarios.Kind, application: str) -> list[str]:
    """Give the commands that bring into the model what is not there: the control plane, Keystone."""
    commands: list[str] = []
    if application not in status.applications:
        commands += CONTROL_PLANES[kind.layout][1]
    if "keystone" not in status.applications:
        commands += KEYSTONE
    return commands


def idle(status: Status) -> bool:
    """Tell whether no agent has anything to do, and no unit is still to come."""
    return all(unit.agent == "idle" for unit in status.all_units)


def waits_for_hooks(words: Sequence[str]) -> bool:
    """Tell whether hooks run because of a command; asking for an option's value is none."""
    return words[0] in CHANGES and (words[0] != "config" or any("=" in word or word == "--reset" for word in words[2:]))


def https(certificate: bytes, key: bytes, ca: bytes) -> str:
    """Write the file of options for Keystone's charm, so that no key stands on a command line."""
    options = {"ssl_cert": certificate, "ssl_key": key, "ssl_ca": ca}
    return yaml.safe_dump({"keystone": {name: base64.b64encode(data).decode() for name, data in options.items()}})


def url_of_keystone(address: str) -> str:
    """Give the URL of a Keystone that its charm has set up with a certificate."""
    host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    return f"https://{host}:5000/v3"


def cluster(kubeconfig: str) -> Cluster:
    """Read server and CA of the current context in an administrator's kubeconfig."""
    told: dict[str, Any] = yaml.safe_load(kubeconfig)
    contexts = {one["name"]: one["context"] for one in told["contexts"]}
    clusters = {one["name"]: one["cluster"] for one in told["clusters"]}
    one = clusters[contexts[told["current-context"]]["cluster"]]
    return Cluster(one["server"], base64.b64decode(one["certificate-authority-data"]))


def first_task(text: str) -> Mapping[str, Any]:
    """Give the one task of an answer, whichever unit `…/leader` was."""
    tasks = json.loads(text)
    if len(tasks) != 1:
        raise ValueError(f"one unit was asked, and {len(tasks)} answer")
    return next(iter(tasks.values()))


def first_release(channel: str, packed: str) -> str:
    """Give the words of `juju deploy` for what an upgrade begins with: a channel of Charmhub's, if one is named."""
    return f"{scenarios.CHARM} --channel {shlex.quote(channel)}" if channel else shlex.quote(packed)
