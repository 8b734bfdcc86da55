"""What the charm does about sync and a policy in the cluster: checks, files, the status, the action."""

from __future__ import annotations

import dataclasses
import json

import ops.testing
import pytest

import cluster_user

SYNC = "data-types-to-sync: [projects]"
SECRET = "very-secret-words"


@pytest.fixture
def user(monkeypatch):
    """The authenticator's user in the cluster, which is tested on a real one elsewhere."""
    monkeypatch.setattr(cluster_user, "ensure", lambda places, config, layout, unit, group: None)


@pytest.fixture
def credentials(tmp_path):
    path = tmp_path / "credentials"
    path.write_text(f"password: {SECRET}")
    path.chmod(0o600)
    return path


def test_settings_and_files_say_what_the_options_say_and_go_with_them(unit, machine, user, credentials):
    unit.configure(sync_config=SYNC, sync_credentials=str(credentials), sync_prune="empty").run()

    places = machine.places
    assert machine.settings()["sync"] == {
        "config": str(places.sync_config),
        "credentials": str(places.sync_credentials),
        "prune": "empty",
        "interval": 300,
    }
    assert machine.settings()["kubeconfig"] == str(places.kubeconfig)
    assert places.sync_config.read_text() == SYNC
    assert places.sync_credentials.read_text() == credentials.read_text()
    assert places.sync_credentials.stat().st_mode & 0o777 == 0o640
    places.kubeconfig.write_text("a kubeconfig")

    unit.configure(sync_config="", sync_credentials="", sync_prune="off").run()
    assert machine.settings()["sync"] is machine.settings()["kubeconfig"] is None
    assert not any(path.exists() for path in (places.sync_config, places.sync_credentials, places.kubeconfig))


def test_a_bad_sync_configuration_changes_nothing_and_names_the_line(unit, machine, user):
    unit.configure(sync_config=SYNC).run()
    before = machine.snapshot()

    status = unit.configure(sync_config=f"{SYNC} # bad").run()
    assert status.name == "blocked"
    assert status.message == "sync-config: line 2, key data-types-to-sync: is bad; nothing was changed"
    assert machine.snapshot() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sync_credentials": SECRET, "sync_config": SYNC}, "sync-credentials: is neither"),
        ({"sync_credentials": "/it"}, "sync-credentials: is set without sync-config"),
        ({"sync_config": SYNC, "sync_prune": "all"}, "sync-prune: needs sync-credentials"),
        ({"sync_config": SYNC, "sync_prune": "some"}, "sync-prune: "),
        ({"sync_config": SYNC, "api_server": "manual"}, "sync-kubeconfig: is needed with api-server=manual"),
        ({"sync_config": SYNC, "sync_kubeconfig": "admin.conf"}, "sync-kubeconfig: is not the absolute path"),
        ({"policy_configmap": "policy"}, "policy-configmap: 'policy' is not namespace/name"),
        (
            {"policy_configmap": "a/b", "authz_server_url": "https://other.example/"},
            "policy-configmap: would never be read",
        ),
    ],
)
def test_an_option_that_cannot_be_used_is_named(unit, user, options, message):
    status = unit.configure(**options).run()
    assert status.name == "blocked"
    assert status.message.startswith(message)
    assert SECRET not in unit.log + status.message


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (f"password: {SECRET}", 0o640, "is not root's alone (its mode is 0640)"),
        (f"passwort: {SECRET}", 0o600, "there is no password"),
        (f"password: {SECRET}".encode("utf-16"), 0o600, "is not a text in UTF-8"),
        pytest.param(f"# {SECRET}\n" * 2**17, 0o600, "has more than 1024 KiB", id="large"),
        (None, 0o600, "is not on this unit's machine"),
    ],
)
def test_credentials_that_cannot_be_used_are_named_and_never_shown(unit, user, tmp_path, content, mode, message):
    path = tmp_path / "bad"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
    status = unit.configure(sync_config=SYNC, sync_credentials=str(path)).run()
    assert status.name == "blocked"
    assert status.message.startswith("sync-credentials: ")
    assert message in status.message
    assert SECRET not in unit.log + status.message


def test_credentials_may_be_a_juju_secret(unit, machine, user):
    held = ops.testing.Secret({"username": "sync", "password": SECRET})
    unit.state = dataclasses.replace(unit.state, secrets=frozenset({held}), leader=False)
    status = unit.configure(sync_config=SYNC, sync_credentials=held.id).run()
    assert status.name == "active", status.message
    assert json.loads(machine.places.sync_credentials.read_text()) == {"username": "sync", "password": SECRET}
    assert SECRET not in unit.log + str(unit.history)

    status = unit.configure(sync_credentials="secret:d5t9c7n1vs7s0a3q2g10").run()
    assert status.name == "blocked"
    assert "cannot be read: juju grant-secret" in status.message


def test_a_cluster_that_does_not_answer_is_told_and_keeps_nobody_out(unit):
    status = unit.configure(sync_config=SYNC).run()
    assert status.name == "active"
    assert "cannot read the administrator's kubeconfig" in status.message


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ({"sync": {"error": "line 1", "passes": {"error": None}}}, "sync: line 1"),
        ({"sync": {"error": None, "passes": {"error": "a pass failed: 401"}}}, "sync: a pass failed: 401"),
        ({"sync": {"error": None, "passes": {"set": True, "error": None}}}, ", sync"),
        (
            {"sync": {"error": None, "passes": {"set": False, "error": None}}},
            "sync at logins alone, see sync-credentials",
        ),
    ],
)
def test_the_status_tells_how_sync_goes(unit, machine, user, says, told):
    machine.says = says
    assert unit.configure(sync_config=SYNC).run().message.endswith(told)
    assert (told in unit.log) == told.startswith("sync: "), "what is wrong, and nothing else"


@pytest.mark.parametrize(
    ("state", "source", "error", "told"),
    [
        ("present", "configmap", None, "the policy in force is a/b's, 7 rules"),
        ("present", "configmap", "a/b: line 3", "policy-configmap: the policy stays as it was: a/b: line 3"),
        ("absent", "option", None, "policy-configmap a/b is absent"),
    ],
)
def test_the_status_tells_which_policy_is_in_force(unit, machine, wiring, user, state, source, error, told):
    machine.says = {"configmap": {"name": "a/b", "state": state, "error": None}, "source": source, "error": error}
    machine.says |= {"rules": 7}
    status = unit.configure(policy_configmap="a/b").run()
    assert status.message.endswith(told)
    assert machine.settings()["policy_configmap"] == "a/b"
    # The API server is to ask us about access, whatever the option policy says.
    assert wiring.desired is not None
    assert any(flag.name == "authorization-mode" for flag in wiring.desired.flags)


def test_the_action_gives_a_summary_and_leaves_a_table(unit, machine, user, credentials):
    unit.configure(sync_config=SYNC, sync_credentials=str(credentials)).run()
    results = unit.action("sync", dry_run=True)
    assert results == {
        "dry-run": "true",
        "found": "2 projects, 3 users, 4 role assignments",
        "changes": "create Namespace: 2",
        "problems": 1,
        "calls": "6 to the API server, 5 to Keystone, 0.5 s",
        "report": str(machine.places.sync_report),
        "first-problems": "RoleBinding a/b: because",
    }
    assert machine.places.sync_report.stat().st_mode & 0o777 == 0o600
    assert machine.places.sync_report.read_text().startswith("what")
    assert unit.action("sync")["dry-run"] == "false"


def test_the_action_says_what_it_lacks(unit, user, credentials):
    unit.configure(sync_config=SYNC).run()
    with pytest.raises(ops.testing.ActionFailed, match="sync-credentials: is empty"):
        unit.action("sync")
    with pytest.raises(ops.testing.ActionFailed, match="sync-config: is empty"):
        unit.configure(sync_config="").action("sync")
    unit.configure(sync_config=SYNC, sync_credentials=str(credentials), sync_prune="all").run()
    with pytest.raises(ops.testing.ActionFailed, match="sync: Keystone is away"):
        unit.action("sync")
