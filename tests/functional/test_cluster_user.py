"""The authenticator's own user in a real cluster: what it may do, how its token is renewed, and that all of it goes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import cluster_user
from config import CharmConfig
from errors import ConfigError
from files import Places
from testbed.apiserver import ApiServer
from tests.functional.test_lease import unit

pytestmark = pytest.mark.functional

SYNC = "data-types-to-sync: [projects, role_assignments]"
ACCOUNTS = "/api/v1/namespaces/kube-system/serviceaccounts"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


class Charm:
    """A charm's machine beside the API server."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server, self.layout, self.places = server, unit(server, folder, 1), Places(folder)
        for path in (self.places.etc, self.places.state):
            path.mkdir(parents=True)

    def ensure(self, layout: Any = "own", **options: Any) -> None:
        config = CharmConfig.model_validate({"keystone_url": "https://keystone:5000/v3", **options})
        chosen = self.layout if layout == "own" else layout
        cluster_user.ensure(self.places, config, chosen, "kubernetes-keystone/1", os.getegid())

    @property
    def token(self) -> str:
        return yaml.safe_load(self.places.kubeconfig.read_text())["users"][0]["user"]["token"]

    def may(self, verb: str, resource: str, group: str = "", namespace: str = "", name: str = "") -> bool:
        attributes = {"verb": verb, "resource": resource, "group": group, "namespace": namespace, "name": name}
        review = {"spec": {"resourceAttributes": attributes}}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        code, answer = self.server.send("POST", path, self.token, review)
        assert code == 201, answer
        return answer["status"]["allowed"]

    def left(self) -> list[str]:
        """All objects of ours in the cluster."""
        found = []
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        for path in (ACCOUNTS, *(f"{rbac}/{kind}" for kind in ("clusterroles", "clusterrolebindings", "roles"))):
            query = "?labelSelector=app.kubernetes.io/managed-by=kubernetes-keystone"
            code, answer = self.server.send("GET", path + query, self.server.admin_token)
            assert code == 200
            found += [item["metadata"]["name"] for item in answer["items"]]
        return found


@pytest.fixture
def charm(server: ApiServer, tmp_path: Path) -> Iterator[Charm]:
    made = Charm(server, tmp_path)
    yield made
    cluster_user.remove(made.places, made.layout)
    assert made.left() == []


def test_without_need_there_is_nothing(charm: Charm) -> None:
    charm.ensure()
    assert charm.left() == []
    assert not charm.places.kubeconfig.exists()
    assert not charm.places.cluster_user.exists()


def test_it_may_do_what_sync_needs_and_nothing_else(charm: Charm) -> None:
    charm.ensure(sync_config=SYNC)
    assert charm.places.kubeconfig.stat().st_mode & 0o777 == 0o640
    rbac = "rbac.authorization.k8s.io"
    assert charm.may("create", "namespaces")
    assert charm.may("delete", "rolebindings", rbac, "any")
    assert charm.may("bind", "clusterroles", rbac, name="member")
    assert charm.may("update", "leases", "coordination.k8s.io", "kube-system")
    assert not charm.may("delete", "namespaces")
    assert not charm.may("update", "leases", "coordination.k8s.io", "kube-node-lease")
    assert not charm.may("get", "secrets", namespace="kube-system")
    assert not charm.may("list", "pods")
    assert not charm.may("get", "configmaps", namespace="kube-system")
    assert not charm.may("create", "clusterrolebindings", rbac)
    assert not charm.may("escalate", "clusterroles", rbac)
    assert not charm.may("create", "serviceaccounts", namespace="kube-system")


def test_its_rights_follow_the_options_and_shrink_again(charm: Charm) -> None:
    charm.ensure(sync_config=SYNC, sync_credentials="/it", sync_prune="all")
    assert charm.may("delete", "namespaces")
    assert not charm.may("list", "pods")
    charm.ensure(sync_config=SYNC, sync_credentials="/it", sync_prune="empty")
    assert charm.may("list", "pods")
    charm.ensure(policy_configmap="default/the-policy")
    assert charm.may("watch", "configmaps", namespace="default", name="the-policy")
    assert not charm.may("watch", "configmaps", namespace="default", name="another")
    assert not charm.may("watch", "configmaps", namespace="kube-system", name="the-policy")
    assert not charm.may("create", "namespaces")
    assert not charm.may("delete", "namespaces")
    charm.ensure()
    assert charm.left() == []


def test_its_token_is_kept_until_half_of_its_life_is_over_and_renewed_then(charm: Charm) -> None:
    charm.ensure(sync_config=SYNC)
    first = charm.token
    charm.ensure(sync_config=SYNC)
    assert charm.token == first
    record = json.loads(charm.places.cluster_user.read_text())
    charm.places.cluster_user.write_text(json.dumps({**record, "renew": 0}))
    charm.ensure(sync_config=SYNC)
    assert charm.token != first
    second = charm.token
    # Somebody removed the service account: its token is worth nothing any more.
    assert charm.server.send("DELETE", f"{ACCOUNTS}/kubernetes-keystone-1", charm.server.admin_token)[0] == 200
    charm.ensure(sync_config=SYNC)
    assert charm.token != second
    assert charm.may("create", "namespaces")


def test_an_api_server_that_is_away_is_told_and_what_was_there_stays(charm: Charm) -> None:
    charm.ensure(sync_config=SYNC)
    before, admin = charm.token, charm.layout.admin_kubeconfig.read_text()
    charm.layout.admin_kubeconfig.write_text(admin.replace(charm.server.admin_token, "wrong"))
    with pytest.raises(cluster_user.NotAvailable, match="401") as caught:
        charm.ensure(sync_config=SYNC)
    assert "wrong" not in str(caught.value)
    charm.layout.admin_kubeconfig.write_text(admin)
    assert charm.token == before


def test_an_operators_kubeconfig_is_taken_whole_if_it_is_roots_alone(charm: Charm, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text(charm.layout.admin_kubeconfig.read_text().replace("127.0.0.1", "api.example"))
    options = {"sync_config": SYNC, "sync_kubeconfig": str(theirs), "api_server": "manual"}
    with pytest.raises(ConfigError, match="is not root's alone"):
        charm.ensure(layout=None, **options)
    theirs.chmod(0o600)
    (tmp_path / "link").symlink_to(theirs)
    with pytest.raises(ConfigError, match="link is a link"):
        charm.ensure(layout=None, **{**options, "sync_kubeconfig": str(tmp_path / "link")})
    charm.ensure(layout=None, **options)
    found = yaml.safe_load(charm.places.kubeconfig.read_text())
    assert found["clusters"][0]["cluster"]["server"] == f"https://api.example:{charm.server.port}"
    assert charm.token == charm.server.admin_token
    assert charm.left() == []
    with pytest.raises(ConfigError, match="is not on this unit's machine"):
        charm.ensure(layout=None, **{**options, "sync_kubeconfig": str(tmp_path / "none")})
