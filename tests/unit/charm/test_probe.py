"""The review of the cluster's own token, over a real TLS endpoint, before an API server is sent there."""

from __future__ import annotations

import base64
import datetime
import http.server
import json
import os
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

import pki
import webhook
from config import Listen
from errors import Waiting
from files import Places


@dataclass
class Endpoint:
    """What answers, and what it was asked."""

    kubeconfig: bytes = b""
    status: dict = field(default_factory=lambda: {"authenticated": True, "user": {"username": "admin"}})
    code: int = 200
    asked: list[tuple[str, dict, dict | None]] = field(default_factory=list)


@pytest.fixture
def endpoint(tmp_path) -> Iterator[Endpoint]:
    places = Places(tmp_path)
    places.tls.mkdir(parents=True)
    made = Endpoint()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            peer = self.connection.getpeercert()  # type: ignore[attr-defined]
            made.asked.append((self.path, body, peer))
            answer = json.dumps({**body, "status": made.status}).encode()
            self.send_response(made.code)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listen = Listen(host="127.0.0.1", port=server.server_address[1])
    tls = webhook.ensure_tls(places, listen, os.getegid())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tls.server.certificate, tls.server.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made.kubeconfig = webhook.kubeconfig(places, tls, listen, with_client=True)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def admin(tmp_path) -> Path:
    return write_admin(tmp_path / "config", "admin::sesame")


def write_admin(path: Path, token: str | None) -> Path:
    user = {"token": token} if token else {"client-certificate-data": "eA=="}
    path.write_text(
        yaml.safe_dump(
            {
                "contexts": [{"name": "other", "context": {"user": "x"}}, {"name": "me", "context": {"user": "admin"}}],
                "users": [{"name": "x", "user": {"token": "wrong"}}, {"name": "admin", "user": user}],
                "current-context": "me",
            }
        )
    )
    return path


def test_the_clusters_token_is_reviewed_with_the_api_servers_certificate(endpoint, admin):
    webhook.probe(endpoint.kubeconfig, admin, chained=True)

    path, body, peer = endpoint.asked[0]
    assert path == "/webhook"
    assert (body["apiVersion"], body["kind"], body["spec"]["token"]) == (
        "authentication.k8s.io/v1", "TokenReview", "admin::sesame",
    )  # fmt: skip
    assert peer is not None
    assert ("commonName", "kubernetes-keystone:kube-apiserver") in [item for part in peer["subject"] for item in part]


@pytest.mark.parametrize(
    ("status", "code", "complaint"),
    [
        ({"authenticated": False}, 200, "does not know the cluster's own token"),
        ({"authenticated": False, "error": "no chain"}, 200, "cannot tell about the cluster's own token: no chain"),
        ({}, 200, "does not know the cluster's own token"),
        (None, 200, "does not answer a review|does not know"),
    ],
)
def test_an_answer_that_would_lock_the_token_out_keeps_the_flags_away(endpoint, admin, status, code, complaint):
    endpoint.status, endpoint.code = status or {}, code

    with pytest.raises(Waiting, match=complaint) as raised:
        webhook.probe(endpoint.kubeconfig, admin, chained=True, seconds=0)
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (
            {"authenticated": False, "error": "no chain"},
            "the authenticator cannot tell about the cluster's own token: no chain",
        ),
        ({"authenticated": False}, ""),
    ],
)
def test_where_an_api_server_does_not_take_the_token_the_endpoint_may_know_why(endpoint, admin, status, told):
    endpoint.status = status

    assert webhook.in_the_way(endpoint.kubeconfig, admin) == told


def test_nothing_is_known_where_nobody_can_be_asked(endpoint, admin, tmp_path):
    down = endpoint.kubeconfig.replace(b"/webhook", b":/webhook")
    assert webhook.in_the_way(down, admin) == ""
    assert webhook.in_the_way(endpoint.kubeconfig, tmp_path / "missing") == ""
    assert webhook.in_the_way(endpoint.kubeconfig, write_admin(tmp_path / "by-certificate", None)) == ""


def test_a_webhook_that_says_no_until_it_has_loaded_is_waited_for(endpoint, admin, monkeypatch):
    good, endpoint.status = endpoint.status, {"authenticated": False}
    monkeypatch.setattr(webhook.time, "sleep", lambda _: setattr(endpoint, "status", good))

    webhook.probe(endpoint.kubeconfig, admin, chained=True)
    assert len(endpoint.asked) == 2


def test_where_nothing_is_displaced_a_plain_no_is_well(endpoint, admin):
    endpoint.status = {"authenticated": False}

    webhook.probe(endpoint.kubeconfig, admin, chained=False)


def test_an_endpoint_that_is_down_is_not_wired(endpoint, admin):
    down = endpoint.kubeconfig.replace(b"/webhook", b":/webhook")

    with pytest.raises(Waiting, match="does not answer a review"):
        webhook.probe(down, admin, chained=True, seconds=0)


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False},
        {"authenticated": False, "error": "the cluster's own token webhook says: invalid token"},
    ],
)
def test_an_administrator_without_a_token_has_a_token_that_nobody_has_reviewed(endpoint, tmp_path, status):
    endpoint.status = status
    webhook.probe(endpoint.kubeconfig, write_admin(tmp_path / "config", None), chained=True)

    (_, body, _), = endpoint.asked  # fmt: skip
    assert body["spec"]["token"].startswith("kubernetes-keystone-")


def test_a_displaced_webhook_that_cannot_be_asked_keeps_the_flags_away(endpoint, tmp_path):
    endpoint.status = {"error": "the cluster's own token webhook cannot be reached: refused"}

    with pytest.raises(Waiting, match="cannot be reached"):
        webhook.probe(endpoint.kubeconfig, write_admin(tmp_path / "config", None), chained=True, seconds=0)


def test_of_the_clusters_own_token_no_error_is_good_enough(endpoint, admin):
    endpoint.status = {"error": "the cluster's own token webhook says: invalid token"}

    with pytest.raises(Waiting, match="invalid token"):
        webhook.probe(endpoint.kubeconfig, admin, chained=True, seconds=0)


@pytest.mark.parametrize("text", [None, "nonsense", "current-context: me\n"])
def test_an_administrators_kubeconfig_that_is_not_there_yet_is_waited_for(endpoint, tmp_path, text):
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)

    with pytest.raises(Waiting, match="cannot be used yet"):
        webhook.probe(endpoint.kubeconfig, path, chained=True)


def test_the_endpoint_is_known_by_the_kubeconfigs_cas_and_by_none_of_the_systems(
    endpoint, admin, tmp_path, monkeypatch
):
    trusted = tmp_path / "etc/kubernetes-keystone/tls/ca.crt"
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(trusted))
    monkeypatch.setattr("certifi.where", lambda: str(trusted))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    other = pki.issue_authority("another CA", datetime.timedelta(days=1), datetime.datetime.now(datetime.timezone.utc))
    config = yaml.safe_load(endpoint.kubeconfig)
    cluster = config["clusters"][0]["cluster"]
    cluster["certificate-authority-data"] = base64.b64encode(pki.pem(other.certificate)).decode()

    with pytest.raises(webhook.NoAnswer, match="CERTIFICATE_VERIFY_FAILED"):
        webhook.ask(yaml.safe_dump(config).encode(), "admin::sesame")
    assert endpoint.asked == []
