"""The program as it runs: TLS, who may ask, files that change under it, and its end."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keystone_authenticator.service import LOOK_EVERY
from tests.unit.authenticator.support import (
    DEFAULT,
    Authority,
    KeystoneStandIn,
    Service,
    StandIn,
    access_review,
    eventually,
    fernet_token,
    replace,
    serving,
    token_review,
)
from tests.unit.authenticator.test_authentication import ADMIN, says
from tests.unit.authenticator.test_chain import chain_file, kubeconfig

pytestmark = pytest.mark.slow  # the program itself is started for each

POLICY = [{"users": {"projects": ["demo"], "roles": ["member"]}, "resource_permissions": {"*/pods": ["get"]}}]
OTHER_POLICY = [{"users": {"projects": ["demo"], "roles": ["member"]}, "resource_permissions": {"*/nodes": ["get"]}}]


def chained_to(webhook: StandIn, authority: Authority) -> bytes:
    return chain_file(
        kubeconfig(server=f"{webhook.url}/v1", **{"certificate-authority": "ca.crt"}),
        "ttl 1m0s",
        files={"/cdk/ca.crt": authority.ca.read_bytes()},
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Service]:
    """One service for the tests that change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    keystone = KeystoneStandIn()
    policy = folder / "policy.json"
    policy.write_text(json.dumps(POLICY))
    with serving(folder, authority, keystone={"url": keystone.url, "ca": None}, policy=str(policy)) as service:
        service.keystone = keystone  # type: ignore[attr-defined]
        yield service
    keystone.close()


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_token_and_its_access_are_reviewed_in_both_versions(shared: Any, version: str) -> None:
    token = shared.keystone.issue()
    user = shared.review(token_review(token, version))["user"]
    assert user["username"] == "keystone:alice"
    assert shared.review(access_review(user["username"], version=version)) == {"allowed": True}
    assert shared.review(access_review(user["username"], "delete", version=version)) == {"allowed": False}
    assert shared.review(access_review("system:serviceaccount:a:b", version=version)) == {"allowed": False}


def test_an_access_review_that_asks_nothing_is_no_opinion(shared: Service) -> None:
    review = access_review()
    del review["spec"]["resourceAttributes"]
    status = shared.review(review)
    assert status["allowed"] is False
    assert status["evaluationError"]


def test_a_review_about_a_token_never_shows_it(shared: Service) -> None:
    token = fernet_token()
    status, body = shared.post(token_review(token))
    assert (status, json.loads(body)["status"]) == (200, {"authenticated": False})
    assert token.encode() not in body
    assert token not in shared.log


def test_without_a_client_certificate_the_webhook_is_closed(shared: Service) -> None:
    assert shared.post(token_review(fernet_token()), certified=False)[0] == 403


def knock(service: Service, context: ssl.SSLContext) -> bytes:
    """What a client with this TLS context gets to read: nothing, if it is not let in."""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(("127.0.0.1", service.port), timeout=5) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as secured,
    ):
        secured.sendall(b"POST /webhook HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        return secured.recv(100)
    return b""


def test_only_client_certificates_of_our_own_authority_get_in(shared: Service, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger").issue("apiserver", client=True)
    assert b"400" in knock(shared, shared.authority.client_context(shared.client))
    assert knock(shared, shared.authority.client_context(stranger)) == b""


def test_the_servers_own_certificate_is_no_client_certificate(shared: Service) -> None:
    assert knock(shared, shared.authority.client_context(shared.certificate)) == b""


@pytest.mark.filterwarnings("ignore:ssl.OP_NO")
def test_http_1_1_is_what_is_offered_and_old_tls_is_not(shared: Service) -> None:
    context = shared.authority.client_context(shared.client)
    context.set_alpn_protocols(["h2", "http/1.1"])
    assert knock(shared, context).startswith(b"HTTP/1.1")
    old = shared.authority.client_context(shared.client)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.options |= ssl.OP_NO_TLSv1_2 | ssl.OP_NO_TLSv1_3
    assert knock(shared, old) == b""


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/webhook", {}, b"", 405),
        ("POST", "/", {}, b"{}", 404),
        ("POST", "/status", {}, b"{}", 404),
        ("POST", "/webhook", {"Content-Type": "text/plain"}, b"{}", 415),
        ("POST", "/webhook", {"Content-Type": "application/json; charset=utf-8"}, b"{}", 400),
        ("POST", "/webhook", {"Content-Type": "application/json"}, b"", 400),
        ("POST", "/webhook", {"Content-Type": "application/json"}, b"[" * 900_000, 400),
        ("POST", "/webhook", {"Content-Type": "application/json"}, b" " * 2_000_000, 413),
    ],
)
def test_what_is_no_review_gets_a_4xx(
    shared: Service, method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    connection = shared.connect()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.request(method, path, body, headers)
    response = connection.getresponse()
    assert response.status == status
    assert b"Traceback" not in response.read()
    connection.close()


def test_the_private_listener_tells_how_it_is_and_nothing_else(shared: Any) -> None:
    shared.review(token_review(shared.keystone.issue(name="somebody-private")))
    assert shared.get("/healthz") == (200, b"ok\n")
    assert shared.get("/readyz") == (200, b"ok\n")
    assert shared.get("/webhook")[0] == 404
    assert b"somebody-private" not in shared.get("/status")[1]
    status = shared.status
    content = (shared.folder / "policy.json").read_bytes()
    assert status["policy"]["hash"] == hashlib.sha256(content).hexdigest()
    assert status["policy"]["rules"] == 1
    assert status["settings"]["hash"] == hashlib.sha256(shared.config.read_bytes()).hexdigest()
    assert status["tls"]["hash"] == hashlib.sha256(shared.certificate[0].read_bytes()).hexdigest()
    assert status["chained"] == {"state": "off", "hash": None, "error": None, "outage": None}
    assert status["keystone"]["last_answer"]["status"] == 200
    assert status["version"] == "0.1.0"


# -- files that change


def test_a_changed_policy_is_in_force_within_two_seconds_without_a_failed_request(
    tmp_path: Path, authority: Authority
) -> None:
    policy = tmp_path / "policy.json"
    replace(policy, json.dumps(POLICY))
    with serving(tmp_path, authority, look_every=LOOK_EVERY, policy=str(policy)) as service:
        stop, failures, finished = threading.Event(), [], []

        def load() -> None:
            connection = service.connect()
            while not stop.is_set():
                code, _ = service.post(access_review(), connection=connection)
                if code != 200:
                    failures.append(code)
            finished.append(True)
            connection.close()

        thread = threading.Thread(target=load)
        thread.start()
        try:
            assert service.review(access_review()) == {"allowed": True}
            replace(policy, json.dumps(OTHER_POLICY))
            eventually(lambda: service.review(access_review(resource="nodes")) == {"allowed": True}, 2)
            assert service.review(access_review()) == {"allowed": False}
            service.certificate = authority.issue("endpoint")
            eventually(lambda: service.status["tls"]["hash"] == _sha256(service.certificate[0]), 2)
        finally:
            stop.set()
            thread.join()
        assert failures == []
        assert finished


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bad_policy_keeps_the_old_one_in_force(tmp_path: Path, authority: Authority) -> None:
    policy = tmp_path / "policy.json"
    replace(policy, json.dumps(POLICY))
    with serving(tmp_path, authority, policy=str(policy)) as service:
        before = service.status["policy"]
        replace(policy, json.dumps([*POLICY, {"users": {"role": []}}]))
        error = eventually(lambda: service.status["policy"]["error"], 2)
        assert "item 2" in error
        assert service.status["policy"]["hash"] == before["hash"]
        assert service.review(access_review()) == {"allowed": True}
        policy.unlink()
        eventually(lambda: "No such file" in service.status["policy"]["error"], 2)
        assert service.review(access_review()) == {"allowed": True}
        replace(policy, json.dumps(OTHER_POLICY))
        eventually(lambda: service.review(access_review(resource="nodes")) == {"allowed": True}, 2)
        assert service.status["policy"]["error"] is None


def test_bad_settings_keep_the_old_ones_in_force(tmp_path: Path, authority: Authority) -> None:
    with serving(tmp_path, authority) as service:
        before = service.status["settings"]["hash"]
        service.configure(colour="blue")
        assert "colour: unknown key" in eventually(lambda: service.status["settings"]["error"], 2)
        assert service.status["settings"]["hash"] == before
        assert service.is_up()
        del service.settings["colour"]
        service.configure(log_level="debug")
        eventually(lambda: service.status["settings"]["error"] is None, 2)


def test_changed_settings_are_in_force_without_a_restart(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    token = keystone.issue()
    with serving(tmp_path, authority) as service:
        assert "error" in service.review(token_review(token))
        service.configure(keystone={"url": keystone.url, "ca": None})
        eventually(lambda: service.review(token_review(token))["authenticated"], 2)
        service.configure(upstream_compatible=True)
        eventually(lambda: service.review(token_review(token))["user"]["username"] == "alice", 2)
        service.configure(upstream_compatible=False, default_domain="elsewhere")
        name = f"keystone:alice@{DEFAULT}"
        eventually(lambda: service.review(token_review(token))["user"]["username"] == name, 2)
        keystone.tokens.clear()
        service.configure(token_cache_ttl=59)
        eventually(lambda: not service.review(token_review(token))["authenticated"], 2)


def test_another_address_is_followed(tmp_path: Path, authority: Authority) -> None:
    with serving(tmp_path, authority) as service:
        old = service.connect()
        old.connect()
        port, private = service.port, service.private
        fresh = Service(tmp_path, authority)
        service.port, service.private, service.settings = fresh.port, fresh.private, fresh.settings
        eventually(service.is_up, 2)
        assert service.post(token_review("a::b"))[0] == 200
        assert service.post(token_review("a::b"), connection=old)[0] == 200
        for number in (port, private):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", number))
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            service.configure(listen=f"127.0.0.1:{taken.getsockname()[1]}")
            assert "cannot listen" in eventually(lambda: service.status["settings"]["error"], 2)
            assert service.post(token_review("a::b"))[0] == 200
        service.configure(listen=f"127.0.0.1:{service.port}")
        eventually(lambda: service.status["settings"]["error"] is None, 2)


def test_a_new_certificate_serves_new_connections_and_old_ones_live_on(tmp_path: Path, authority: Authority) -> None:
    with serving(tmp_path, authority) as service:
        old = service.connect()
        assert service.post(token_review("a::b"), connection=old)[0] == 200

        def serial() -> Any:
            fresh = service.connect()
            fresh.connect()
            certificate = fresh.sock.getpeercert()
            fresh.close()
            return certificate["serialNumber"] if certificate else None

        before = serial()
        authority.issue("endpoint")
        eventually(lambda: serial() != before, 2)
        assert service.post(token_review("a::b"), connection=old)[0] == 200
        replace(service.certificate[0], "no certificate")
        eventually(lambda: service.status["tls"]["error"], 2)
        assert service.post(token_review("a::b"))[0] == 200


def test_a_chain_file_is_waited_for_and_the_last_good_one_stays(
    tmp_path: Path, authority: Authority, webhook: StandIn, keystone: KeystoneStandIn
) -> None:
    webhook.behaviour = says(ADMIN)
    path, token = tmp_path / "chained", keystone.issue()
    with serving(tmp_path, authority, chained=str(path), keystone={"url": keystone.url, "ca": None}) as service:
        assert service.status["chained"]["state"] == "missing"
        assert service.get("/readyz")[0] == 503
        assert str(path).encode() in service.get("/readyz")[1]
        assert "error" in service.review(token_review("admin::x"))
        assert service.review(token_review(token))["authenticated"]
        replace(path, "nonsense")
        eventually(lambda: service.status["chained"]["state"] == "broken", 2)
        assert "error" in service.review(token_review("admin::x"))
        replace(path, chained_to(webhook, authority))
        eventually(lambda: service.get("/readyz")[0] == 200, 2)
        assert service.status["chained"]["state"] == "ready"
        assert service.status["chained"]["hash"] == _sha256(path)
        assert service.review(token_review("admin::x"))["user"]["username"] == "admin"
        replace(path, "nonsense\n")
        assert "line 1" in eventually(lambda: service.status["chained"]["error"], 2)
        path.unlink()
        eventually(lambda: "not there" in service.status["chained"]["error"], 2)
        assert service.review(token_review("other::x"))["authenticated"]
        replace(path, "chained 1\nnone\n")
        eventually(lambda: service.status["chained"]["state"] == "none", 2)
        assert service.review(token_review("admin::x")) == {"authenticated": False}


def test_a_silent_webhook_of_the_clusters_is_told_until_it_gives_a_verdict(
    tmp_path: Path, authority: Authority, webhook: StandIn
) -> None:
    path = tmp_path / "chained"
    replace(path, chained_to(webhook, authority))
    with serving(tmp_path, authority, chained=str(path)) as service:
        webhook.behaviour = lambda *_: (503, {})
        said = "the cluster's own token webhook answered with status 503"
        assert service.review(token_review("admin::x"))["error"] == said
        assert service.status["chained"]["outage"] == said
        # What it says itself about one token is no outage.
        failed = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": {"error": "unknown"}}
        webhook.behaviour = lambda *_: (401, failed)
        assert "unknown" in service.review(token_review("admin::x"))["error"]
        assert service.status["chained"]["outage"] is None
        webhook.behaviour = lambda *_: (503, {})
        service.review(token_review("admin::x"))
        webhook.behaviour = says(ADMIN)
        assert service.review(token_review("admin::x"))["authenticated"]
        assert service.status["chained"]["outage"] is None


def test_a_chain_that_leads_back_here_is_refused(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "chained"
    with serving(tmp_path, authority, chained=str(path)) as service:
        replace(path, chain_file(kubeconfig(server=f"https://localhost:{service.port}/webhook")))
        eventually(lambda: service.status["chained"]["state"] == "broken", 2)
        assert "this endpoint itself" in service.status["chained"]["error"]
        assert "error" in service.review(token_review("admin::x"))


@pytest.mark.slow
def test_the_same_chain_file_written_again_forgets_nothing(
    tmp_path: Path, authority: Authority, webhook: StandIn
) -> None:
    webhook.behaviour = says(ADMIN)
    path = tmp_path / "chained"
    replace(path, chained_to(webhook, authority))
    with serving(tmp_path, authority, chained=str(path)) as service:
        service.review(token_review("admin::x"))
        loaded = path.stat().st_mtime_ns
        replace(path, chained_to(webhook, authority))
        assert path.stat().st_mtime_ns != loaded
        time.sleep(0.5)
        service.review(token_review("admin::x"))
        assert len(webhook.requests) == 1


def test_a_webhook_of_somebody_elses_gets_keystone_tokens_answered_and_nothing_chained(
    tmp_path: Path, authority: Authority, webhook: StandIn, keystone: KeystoneStandIn
) -> None:
    """The `manual` layout: no client certificates."""
    path = tmp_path / "chained"
    replace(path, chained_to(webhook, authority))
    tls = {
        "certificate": str(authority.folder / "endpoint.crt"),
        "key": str(authority.folder / "endpoint.key"),
        "client_ca": None,
        "require_client_certificate": False,
    }
    with serving(
        tmp_path, authority, chained=str(path), tls=tls, keystone={"url": keystone.url, "ca": None}
    ) as service:
        assert service.review(token_review(keystone.issue()), certified=False)["authenticated"]
        assert service.review(token_review("admin::x"), certified=False) == {"authenticated": False}
        assert webhook.requests == []


def test_access_reviews_go_to_a_backend_only_about_its_own_users(
    tmp_path: Path, authority: Authority, webhook: StandIn
) -> None:
    webhook.behaviour = lambda method, path, headers, body: (
        200,
        {"apiVersion": "authorization.k8s.io/v1beta1", "kind": "SubjectAccessReview", "status": {"allowed": True}},
    )
    backend = {"url": f"{webhook.url}/webhook", "ca": str(authority.ca)}
    with serving(tmp_path, authority, authorization_backend=backend, upstream_compatible=True) as service:
        assert service.review(access_review("alice")) == {"allowed": True}
        assert service.review(access_review("system:kube-scheduler")) == {"allowed": False}
        assert len(webhook.requests) == 1
        webhook.behaviour = lambda *_: (500, b"")
        status = service.review(access_review("alice"))
        assert status["allowed"] is False
        assert "500" in status["evaluationError"]


def test_without_a_policy_there_is_no_opinion(tmp_path: Path, authority: Authority) -> None:
    policy = tmp_path / "policy.json"
    with serving(tmp_path, authority, policy=str(policy)) as service:
        assert b"policy" in service.get("/readyz")[1]
        assert service.review(access_review()) == {"allowed": False}
        service.configure(policy=None)
        eventually(lambda: service.get("/readyz")[0] == 200, 2)


# -- beginning and end


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"colour": 1}, 2, "colour: unknown key"),
        ({"listen": "192.0.2.1:1"}, 1, "cannot listen on 192.0.2.1:1"),
        (
            {"tls": {"certificate": "/none", "key": "/none", "client_ca": None, "require_client_certificate": False}},
            1,
            "/none",
        ),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    tmp_path: Path, authority: Authority, changes: dict[str, Any], code: int, message: str
) -> None:
    service = Service(tmp_path, authority, **changes)
    with pytest.raises(AssertionError):
        service.start()
    assert service.process is not None
    assert service.process.returncode == code
    assert message in service.log
    assert "Traceback" not in service.log


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with serving(tmp_path, authority) as service:
            assert sock.recv(100) == b"READY=1"
            assert service.stop() == 0
            assert sock.recv(100) == b"STOPPING=1"


@pytest.mark.slow
def test_a_socket_of_systemds_is_served_and_stays_open_after_the_end(tmp_path: Path, authority: Authority) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        service = Service(tmp_path, authority, listen="127.0.0.1:1")
        service.port = listening.getsockname()[1]
        try:
            service.start(listening)
            assert service.post(token_review("a::b"))[0] == 200
            assert service.stop() == 0
            # Nobody serves, and nobody is refused: the next one answers.
            answers: list[int] = []
            waiting = threading.Thread(target=lambda: answers.append(service.post(token_review("a::b"))[0]))
            waiting.start()
            time.sleep(0.2)
            service.start(listening)
            waiting.join(5)
            assert answers == [200]
        finally:
            service.kill()


@pytest.mark.slow
def test_the_end_loses_no_request(tmp_path: Path, authority: Authority, keystone: KeystoneStandIn) -> None:
    """Clients that keep their connections see no failure while one service ends and the next begins."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        service = Service(tmp_path, authority, listen="127.0.0.1:1", keystone={"url": keystone.url, "ca": None})
        service.port = listening.getsockname()[1]
        stop, failures, served = threading.Event(), [], [0]

        def load() -> None:
            connection = service.connect()
            while not stop.is_set():
                try:
                    code, _ = service.post(token_review("a::b"), connection=connection)
                    served[0] += code == 200
                except OSError as error:
                    failures.append(error)
                time.sleep(0.002)
            connection.close()

        slow: list[dict[str, Any]] = []
        threads = [threading.Thread(target=load) for _ in range(4)]
        try:
            service.start(listening)
            for thread in threads:
                thread.start()
            keystone.hang()
            in_flight = threading.Thread(target=lambda: slow.append(service.review(token_review(token))))
            token = keystone.issue()
            in_flight.start()
            eventually(keystone.calls)
            assert service.process is not None
            service.process.terminate()
            time.sleep(0.5)
            keystone.release()
            assert service.process.wait(10) == 0
            before = served[0]
            service.start(listening)
            eventually(lambda: served[0] > before + 20, 5)
            in_flight.join(5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            service.kill()
        assert failures == []
        assert slow[0]["authenticated"]


@pytest.mark.slow
def test_connections_that_say_nothing_keep_nobody_out(tmp_path: Path, authority: Authority) -> None:
    with serving(tmp_path, authority) as service, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", service.port))) for _ in range(600)]
        assert service.post(token_review("a::b"))[0] == 200
        # The oldest have gone for the newest, so that their number, and what they cost, has an end.
        silent[0].settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert silent[0].recv(1) == b""
        silent[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent[-1].recv(1)


@pytest.mark.slow
def test_strangers_with_half_a_request_keep_nobody_out(tmp_path: Path, authority: Authority) -> None:
    with serving(tmp_path, authority) as service, contextlib.ExitStack() as stack:
        kept = service.connect()
        stack.callback(kept.close)
        assert service.post(token_review("a::b"), connection=kept)[0] == 200
        context = authority.client_context()
        for _ in range(400):
            sock = socket.create_connection(("127.0.0.1", service.port))
            half = stack.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
            half.sendall(b"POST /webhook HTTP/1.1\r\nHost: x\r\nX-A: ")
        assert service.post(token_review("a::b"))[0] == 200
        assert service.post(token_review("a::b"), connection=kept)[0] == 200


FLOOD = """
import contextlib, socket, sys
held, told = [], False
while True:
    with contextlib.suppress(OSError):
        held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), 30))
        held[-1].sendall(b"GET /metr")
    if len(held) > 400:
        if not told:
            told = True
            print("all there", flush=True)
        held.pop(0).close()
"""


def test_whoever_floods_the_private_listener_keeps_the_charm_from_nothing(tmp_path: Path, authority: Authority) -> None:
    """Any user of the machine reaches it: with half a request on many connections, and new ones all the time."""
    with serving(tmp_path, authority) as service:
        flood = [sys.executable, "-c", FLOOD, str(service.private)]
        with subprocess.Popen(flood, stdout=subprocess.PIPE) as flooding:
            assert flooding.stdout is not None
            flooding.stdout.readline()
            flooding.send_signal(signal.SIGSTOP)
            try:
                paths = ("/readyz", "/status", "/metrics")
                assert [service.get(path)[0] for path in paths] == [200] * 3
                flooding.send_signal(signal.SIGCONT)
                # Who is slower than hundreds of others may have to ask again, as the charm and the scripts do.
                for path in paths:
                    end, answered = time.monotonic() + 15, False
                    while not answered and time.monotonic() < end:
                        with contextlib.suppress(OSError, http.client.HTTPException):
                            answered = service.get(path)[0] == 200
                    assert answered, path
                assert service.post(token_review("a::b"))[0] == 200
            finally:
                flooding.kill()


def test_both_ports_can_be_systemds_so_that_nobody_takes_one_meanwhile(tmp_path: Path, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as webhook, socket.create_server(("127.0.0.1", 0)) as private:
        service = Service(tmp_path, authority, listen="127.0.0.1:1")
        service.port, service.private = webhook.getsockname()[1], private.getsockname()[1]
        service.configure(private_listen=f"127.0.0.1:{service.private}")
        try:
            service.start(webhook, private)
            assert service.get("/readyz")[0] == 200
            assert service.post(token_review("a::b"))[0] == 200
        finally:
            service.kill()


def test_what_users_choose_breaks_no_log_line(tmp_path: Path, authority: Authority, keystone: KeystoneStandIn) -> None:
    token = keystone.issue(name="system:a\nERROR forged line")
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}, upstream_compatible=True) as service:
        assert service.review(token_review(token)) == {"authenticated": False}
        assert "reserved" in service.log
        assert not any(line.startswith("ERROR forged") for line in service.log.splitlines())


def test_keystones_message_with_the_token_in_it_does_not_reach_the_log(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    token = fernet_token()
    message = f"This is not a recognized Fernet token {token}"
    keystone.behaviour = lambda *_: (404, {"error": {"code": 404, "message": message, "title": "Not Found"}})
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}, log_level="debug") as service:
        service.review(token_review(token))
        assert "not a recognized Fernet token" in service.log
        assert token not in service.log
        assert token[10:60] not in service.log


@pytest.mark.slow
def test_no_descriptor_stays_open(tmp_path: Path, authority: Authority, keystone: KeystoneStandIn) -> None:
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}) as service:
        assert service.process is not None
        folder = f"/proc/{service.process.pid}/fd"

        def round_trip() -> int:
            for _ in range(5):
                service.review(token_review(keystone.issue()))
            authority.issue("endpoint")
            time.sleep(0.5)
            return len(os.listdir(folder))  # noqa: PTH208  a folder of the kernel's

        first = round_trip()
        assert round_trip() <= first
