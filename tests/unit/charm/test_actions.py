"""What the actions give back, and how they fail."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ops.testing
import pytest

import apiserver
import bindings
from apiserver import byhand

POLICY = "- match: []\n- match: []\n"


def test_reload_policy_reports_what_the_running_service_has(unit, machine):
    unit.configure(policy=POLICY).run()
    machine.places.policy.write_text("[]")  # somebody's hand

    assert unit.action("reload-policy") == {
        "hash": hashlib.sha256(machine.places.policy.read_bytes()).hexdigest(),
        "rules": 2,
        "loaded": "2026-01-01T00:00:00Z",
    }


def test_reload_policy_tells_what_was_surely_not_meant(unit):
    unit.configure(policy=POLICY).run()

    results = unit.configure(policy="- match: []  # warn\n").action("reload-policy")
    assert results["warnings"] == "line 1, item 1: no one can reach this"


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [("- {match: []}\n- {}\n", "policy: line 2, item 2, key match: is missing"), ("", "policy: is empty")],
)
def test_reload_policy_refuses_a_bad_policy_and_changes_nothing(unit, machine, policy, complaint):
    unit.configure(policy=POLICY).run()
    before = machine.snapshot()

    with pytest.raises(ops.testing.ActionFailed, match=complaint):
        unit.configure(policy=policy).action("reload-policy")
    assert machine.snapshot() == before


def test_reload_policy_puts_back_what_the_service_does_not_take(unit, machine):
    unit.configure(policy=POLICY).run()
    before = machine.places.policy.read_bytes()
    machine.refuses["policy"] = "too many items"

    with pytest.raises(ops.testing.ActionFailed, match="refuses its policy: too many items"):
        unit.configure(policy="- match: []").action("reload-policy")
    assert machine.places.policy.read_bytes() == before


def test_reload_policy_says_when_none_is_in_force_yet(unit):
    unit.run()

    with pytest.raises(ops.testing.ActionFailed, match="no policy is in force on this unit yet"):
        unit.configure(policy=POLICY).action("reload-policy")


def test_check_access_names_the_item_that_allows(unit):
    unit.configure(policy=POLICY).run()

    request = {"user": "alice", "roles": "reader, member", "resource": "pods/log", "namespace": "default"}
    assert unit.action("check-access", **request) == {
        "allowed": "true", "reason": "because", "item": 1,
    }  # fmt: skip


def test_check_access_says_why_each_item_missed_in_bounded_length(unit):
    unit.configure(policy=POLICY).run()

    results = unit.action("check-access", user="alice", project="p1", resource="pods/log", namespace="default")
    assert results["allowed"] == "false"
    lines = results["misses"].splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 10 more"
    assert '"resource": "pods"' in lines[0]
    assert '"subresource": "log"' in lines[0]
    assert '"project": "p1"' in lines[0]


def test_check_access_takes_a_path(unit):
    unit.configure(policy=POLICY).run()

    misses = unit.action("check-access", user="alice", path="/healthz")["misses"]
    assert '"path": "/healthz"' in misses
    assert '"resource"' not in misses


def test_check_access_takes_access_rules_as_openstack_does(unit):
    unit.configure(policy=POLICY).run()

    rules = '[{"service": "kubernetes", "method": "GET", "path": "/**", "id": "r"}]'
    misses = unit.action("check-access", **{"user": "alice", "resource": "pods", "access-rules": rules})["misses"]
    assert '"access_rules": [{"method": "GET", "path": "/**", "service": "kubernetes"}]' in misses
    assert "access_rules" not in unit.action("check-access", user="alice", resource="pods")["misses"]
    for bad, where in (
        ("GET /**", "access-rules"),
        ("{}", "access-rules"),
        ('[{"path": "/"}]', "access-rules.0.service"),
    ):
        with pytest.raises(ops.testing.ActionFailed, match=f"^{where}: .* expected JSON such as"):
            unit.action("check-access", **{"user": "alice", "resource": "pods", "access-rules": bad})


@pytest.mark.parametrize("parameters", [{}, {"resource": "pods", "path": "/healthz"}])
def test_check_access_wants_a_resource_or_a_path(unit, parameters):
    unit.configure(policy=POLICY).run()

    with pytest.raises(ops.testing.ActionFailed, match=r"either resource= .* or path="):
        unit.action("check-access", user="alice", **parameters)


@pytest.mark.parametrize("action", ["check-access", "show-webhook-config"])
def test_before_anything_is_installed_actions_say_so(unit, machine, action):
    parameters = {"user": "alice", "resource": "pods"} if action == "check-access" else {}

    with pytest.raises(ops.testing.ActionFailed, match="installed"):
        unit.action(action, **parameters)
    assert machine.snapshot() == {}


def test_show_webhook_config_hides_the_private_key(unit, machine, wiring):
    unit.configure(policy=POLICY).run()
    results = unit.action("show-webhook-config")

    assert "client-key-data: <not shown>" in results["kubeconfig"]
    assert b"client-key-data: <not shown>" not in next(iter(wiring.desired.files.values()))
    assert (
        f"--authorization-webhook-config-file={wiring.layout.config_folder}/authorization.kubeconfig"
        in results["flags"]
    )
    assert results["state"] == "in-force"
    assert results["layout"] == "charmed, snap.kube-apiserver.daemon.service with its flags"
    assert "commands" not in results


def test_show_webhook_config_makes_no_authority_that_the_api_server_does_not_know(unit, machine):
    unit.run()
    (machine.places.tls / "ca.key").unlink()
    before = machine.snapshot()

    with pytest.raises(ops.testing.ActionFailed, match="the certificates are missing"):
        unit.action("show-webhook-config")
    assert machine.snapshot() == before


@pytest.fixture
def control_plane(machine) -> Path:
    """The files of a Charmed Kubernetes control plane, as far as it is known by them."""
    args = machine.places.root / "var/snap/kube-apiserver/current/args"
    args.parent.mkdir(parents=True)
    args.write_text('--authorization-mode="Node,RBAC"\n')
    (machine.places.units / "snap.kube-apiserver.daemon.service").write_text("")
    return args


def test_show_webhook_config_prints_the_control_planes_own_commands_for_manual(unit, machine, wiring, control_plane):
    wiring.by_hand = [byhand.Server(wiring.layout, True, ("--this is not set", "--that is wrong"))]
    unit.configure(policy=POLICY, api_server="manual").run()
    results = unit.action("show-webhook-config")

    endpoint = f"https://127.0.0.1:{machine.endpoint_port}/webhook"
    first, second, *rest = results["commands"].splitlines()
    assert first == f"juju config {unit.relation.remote_app_name} authn-webhook-endpoint={endpoint}"
    assert second == f"juju config {unit.relation.remote_app_name} authorization-mode=Node,RBAC,Webhook \\"
    assert rest[0] == "  authorization-webhook-config-file=\"$(cat <<'EOF'"
    assert rest[-2:] == ["EOF", ')"']
    assert "client-key-data" not in results["commands"]
    assert results["kubeconfig"] in results["commands"]
    assert results["layout"] == "charmed"
    assert results["missing"] == "charmed: --this is not set\ncharmed: --that is wrong"
    assert "--authorization-mode=Node,RBAC,Webhook" in results["flags"].splitlines(), "the value as it would be"


def test_show_webhook_config_for_manual_without_a_policy_sets_no_authorization(unit, control_plane):
    unit.configure(api_server="manual").run()

    results = unit.action("show-webhook-config")
    assert "authorization" not in results["commands"] + results["flags"]


def test_show_webhook_config_for_manual_where_nothing_is_found_prints_what_any_api_server_needs(unit, machine):
    unit.configure(policy=POLICY, api_server="manual").run()
    results = unit.action("show-webhook-config")

    assert results["layout"] == "unknown"
    assert f"sudo install -D -m 0600 {machine.places.by_hand} " in results["commands"]
    assert "#   --authorization-mode=Node,RBAC,Webhook" in results["commands"]
    assert "missing" not in results


def test_show_webhook_config_tells_how_two_authorization_webhooks_go_together(unit, machine, wiring):
    wiring.raises["check"] = apiserver.Conflict("another authorization webhook is set already")
    wiring.over = apiserver.Conversion("authorizers: …\n", ("# on each machine:", "sudo it"))
    assert unit.configure(policy=POLICY).run().name == "blocked"
    before = machine.snapshot()
    results = unit.action("show-webhook-config")

    assert results["commands"] == "# on each machine:\nsudo it"
    assert results["authorization-config"] == "authorizers: …\n"
    assert "name: kubernetes-keystone" in results["authorizer"]
    assert "startsWith('keystone:')" in results["authorizer"]
    assert machine.snapshot() == before


def test_show_webhook_config_shows_what_is_in_the_authorization_configuration(unit, wiring):
    wiring.structured = "/etc/authorization/config.yaml"
    unit.configure(policy=POLICY, upstream_compatible=True).run()
    results = unit.action("show-webhook-config")

    assert "authorization" not in results["flags"]
    assert "!request.user.startsWith('system:')" in results["authorizer"]
    assert "commands" not in results


def test_show_webhook_config_tells_of_bindings_where_names_are_bare_and_says_so_if_it_cannot(unit):
    unit.run()
    assert "bindings" not in unit.action("show-webhook-config")
    unit.configure(upstream_compatible=True).run()

    assert unit.action("show-webhook-config")["bindings"].startswith("cannot be listed: ")


def test_show_webhook_config_gives_no_more_commands_for_bindings_than_people_read(unit, monkeypatch):
    unit.configure(upstream_compatible=True).run()
    lines = [f"line {n:02}" for n in range(60)]
    monkeypatch.setattr("bindings.of_bare_names", lambda _: bindings.Reached(lines, lines))
    results = unit.action("show-webhook-config")

    shown = results["native-names"].splitlines()
    assert shown[0].startswith("# leave out what is not meant for users of Keystone's")
    assert shown[1:] == [*lines[:50], "# and 10 more, which are shown when these have been run"]
    assert results["bindings"].splitlines()[-1] == "and 10 more"
    monkeypatch.setattr("bindings.of_bare_names", lambda _: bindings.Reached(lines, []))
    assert "native-names" not in unit.action("show-webhook-config")


def test_actions_leave_the_status_as_it_is(unit):
    status = unit.configure(policy=POLICY).run()
    unit.action("reload-policy")

    assert (unit.state.unit_status.name, unit.state.unit_status.message) == (status.name, status.message)
