"""What becomes of the machine and of the status, event by event."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import Any

import ops
import ops.testing
import pytest

import again
import apiserver
import authenticator
import webhook
from apiserver import byhand

POLICY = '[{"match": [{"type": "role", "values": ["member"]}], "resource": {"verbs": ["get"]}}]'
ANOTHER = "- match: []\n- match: []\n"
PRINTS = "The action show-webhook-config prints the commands"


@pytest.mark.parametrize(
    "event",
    ["start", "config_changed", "update_status", "upgrade_charm", "relation_created",
     "relation_joined", "relation_changed"],
)  # fmt: skip
def test_every_event_of_a_related_unit_brings_everything_into_force(unit, machine, wiring, event):
    status = unit.run(event)

    assert status == ops.ActiveStatus("ready: charmed, no policy, RBAC alone decides")
    assert machine.active(authenticator.SERVICE)
    assert machine.active(authenticator.SOCKET)
    assert wiring.desired is not None
    assert unit.state.workload_version == "1.2.3"


def test_install_comes_before_the_relation_and_says_nothing_of_it(unit, machine, wiring):
    state = unit.unrelate().state
    after = unit.context.run(unit.context.on.install(), state)

    assert after.unit_status == state.unit_status, "Juju's own: installing charm software"
    assert machine.snapshot() == {}
    assert wiring.order == []


@pytest.mark.parametrize("event", ["start", "config_changed", "update_status", "upgrade_charm", "stop", "remove"])
def test_a_unit_without_a_relation_touches_nothing_and_says_what_is_missing(unit, machine, wiring, event):
    status = unit.unrelate().run(event)

    assert isinstance(status, ops.WaitingStatus)
    assert status.message == "not related: juju integrate kubernetes-control-plane kubernetes-keystone"
    assert machine.snapshot() == {}
    assert machine.calls == []
    assert wiring.order == []


def test_a_second_run_changes_nothing_and_restarts_nothing(unit, machine, wiring):
    unit.configure(policy=POLICY).run()
    before = machine.snapshot()
    machine.forget_calls()

    assert unit.run("update_status") == ops.ActiveStatus("ready: charmed, policy 1 rules")

    assert machine.snapshot() == before
    assert machine.calls == []
    assert wiring.restarts == 1


def test_the_flags_are_those_that_we_own_and_no_others(unit, wiring):
    unit.run()
    folder = wiring.layout.config_folder
    without = [
        ("authentication-token-webhook-config-file", str(folder / "authentication.kubeconfig")),
        ("authentication-token-webhook-version", "v1"),
        ("authentication-token-webhook-cache-ttl", "10s"),
    ]
    assert [tuple(flag) for flag in wiring.desired.flags] == without

    unit.configure(policy=POLICY).run()
    assert [tuple(flag) for flag in wiring.desired.flags] == [
        *without,
        ("authorization-mode", "Webhook"),
        ("authorization-webhook-config-file", str(folder / "authorization.kubeconfig")),
        ("authorization-webhook-version", "v1"),
        ("authorization-webhook-cache-authorized-ttl", "5s"),
        ("authorization-webhook-cache-unauthorized-ttl", "5s"),
    ]
    assert set(wiring.desired.files) == {folder / "authentication.kubeconfig", folder / "authorization.kubeconfig"}


def test_where_authorization_is_a_file_ours_is_an_entry_of_it_and_no_flag(unit, machine, wiring):
    def authorizer() -> apiserver.Authorizer | None:
        return wiring.desired.authorizer

    wiring.structured = "/etc/authorization/config.yaml"
    unit.run()
    assert authorizer() is None

    assert unit.configure(policy=POLICY).run().message == "ready: charmed, policy 1 rules"
    assert not any(flag.name.startswith("authorization-") for flag in wiring.desired.flags)
    assert [path.name for path in wiring.desired.files] == ["authentication.kubeconfig"]
    entry = authorizer()
    assert entry is not None
    assert entry.kubeconfig == next(iter(wiring.desired.files.values()))
    assert entry.url == f"https://127.0.0.1:{machine.endpoint_port}/webhook"
    assert entry.conditions[0] == "has(request.user) && request.user.startsWith('keystone:')"

    unit.configure(upstream_compatible=True).run()
    changed = authorizer()
    assert changed is not None
    assert changed.conditions[1:] == entry.conditions[1:]
    assert "startsWith('system:')" in changed.conditions[0]

    wiring.asked_already = apiserver.Asked(authentication=True)
    unit.run()
    assert wiring.desired.flags == ()
    assert authorizer() is not None


def test_the_api_servers_restart_is_announced_in_status_and_log(unit):
    unit.run()

    assert unit.history[-2:] == ["installing the authenticator", "restarting the API server with Keystone's flags"]
    assert "restarting the API server with Keystone's flags" in unit.log


def test_keystones_silence_is_said_in_status_and_log_as_in_the_journal(unit, machine):
    machine.outage = "Keystone cannot be reached: Connection refused"
    said = "no answers about Keystone's tokens: Keystone cannot be reached: Connection refused"

    assert unit.run() == ops.ActiveStatus(f"ready: charmed, no policy, RBAC alone decides, {said}")
    assert said in unit.log
    machine.outage = None
    assert unit.run("update_status") == ops.ActiveStatus("ready: charmed, no policy, RBAC alone decides")


def test_a_silent_webhook_of_the_clusters_is_said_in_status_and_log_as_in_the_journal(unit, machine):
    machine.chain_outage = "the cluster's own token webhook cannot be reached: Connection refused"

    assert unit.run() == ops.ActiveStatus(f"ready: charmed, no policy, RBAC alone decides, {machine.chain_outage}")
    assert machine.chain_outage in unit.log


def test_what_the_endpoint_knows_of_a_cluster_token_that_is_not_taken_stands_behind_it(unit, wiring, monkeypatch):
    wiring.raises = {"apply": apiserver.NotReady("the API server answers 401")}
    monkeypatch.setattr(webhook, "in_the_way", lambda *_: "the webhook is silent")

    assert unit.run() == ops.WaitingStatus("the API server answers 401: the webhook is silent")


def test_what_auto_has_found_is_said_and_why(unit):
    unit.run()

    assert "api-server=auto: charmed, snap.kube-apiserver.daemon.service with its flags" in unit.log


def test_behind_the_clusters_own_webhook_nothing_is_set_without_a_policy(unit, machine, wiring):
    wiring.asked_already = apiserver.Asked(authentication=True)

    assert unit.run().message == (
        "ready: charmed, asked by the cluster's own token webhook, no policy, RBAC alone decides"
    )
    assert wiring.order == ["detect", "check"]
    assert machine.settings()["chained"] is None
    assert machine.settings()["tls"]["require_client_certificate"] is False, "that webhook shows none"


def test_behind_the_clusters_own_webhook_only_what_is_missing_is_set(unit, machine, wiring):
    wiring.asked_already = apiserver.Asked(authentication=True)
    unit.configure(policy=POLICY).run()

    assert {flag.name.partition("-")[0] for flag in wiring.desired.flags} == {"authorization"}
    assert [path.name for path in wiring.desired.files] == ["authorization.kubeconfig"]
    assert machine.settings()["chained"] is None
    wiring.asked_already = apiserver.Asked(authentication=True, authorization=True)
    unit.run()
    assert wiring.desired is None, "told about access as well, the API server needs no flag of ours"


def test_an_authorization_webhook_at_our_address_that_cannot_reach_us_is_no_readiness(unit, machine, wiring):
    """Such as an authenticator before us left: by its CA nobody knows ours."""
    wiring.asked_already = apiserver.Asked(authentication=True, authorization=True)
    lacks = "/its/file does not name the CA by which our endpoint is known"
    wiring.by_hand = [apiserver.byhand.Server(wiring.layout, True, (lacks,), behind=True)]
    status = unit.configure(policy=POLICY).run()

    assert isinstance(status, ops.BlockedStatus)
    assert lacks in status.message
    assert "Take that authorization webhook out, and ours is set" in status.message
    assert machine.active("kubernetes-keystone.service"), "tokens are answered all the same"
    wiring.by_hand = [apiserver.byhand.Server(wiring.layout, True, (), behind=True)]
    assert unit.run().message == "ready: charmed, asked by the cluster's own token webhook, policy 1 rules"


def test_flags_lead_to_us_no_more_before_we_stop_asking_the_clusters_own_webhook(unit, machine, wiring):
    """A cluster token that came here between the two would be refused."""
    unit.configure(policy=POLICY).run()
    assert machine.settings()["chained"]
    wiring.asked_already = apiserver.Asked(authentication=True)
    chained_at_removal = []
    remove = wiring.remove
    apiserver.remove = lambda *a: chained_at_removal.append(machine.settings()["chained"]) or remove(*a)
    unit.run()

    assert chained_at_removal[0]
    assert machine.settings()["chained"] is None
    assert {flag.name.partition("-")[0] for flag in wiring.desired.flags} == {"authorization"}


def test_from_one_policy_to_another_nothing_restarts(unit, machine, wiring):
    unit.configure(policy=POLICY).run()
    machine.forget_calls()

    assert unit.configure(policy=ANOTHER).run() == ops.ActiveStatus("ready: charmed, policy 2 rules")

    assert machine.calls == []
    assert wiring.restarts == 1
    assert json.loads(machine.places.policy.read_text()) == [{"match": []}, {"match": []}]


def test_from_no_policy_to_one_and_back_is_one_restart_each(unit, machine, wiring):
    unit.run()
    unit.configure(policy=POLICY).run()
    assert wiring.restarts == 2
    assert machine.settings()["policy"] == str(machine.places.policy)

    unit.configure(policy="").run()
    assert wiring.restarts == 3
    assert machine.settings()["policy"] is None
    assert not machine.places.policy.exists()


def test_the_settings_say_what_the_options_say(unit, machine, keystone_url):
    unit.configure(
        token_cache_ttl=30, outage_grace=0, default_domain="abc", log_level="debug", upstream_compatible=True
    )
    assert "upstream-compatible names" in unit.run().message

    tls = machine.places.tls
    assert machine.settings() == {
        "listen": f"127.0.0.1:{machine.endpoint_port}",
        "private_listen": f"127.0.0.1:{machine.private_port}",
        "tls": {
            "certificate": str(tls / "server.crt"),
            "key": str(tls / "server.key"),
            "client_ca": str(tls / "ca.crt"),
            "require_client_certificate": True,
        },
        "keystone": {"url": keystone_url, "ca": None},
        "default_domain": "abc",
        "upstream_compatible": True,
        "token_cache_ttl": 30,
        "outage_grace": 0,
        "policy": None,
        "chained": str(machine.places.etc / "chained"),
        "flags": str(machine.places.state / "wanted"),
        "authentication_backend": None,
        "authorization_backend": None,
        "kubeconfig": None,
        "sync": None,
        "policy_configmap": None,
        "log_level": "debug",
    }


def test_secrets_and_settings_are_not_for_everybody(unit, machine):
    unit.configure(policy=POLICY).run()

    modes = {path.name: path.stat().st_mode & 0o777 for path in machine.places.etc.rglob("*") if path.is_file()}
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o007} == {}
    assert modes["ca.key"] == modes["client.key"] == 0o600
    assert modes["settings.json"] == modes["policy.json"] == modes["server.key"] == 0o640
    assert machine.places.etc.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"keystone_url": ""}, "keystone-url: is not set"),
        ({"policy": "- {match: []}\n- {}\n"}, "policy: line 2, item 2, key match: is missing"),
        ({"policy": "- [\n"}, "policy: line 2: is not YAML"),
        ({"api_server": "k3s"}, "api-server: 'k3s' is unknown"),
        ({"keystone_url": "http://127.0.0.1:1/v3"}, "keystone-url: http://127.0.0.1:1/v3 does not answer"),
        (
            {"authn_server_url": "https://nowhere.invalid:1"},
            "authn-server-url: https://nowhere.invalid:1 does not answer",
        ),
    ],
)
def test_a_bad_setting_changes_nothing_and_blocks_with_option_and_fix(unit, machine, wiring, options, part):
    unit.configure(policy=POLICY).run()
    before = machine.snapshot()
    machine.forget_calls()
    wiring.order.clear()

    status = unit.configure(**options).run()

    assert isinstance(status, ops.BlockedStatus)
    assert part in status.message
    assert machine.snapshot() == before
    assert machine.calls == []
    assert "apply" not in wiring.order


def test_a_bad_setting_on_a_new_unit_leaves_no_trace(unit, machine):
    assert isinstance(unit.configure(policy="- {}").run(), ops.BlockedStatus)

    assert machine.snapshot() == {}
    assert machine.calls == []


def test_keystone_may_be_down_while_its_url_stays(unit, machine, monkeypatch):
    unit.run()
    monkeypatch.setattr("reach.keystone", lambda *_: pytest.fail("asked again"))

    assert isinstance(unit.run("update_status"), ops.ActiveStatus)


def test_warnings_of_a_policy_are_logged(unit):
    unit.configure(policy="- {match: [warn]}").run()

    assert "item 1: no one can reach this" in unit.log


def test_of_many_warnings_as_many_are_logged_as_people_read(unit, caplog):
    unit.configure(policy="- {match: [" + "warn, " * 60 + "]}").run()

    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("policy: ")]
    assert len(told) == 51
    assert told[-1] == "policy: and 10 more"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (("detect", apiserver.NotFound("no API server found")), ops.WaitingStatus("no API server found")),
        (("detect", apiserver.Ambiguous("charmed, microk8s")), ops.BlockedStatus("charmed, microk8s")),
        (("check", apiserver.Conflict("another webhook")), ops.BlockedStatus("another webhook")),
        (("apply", apiserver.NotReady("not ready yet")), ops.WaitingStatus("not ready yet")),
        (("apply", apiserver.NotOurTurn("another unit restarts")), ops.WaitingStatus("another unit restarts")),
        (
            ("apply", apiserver.ApplyFailed("it crashed", ("a line",))),
            ops.BlockedStatus("it crashed. To try again: set api-server=manual, then api-server=auto"),
        ),
        (("chain", apiserver.WiringError("cannot read")), ops.BlockedStatus("cannot read")),
    ],
)
def test_what_the_wiring_says_becomes_the_status(unit, wiring, error, expected):
    wiring.raises = dict([error])

    assert unit.run() == expected


def test_what_is_waited_for_is_looked_at_every_minute_and_no_longer_than_that(unit, machine, wiring):
    wiring.raises = {"detect": apiserver.NotFound("no API server found")}
    unit.run()
    assert machine.active(again.TIMER)
    command = (machine.places.units / again.SERVICE).read_text()
    assert f'-u {unit.context.app_name}/0 "JUJU_DISPATCH_PATH=hooks/update-status ./dispatch"' in command

    wiring.raises = {}
    assert isinstance(unit.run("update_status"), ops.ActiveStatus)
    assert not machine.active(again.TIMER)
    wiring.raises = {"apply": apiserver.NotOurTurn("another unit restarts")}
    unit.run("update_status")
    assert machine.active(again.TIMER)
    wiring.raises = {}
    unit.run("relation_broken")
    assert not machine.active(again.TIMER)
    assert machine.snapshot() == {}


def test_what_somebody_has_to_change_is_not_looked_at_every_minute(unit, machine, wiring):
    wiring.raises = {"detect": apiserver.Ambiguous("charmed, microk8s")}
    unit.run()
    assert not machine.active(again.TIMER)
    assert machine.snapshot() == {}


def test_a_conflict_is_found_before_anything_is_changed(unit, machine, wiring):
    wiring.raises = {"check": apiserver.Conflict("another webhook")}
    unit.run()

    assert machine.snapshot() == {}
    assert machine.calls == []


def test_the_api_servers_own_words_are_logged_when_it_fails(unit, wiring):
    wiring.raises = {"apply": apiserver.ApplyFailed("it crashed", ("panic: at the disco",))}
    unit.run()

    assert "API server: panic: at the disco" in unit.log


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (apiserver.Kind.PENDING, ops.WaitingStatus),
        (apiserver.Kind.TRIAL, ops.WaitingStatus),
        (apiserver.Kind.BYPASSED, ops.WaitingStatus),
        (apiserver.Kind.FAILED, ops.BlockedStatus),
        (apiserver.Kind.ABSENT, ops.BlockedStatus),
    ],
)
def test_what_is_not_in_force_is_not_called_ready(unit, wiring, kind, status):
    wiring.kind = kind

    assert unit.run() == status("so said the wiring")


def server(*missing: str, layout: Any = None, runs: bool = True, behind: bool = False) -> byhand.Server:
    return byhand.Server(layout, runs, missing, behind)


def test_manual_sets_no_flag_and_asks_for_no_client_certificate(unit, machine, wiring):
    wiring.by_hand = [server(layout=wiring.layout)]
    status = unit.configure(api_server="manual").run()

    assert status == ops.ActiveStatus("ready: manual, charmed, no policy, RBAC alone decides")
    assert wiring.order == []
    assert machine.settings()["chained"] is None
    assert machine.settings()["tls"]["require_client_certificate"] is False
    assert "OnFailure" not in (machine.places.units / authenticator.SERVICE).read_text()


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([], ops.WaitingStatus(f"manual: no API server runs on this machine; {PRINTS}")),
        (
            [server("it does not run", layout="here", runs=False)],
            ops.WaitingStatus(f"manual: no API server runs on this machine (charmed is installed); {PRINTS}"),
        ),
        (
            [server("--one is not set", "--two has no Webhook", layout="here")],
            ops.BlockedStatus(
                "manual, the API server does not ask us yet: charmed: --one is not set; --two has no Webhook. " + PRINTS
            ),
        ),
        (
            [server("--one is not set")],
            ops.BlockedStatus(
                "manual, the API server does not ask us yet: an API server of another kind: --one is not set. " + PRINTS
            ),
        ),
        (
            [server("--one is not set", layout="here"), server("--two is not set")],
            ops.BlockedStatus(
                "manual, the API server does not ask us yet: more than one kind is on this machine, and none asks us: "
                "charmed: --one is not set. an API server of another kind: --two is not set. " + PRINTS
            ),
        ),
        ([server()], ops.ActiveStatus("ready: manual, an API server of another kind, policy 1 rules")),
        (
            [server(layout="here", behind=True)],
            ops.ActiveStatus("ready: manual, charmed, asked by the cluster's own token webhook, policy 1 rules"),
        ),
        (
            [server("--one is not set"), server(layout="here")],
            ops.ActiveStatus("ready: manual, charmed, policy 1 rules"),
        ),
    ],
)
def test_manual_says_what_is_missing_and_notices_when_it_has_been_done(unit, wiring, found, status):
    wiring.by_hand = [replace(one, layout=wiring.layout) if one.layout else one for one in found]

    assert unit.configure(api_server="manual", policy=POLICY).run("update_status") == status
    assert wiring.order == []


def test_manual_has_the_kubeconfig_ready_that_an_operator_copies_and_no_other_way_has_it(unit, machine, wiring):
    wiring.displaced = True
    unit.configure(api_server="manual").run()

    assert b"client-key-data" in machine.places.by_hand.read_bytes()
    assert machine.places.by_hand.stat().st_mode & 0o777 == 0o600
    assert machine.settings()["chained"] == str(wiring.layout.place.chain_file), (
        "who shows its certificate is passed on"
    )
    assert machine.settings()["tls"]["require_client_certificate"] is False

    unit.configure(api_server="auto").run()
    assert not machine.places.by_hand.exists()


def test_from_charmed_to_manual_takes_the_flags_out_first(unit, machine, wiring):
    unit.run()
    unit.configure(api_server="manual").run()

    assert wiring.desired is None
    assert wiring.restarts == 2


def test_a_moved_endpoint_takes_the_flags_out_before_it_moves(unit, machine, wiring):
    unit.run()
    wiring.order.clear()
    unit.configure(authn_server_url="https://localhost:18443/webhook").run()

    assert wiring.order == ["detect", "check", "remove", "chain", "apply"]
    assert machine.settings()["listen"] == "127.0.0.1:18443"
    assert "ListenStream=127.0.0.1:18443" in (machine.places.units / authenticator.SOCKET).read_text()
    assert b'"https://127.0.0.1:18443/webhook"' in next(iter(wiring.desired.files.values()))


def test_certificates_that_are_lost_with_their_ca_take_the_flags_out_before_new_ones_are_made(unit, machine, wiring):
    unit.run()
    wiring.order.clear()
    for path in machine.places.tls.iterdir():
        path.unlink()
    unit.run()

    assert wiring.order == ["detect", "check", "remove", "chain", "apply"]


def test_services_of_others_stand_behind_and_their_ways_are_said(unit, machine, monkeypatch):
    asked = []
    monkeypatch.setattr("reach.service", lambda *args: asked.append(args))
    status = unit.configure(authn_server_url="https://auth.example/n", authz_server_url="https://auth.example/z").run()

    assert status.message == "ready: charmed, access reviews go to authz-server-url, upstream-compatible names"
    settings = machine.settings()
    assert settings["authentication_backend"] == {"url": "https://auth.example/n", "ca": None}
    assert settings["authorization_backend"] == {"url": "https://auth.example/z", "ca": None}
    assert settings["upstream_compatible"] is True
    assert settings["listen"] == f"127.0.0.1:{machine.endpoint_port}"
    assert [args[:2] for args in asked] == [
        ("authn-server-url", "https://auth.example/n"),
        ("authz-server-url", "https://auth.example/z"),
    ]


def test_tokens_in_clear_stay_in_the_status(unit, monkeypatch):
    monkeypatch.setattr("reach.keystone", lambda *_: None)
    status = unit.configure(keystone_url="http://keystone.example:5000", keystone_insecure=True).run()

    assert "INSECURE" in status.message


@pytest.mark.parametrize("events", [
    ["relation_broken", "stop", "remove"], ["stop", "relation_broken", "remove"], ["stop", "remove"],
    ["relation_broken", "relation_broken"], ["remove"],
])  # fmt: skip
def test_removal_in_any_order_leaves_nothing(unit, machine, wiring, events):
    unit.configure(policy=POLICY).run()
    assert machine.users == {"kubernetes-keystone"}

    for event in events:
        assert isinstance(unit.run(event), ops.WaitingStatus)

    assert machine.snapshot() == {}
    assert machine.users == set()
    assert wiring.desired is None
    assert wiring.restarts == 2
    assert not machine.active(authenticator.SERVICE)
    assert not machine.active(authenticator.SOCKET)


def test_removal_needs_no_valid_option(unit, machine):
    unit.run()
    unit.configure(keystone_url="nonsense", policy="- {}").run("relation_broken")

    assert machine.snapshot() == {}


def test_a_failed_removal_keeps_the_service_for_the_flags_that_still_lead_to_it(unit, machine, wiring):
    unit.run()
    wiring.raises = {"remove": apiserver.WiringError("the args file is read-only")}

    assert unit.run("relation_broken") == ops.BlockedStatus("the args file is read-only")
    assert machine.active(authenticator.SERVICE)
    with pytest.raises(Exception, match="read-only"):
        unit.run("remove")


def test_a_unit_that_has_to_wait_for_another_does_not_go_before_its_flags_are_out(unit, machine, wiring):
    unit.run()
    wiring.raises = {"remove": apiserver.NotOurTurn("another unit restarts its API server: kubernetes-keystone/1")}

    for event in ("relation_broken", "stop"):
        assert unit.run(event) == ops.WaitingStatus("another unit restarts its API server: kubernetes-keystone/1")
    assert machine.active(authenticator.SERVICE)
    with pytest.raises(Exception, match="cannot be removed cleanly: another unit"):
        unit.run("remove")
    wiring.raises = {}
    unit.run("remove")
    assert machine.snapshot() == {}


@pytest.fixture
def another_unit(machine, wiring, unit) -> str:
    """Another application's unit, which was on the machine first; Juju keeps a folder for it."""
    unit.run()
    (machine.places.state / "unit").write_text("keystone-too/3\n")
    (machine.places.root / "var/lib/juju/agents/unit-keystone-too-3").mkdir(parents=True)
    wiring.order.clear()
    return "keystone-too/3"


def test_a_second_unit_on_one_machine_is_refused_and_touches_nothing_even_when_it_goes(
    unit, machine, wiring, another_unit
):
    before = machine.snapshot()

    status = unit.run("config_changed")
    assert isinstance(status, ops.BlockedStatus)
    assert f"{another_unit} serves this machine already" in status.message
    with pytest.raises(ops.testing.ActionFailed, match=another_unit):
        unit.action("show-webhook-config")
    for event in ("relation_broken", "stop", "remove"):
        assert isinstance(unit.run(event), ops.WaitingStatus)

    assert machine.snapshot() == before
    assert wiring.order == []
    assert machine.active(authenticator.SERVICE)


def test_a_machine_whose_unit_is_gone_without_a_word_is_taken_over(unit, machine, another_unit):
    (machine.places.root / "var/lib/juju/agents/unit-keystone-too-3").rmdir()

    assert isinstance(unit.run("update_status"), ops.ActiveStatus)
    assert (machine.places.state / "unit").read_text() == "kubernetes-keystone/0\n"


def test_an_upgrade_brings_the_new_program_and_keeps_the_one_before(unit, machine):
    from tests.unit.charm.conftest import ship

    unit.run()
    first = (machine.places.opt / "current").resolve().name
    machine.forget_calls()
    ship(machine.places.charm, "2.0.0")
    unit.run("upgrade_charm")

    second = (machine.places.opt / "current").resolve().name
    assert second.startswith("2.0.0-")
    assert {path.name for path in machine.places.opt.iterdir()} == {"current", first, second}
    assert machine.calls.count(f"restart {authenticator.SERVICE}") == 1

    ship(machine.places.charm, "3.0.0")
    unit.run("upgrade_charm")
    third = (machine.places.opt / "current").resolve().name
    assert {path.name for path in machine.places.opt.iterdir()} == {"current", second, third}


def test_juju_status_shows_the_version_of_the_service_that_runs(unit):
    unit.run()

    assert unit.state.workload_version == "1.2.3"


def test_the_way_back_to_the_charm_before_takes_the_program_that_is_still_there(unit, machine):
    from tests.unit.charm.conftest import ship

    unit.run()
    first = (machine.places.opt / "current").resolve().name
    older = {path: path.read_bytes() for path in machine.places.charm.rglob("*") if path.is_file()}
    ship(machine.places.charm, "2.0.0")
    unit.run("upgrade_charm")
    settings = json.loads(machine.places.settings.read_text())
    machine.places.settings.write_text(json.dumps({**settings, "of-a-newer-charm": True}))
    machine.forget_calls()
    for path, content in older.items():
        path.write_bytes(content)

    assert isinstance(unit.run("upgrade_charm"), ops.ActiveStatus)
    assert (machine.places.opt / "current").resolve().name == first
    assert json.loads(machine.places.settings.read_text()) == settings
    assert machine.calls.count(f"restart {authenticator.SERVICE}") == 1


def test_a_charm_that_died_between_writing_and_restarting_still_owes_the_restart(unit, machine):
    unit.run()
    (machine.places.state / "started").unlink()
    machine.forget_calls()
    unit.run()

    assert f"restart {authenticator.SERVICE}" in machine.calls


def test_a_service_that_is_down_is_started_again(unit, machine):
    unit.run()
    machine.crash()

    assert isinstance(unit.run("update_status"), ops.ActiveStatus)
    assert machine.active(authenticator.SERVICE)


def test_a_service_that_does_not_start_blocks_with_its_own_words(unit, machine, wiring):
    machine.break_systemctl("restart", "Job failed")
    status = unit.run()

    assert status == ops.BlockedStatus(
        f"the authenticator does not start: Boom: no such thing; see journalctl -u {authenticator.SERVICE}"
    )
    assert "apply" not in wiring.order


def test_settings_that_the_service_refuses_never_reach_the_api_server(unit, machine, wiring):
    machine.refuses["settings"] = "log_level: unknown"
    status = unit.run()

    assert status == ops.BlockedStatus("the authenticator refuses its settings: log_level: unknown")
    assert "apply" not in wiring.order


def test_an_endpoint_cannot_move_to_a_taken_port_and_stays_where_it_is(unit, machine, wiring):
    unit.run()
    before = machine.snapshot()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status = unit.configure(authn_server_url=f"https://127.0.0.1:{port}/webhook").run()

    assert f"127.0.0.1:{port} is taken by another program" in status.message
    assert machine.snapshot() == before
    assert wiring.restarts == 1


@pytest.mark.parametrize("port", ["endpoint_port", "private_port"])
def test_a_port_that_somebody_else_holds_blocks_and_is_named(unit, machine, wiring, port):
    number = getattr(machine, port)
    with socket.create_server(("127.0.0.1", number)):
        status = unit.run()

    assert isinstance(status, ops.BlockedStatus)
    assert str(number) in status.message
    assert "taken by another program" in status.message
    assert wiring.desired is None
    assert not machine.active(authenticator.SOCKET)
