"""`juju integrate kubernetes-control-plane kubernetes-keystone` names no endpoints: one pair alone may fit.

Juju looks at all pairs of a provider and a requirer of one interface, every application's implicit `juju-info` among
them; of several it leaves the implicit ones out, and if there are several still, it refuses (juju/juju,
`InferEndpoints`). A pair of two explicit endpoints would even win over the one that is meant.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import yaml

from tests.unit.charm.conftest import PROJECT

# What the control planes' charms publish: name and interface of each endpoint but the peers'.
# charmed-kubernetes/charm-kubernetes-control-plane, charmcraft.yaml at 04b8d234b8ec
CONTROL_PLANE = {
    "provides": {
        "cni": "kubernetes-cni",
        "container-runtime": "container-runtime",
        "cos-agent": "cos_agent",
        "kube-control": "kube-control",
        "tokens": "tokens",
    },
    "requires": {
        "ceph-client": "ceph-client",
        "aws": "aws-integration",
        "gcp": "gcp-integration",
        "azure": "azure-integration",
        "openstack": "openstack-integration",
        "keystone-credentials": "keystone-credentials",
        "certificates": "tls-certificates",
        "dns-provider": "kube-dns",
        "etcd": "etcd",
        "ha": "hacluster",
        "loadbalancer-external": "loadbalancer",
        "loadbalancer-internal": "loadbalancer",
        "external-cloud-provider": "external_cloud_provider",
        "vault-kv": "vault-kv",
    },
}
# The same charm under its old name, metadata.yaml at 02ef61456cfd
MASTER = {
    "provides": {
        "kube-api-endpoint": "http",
        "cluster-dns": "kube-dns",
        "kube-control": "kube-control",
        "cni": "kubernetes-cni",
    },
    "requires": {
        "etcd": "etcd",
        "loadbalancer": "public-address",
        "ceph-storage": "ceph-admin",
        "ceph-client": "ceph-client",
        "aws": "aws-integration",
        "gcp": "gcp-integration",
        "openstack": "openstack-integration",
        "vsphere": "vsphere-integration",
        "azure": "azure-integration",
        "keystone-credentials": "keystone-credentials",
    },
}
# canonical/k8s-operator, charms/worker/k8s/charmcraft.yaml at 4b94fb1c64d4
K8S = {
    "provides": {
        "cos-agent": "cos_agent",
        "cos-worker-tokens": "cos-k8s-tokens",
        "containerd": "containerd",
        "ceph-k8s-info": "kubernetes-info",
        "k8s-cluster": "k8s-cluster",
        "kube-control": "kube-control",
    },
    "requires": {
        "aws": "aws-integration",
        "azure": "azure-integration",
        "etcd": "etcd",
        "external-cloud-provider": "external_cloud_provider",
        "gcp": "gcp-integration",
        "external-load-balancer": "loadbalancer",
    },
}
# canonical/charm-microk8s, metadata.yaml at e7fc19bf115d
MICROK8S = {"provides": {"microk8s-provides": "microk8s-info"}, "requires": {"microk8s": "microk8s-info"}}
# canonical/grafana-agent-operator, charmcraft-22.04.yaml at 744cd2e8b8f5
GRAFANA_AGENT = {
    "provides": {"grafana-dashboards-provider": "grafana_dashboard"},
    "requires": {
        "certificates": "tls-certificates",
        "juju-info": "juju-info",
        "cos-agent": "cos_agent",
        "send-remote-write": "prometheus_remote_write",
        "logging-consumer": "loki_push_api",
        "grafana-cloud-config": "grafana_cloud_config",
        "receive-ca-cert": "certificate_transfer",
        "tracing": "tracing",
    },
}


class Endpoint(NamedTuple):
    """One of an application."""

    name: str
    interface: str
    implicit: bool = False


def ours() -> dict[str, dict[str, str]]:
    metadata = yaml.safe_load((PROJECT / "metadata.yaml").read_text())
    return {
        role: {name: endpoint["interface"] for name, endpoint in metadata.get(role, {}).items()}
        for role in ("provides", "requires")
    }


def pairs(one: dict[str, dict[str, str]], other: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """What Juju would choose from, by the names of the two endpoints."""
    found: list[tuple[Endpoint, Endpoint]] = []
    for mine, theirs in (("provides", "requires"), ("requires", "provides")):
        found += [
            (left, right)
            for left, right in itertools.product(_endpoints(one, mine), _endpoints(other, theirs))
            if left.interface == right.interface
        ]
    if len(found) > 1:
        explicit = [pair for pair in found if not any(endpoint.implicit for endpoint in pair)]
        found = explicit or found
    return [(left.name, right.name) for left, right in found]


def _endpoints(application: dict[str, dict[str, str]], role: str) -> list[Endpoint]:
    declared = [Endpoint(name, interface) for name, interface in application[role].items()]
    return [*declared, Endpoint("juju-info", "juju-info", implicit=True)] if role == "provides" else declared


CONTROL_PLANES = {
    "kubernetes-control-plane": CONTROL_PLANE,
    "kubernetes-master": MASTER,
    "k8s": K8S,
    "microk8s": MICROK8S,
}


@pytest.mark.parametrize("control_plane", CONTROL_PLANES.values(), ids=CONTROL_PLANES)
def test_one_pair_alone_fits_a_control_plane(control_plane):
    assert pairs(ours(), control_plane) == [("kubernetes-master", "juju-info")]


def test_one_pair_alone_fits_an_agent():
    assert pairs(ours(), GRAFANA_AGENT) == [("cos-agent", "cos-agent")]


@pytest.mark.parametrize("harmful", [{"kube-control": "kube-control"}, {"agent": "cos_agent"}])
def test_an_endpoint_that_a_control_plane_provides_for_would_be_taken_in_its_place(harmful):
    with_it = {**ours(), "requires": {**ours()["requires"], **harmful}}
    assert pairs(with_it, CONTROL_PLANE) != [("kubernetes-master", "juju-info")]


def test_the_agent_shares_the_machine_and_we_follow_its_scope():
    """Its endpoint is container-scoped, which makes the relation so; ours may say nothing, as hardware-observer's."""
    endpoint = yaml.safe_load((PROJECT / "metadata.yaml").read_text())["provides"]["cos-agent"]
    assert endpoint["interface"] == "cos_agent"
    assert endpoint.get("scope", "global") == "global"
