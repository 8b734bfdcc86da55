"""Charmed Kubernetes' own way: its token webhook asks us, and the API server is told by us only what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from testbed.shell import Session, Shell
from testbed.stage import Stage
from testbed.traffic import Traffic, lives_of
from tests.machine.test_story import READERS

ENDPOINT = "https://127.0.0.1:8443/webhook"


def pods(stage: Stage, token: str) -> int:
    return stage.cluster.status("/api/v1/namespaces/default/pods", token)


def given(stage: Stage) -> str:
    """The running API server's flags."""
    pid = stage.machine.show(stage.cluster.service, "MainPID")["MainPID"]
    return stage.machine.read(f"/proc/{pid}/cmdline").decode().replace("\0", "\n")


def test_our_token_flag_gives_way_and_the_policy_stays(stage: Stage, token: Callable[[], str]) -> None:
    stage.unit.deploy(stage.charm, {**stage.keystone_options, "policy": READERS})
    stage.unit.relate()
    assert "kubernetes-keystone/authentication.kubeconfig" in given(stage)
    assert pods(stage, token()) == 200
    with Traffic(stage.cluster) as traffic:
        stage.cluster.authn_endpoint = ENDPOINT
        stage.cluster.control_plane_reconcile()
        stage.unit.update_status()
        assert stage.unit.status == (
            "active",
            "ready: charmed, asked by the cluster's own token webhook, policy 1 rules",
        ), stage.unit.debug_log()
        stage.cluster.wait_ready()
        outcome = traffic.outcome()
    assert outcome.lost == []
    assert "kubernetes-keystone/authentication.kubeconfig" not in given(stage)
    assert "kubernetes-keystone/authorization.kubeconfig" in given(stage)


def test_a_keystone_user_comes_by_way_of_the_clusters_own_webhook(stage: Stage, token: Callable[[], str]) -> None:
    alices = token()
    assert pods(stage, alices) == 200
    assert stage.cluster.status("/api/v1/nodes", alices) == 403
    known = dict(stage.cluster.webhook_reviews())
    assert known[stage.keystone.digest(alices)] == "keystone:alice"
    config = stage.cluster.kubeconfig(alices)
    user = json.loads(stage.cluster.kubectl("auth", "whoami", "-o", "json", kubeconfig=config).stdout)
    assert user["status"]["userInfo"]["username"] == "keystone:alice"


def test_no_cluster_token_passes_us(stage: Stage) -> None:
    metrics = stage.machine.shell("curl -qsS http://127.0.0.1:8444/metrics")
    for known in stage.cluster.tokens.values():
        stage.cluster.status("/api/v1/namespaces", known.token)
    assert stage.cluster.status("/api/v1/namespaces", stage.cluster.tokens["admin"].token) == 200

    def reviews(text: str) -> list[str]:
        return [line for line in text.splitlines() if "reviews_total{" in line and "token" in line.lower()]

    assert reviews(metrics), "these metrics say nothing about token reviews, so this test could not fail"
    assert reviews(stage.machine.shell("curl -qsS http://127.0.0.1:8444/metrics")) == reviews(metrics)


def test_without_a_policy_nothing_of_ours_is_on_the_api_server(stage: Stage, token: Callable[[], str]) -> None:
    stage.unit.reset("policy")
    assert stage.unit.status.message.endswith("asked by the cluster's own token webhook, no policy, RBAC alone decides")
    assert "kubernetes-keystone" not in given(stage)
    before = len(lives_of(stage.cluster))
    assert pods(stage, token()) == 403
    stage.unit.update_status()
    assert len(lives_of(stage.cluster)) == before


def test_by_hand_the_status_says_what_is_missing_and_notices_when_the_printed_commands_have_been_run(
    stage: Stage, token: Callable[[], str], tmp_path: Path
) -> None:
    cluster, unit = stage.cluster, stage.unit
    cluster.configure({})
    unit.configure(api_server="manual", policy=READERS)
    assert unit.status.name == "blocked"
    assert (
        "charmed: --authentication-token-webhook-config-file=/root/cdk/auth-webhook/auth-webhook-conf.yaml "
        "leads to https://127.0.0.1:5000/v1, which does not ask us; "
        "--authorization-webhook-config-file is not set; --authorization-mode=Node,RBAC has no Webhook."
    ) in unit.status.message
    before, args = len(lives_of(cluster)), cluster.args()
    unit.update_status()
    assert (len(lives_of(cluster)), cluster.args()) == (before, args)

    told = unit.run_action("show-webhook-config")
    with Shell(stage.juju, tmp_path) as shell, Session(shell, tmp_path) as session:
        done = session.run(told.results["commands"])
    assert done.code == 0, done.text
    before, args = len(lives_of(cluster)), cluster.args()
    unit.update_status()
    ready = "charmed, asked by the cluster's own token webhook, policy 1 rules"
    assert unit.status == ("active", f"ready: manual, {ready}")
    assert pods(stage, token()) == 200
    assert stage.cluster.status("/api/v1/nodes", token()) == 403
    unit.reset("api-server")
    assert unit.status == ("active", f"ready: {ready}"), "there is nothing left to set"
    assert (len(lives_of(cluster)), cluster.args()) == (before, args)


def test_when_the_option_is_unset_our_flag_is_back(stage: Stage, token: Callable[[], str]) -> None:
    stage.cluster.configure({})
    args = stage.cluster.args()
    stage.unit.update_status()
    assert stage.unit.status == ("active", "ready: charmed, policy 1 rules")
    assert "kubernetes-keystone/authentication.kubeconfig" in given(stage)
    assert pods(stage, token()) == 200
    stage.unit.remove()
    assert stage.cluster.args() == args
    assert not stage.machine.exists("/etc/kubernetes-keystone")
    stage.cluster.wait_ready()
