"""Behind a real kube-apiserver: what it makes of audiences and selectors, and what the cluster's webhook is asked."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from testbed.apiserver import AUDIENCE, ApiServer
from testbed.keystone import Keystone
from tests.functional.conftest import Starter
from tests.unit.authenticator.support import Authority, Service, StandIn, replace
from tests.unit.authenticator.test_chain import chain_file, kubeconfig

pytestmark = pytest.mark.functional

TOKENS = "authentication-token-webhook"


def webhook_file(path: Path, url: str, authority: Authority, client: tuple[Path, Path] | None = None) -> Path:
    """A webhook kubeconfig."""
    user = {"client-certificate": str(client[0]), "client-key": str(client[1])} if client else {}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority": str(authority.ca)}}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return path


class ClusterWebhook(StandIn):
    """The cluster's own token webhook: knows `uid::token`, some with audiences, and counts what it is asked."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority.server_context())
        self.behaviour = self.answer
        self.audiences: dict[str, list[str]] = {}

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        review = json.loads(body)
        token = review["spec"]["token"]
        status: dict[str, Any] = {"authenticated": token.startswith("good")}
        if status["authenticated"]:
            status["user"] = {"username": f"user-of-{token}", "groups": ["own"]}
            if token in self.audiences:
                status["audiences"] = self.audiences[token]
        return 200, {"apiVersion": review["apiVersion"], "kind": "TokenReview", "status": status}

    def asked(self) -> Counter[str]:
        """How often it was asked about each token."""
        return Counter(json.loads(body)["spec"]["token"] for _, _, _, body in self.requests)


@pytest.fixture
def webhooks(authority: Authority) -> Iterator[list[ClusterWebhook]]:
    """One for a cluster without us, one for a cluster with us."""
    made = [ClusterWebhook(authority) for _ in range(2)]
    yield made
    for webhook in made:
        webhook.close()


@pytest.fixture
def with_us(start: Starter, tmp_path: Path, authority: Authority) -> Callable[..., Any]:
    """An API server in front of ours, wired as the charm does it, and a displaced webhook behind."""

    @contextlib.contextmanager
    def begin(
        webhook: ClusterWebhook | None, ttl: str = "2m0s", **settings: Any
    ) -> Iterator[tuple[ApiServer, Service]]:
        chained = tmp_path / "chained"
        if webhook is None:
            replace(chained, "chained 1\nnone\n")
        else:
            ca = base64.b64encode(authority.ca.read_bytes()).decode()
            config = kubeconfig(server=f"{webhook.url}/v1", **{"certificate-authority-data": ca})
            replace(chained, chain_file(config, "version v1", f"ttl {ttl}"))
        service = start(chained=str(chained), **settings)
        url = f"https://127.0.0.1:{service.port}/webhook"
        ours = webhook_file(tmp_path / "ours.kubeconfig", url, authority, service.client)
        flags = [f"{TOKENS}-config-file={ours}", f"{TOKENS}-version=v1", f"{TOKENS}-cache-ttl=10s"]
        if settings.get("policy"):
            flags += ["authorization-mode=RBAC,Webhook", f"authorization-webhook-config-file={ours}"]
            flags += ["authorization-webhook-version=v1", "authorization-webhook-cache-authorized-ttl=5s"]
        with ApiServer(*flags) as server:
            yield server, service

    return begin


@pytest.fixture
def without_us(tmp_path: Path, authority: Authority) -> Callable[..., Any]:
    """An API server as it was before us, in front of the cluster's own webhook."""

    def begin(webhook: ClusterWebhook, ttl: str = "2m0s") -> ApiServer:
        theirs = webhook_file(tmp_path / "theirs.kubeconfig", f"{webhook.url}/v1", authority)
        return ApiServer(f"{TOKENS}-config-file={theirs}", f"{TOKENS}-version=v1", f"{TOKENS}-cache-ttl={ttl}")

    return begin


def reviewed(server: ApiServer, token: str, *audiences: str) -> dict[str, Any]:
    """What the API server answers to somebody who asks it whose token this is."""
    spec = {"token": token, **({"audiences": list(audiences)} if audiences else {})}
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
    code, answer = server.send("POST", "/apis/authentication.k8s.io/v1/tokenreviews", server.admin_token, review)
    assert code == 201, answer
    return answer["status"]


ASKED = [(), (AUDIENCE,), ("vault",), (AUDIENCE, "vault"), ("vault", "other"), ("other",)]


def test_a_keystone_token_is_good_for_the_api_servers_own_audiences_and_for_no_others(
    keystone: Keystone, with_us: Callable[..., Any]
) -> None:
    project = keystone.project("audiences")
    token = keystone.token(keystone.member("audrey", project), project)
    with with_us(None) as (server, _):
        for asked in ASKED:
            status = reviewed(server, token, *asked)
            if not asked or AUDIENCE in asked:
                assert status["user"]["username"] == "keystone:audrey"
                assert status["audiences"] == [AUDIENCE]
            else:
                assert "user" not in status or not status["user"], (asked, status)
                assert status.get("authenticated", False) is False


def test_the_clusters_own_tokens_are_good_for_the_audiences_that_they_were_good_for_before_us(
    webhooks: list[ClusterWebhook], with_us: Callable[..., Any], without_us: Callable[..., Any]
) -> None:
    tokens = {"good::plain": None, "good::vault": ["vault"], "good::both": [AUDIENCE, "vault"], "bad::one": None}
    for webhook in webhooks:
        webhook.audiences = {token: audiences for token, audiences in tokens.items() if audiences}
    with without_us(webhooks[0]) as before, with_us(webhooks[1]) as (after, _):
        for token in tokens:
            for asked in ASKED:
                assert reviewed(after, token, *asked) == reviewed(before, token, *asked), (token, asked)
        assert reviewed(after, "good::vault", "vault", "other")["audiences"] == ["vault"]
        assert reviewed(after, "good::vault", "other").get("authenticated", False) is False


def test_the_clusters_own_webhook_gets_no_more_calls_than_before_us(
    webhooks: list[ClusterWebhook], with_us: Callable[..., Any], without_us: Callable[..., Any]
) -> None:
    """The same load for longer than any of the caches lasts: the displaced flag's 15 s, ours and the server's 10 s."""
    tokens = [f"good::{number}" for number in range(4)] + [f"bad::{number}" for number in range(4)]
    with without_us(webhooks[0], "15s") as before, with_us(webhooks[1], "15s") as (after, _):
        for webhook in webhooks:
            webhook.requests.clear()
        answers: dict[str, set[int]] = {token: set() for token in tokens}
        end = time.monotonic() + 34

        def load(server: ApiServer) -> None:
            with server.connection() as connection:
                while time.monotonic() < end:
                    for token in tokens:
                        connection.request("GET", "/version", headers={"Authorization": f"Bearer {token}"})
                        response = connection.getresponse()
                        response.read()
                        answers[token].add(response.status)
                    time.sleep(0.1)

        threads = [threading.Thread(target=load, args=(server,)) for server in (before, after) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(found == {200 if token.startswith("good") else 401} for token, found in answers.items())
        without, with_ours = (webhook.asked() for webhook in webhooks)
        assert set(without) == set(with_ours) == set(tokens)
        for token in tokens:
            assert 1 <= with_ours[token] <= without[token], (without, with_ours)
        assert max(without.values()) <= 4, "the load is one that its cache answers"
        # While it fails, the API server asked again and again for each request; we pass the failure on.
        for webhook, server in zip(webhooks, (before, after), strict=True):
            webhook.requests.clear()
            webhook.behaviour = lambda *_: (500, b"")
            assert server.send("GET", "/version", "good::new")[0] == 401
        assert 1 == webhooks[1].asked()["good::new"] <= webhooks[0].asked()["good::new"]


def test_a_list_with_selectors_is_decided_as_the_list_without_them(
    keystone: Keystone, with_us: Callable[..., Any], tmp_path: Path
) -> None:
    """A selector only narrows what is listed: who may not list all of it may not list a part."""
    project = keystone.project("selectors")
    token = keystone.token(keystone.member("selma", project), project)
    policy = tmp_path / "policy.json"
    users = {"projects": ["selectors"], "roles": ["member"]}
    replace(policy, json.dumps([{"users": users, "resource_permissions": {"default/pods": ["list", "watch"]}}]))
    with with_us(None, policy=str(policy)) as (server, _):
        for namespace, code in (("default", 200), ("kube-system", 403)):
            pods = f"/api/v1/namespaces/{namespace}/pods"
            for query in (
                "",
                "?fieldSelector=spec.nodeName%3Dn1",
                "?labelSelector=app%20in%20(a,b),!c",
                "?fieldSelector=x",
            ):
                assert server.send("GET", pods + query, token)[0] == (
                    400 if query.endswith("=x") and code == 200 else code
                )
        assert server.send("DELETE", "/api/v1/namespaces/default/pods?labelSelector=a", token)[0] == 403


def test_an_application_credentials_rules_hold_whatever_the_path_looks_like(
    keystone: Keystone, with_us: Callable[..., Any], tmp_path: Path
) -> None:
    """The policy allows everything; the credential may read pods of one namespace, and its holder is inventive."""
    project = keystone.project("inventive")
    ivy = keystone.member("ivy", project)
    rules = [
        {"service": "kubernetes", "method": "GET", "path": f"/api/v1/namespaces/default/{path}"}
        for path in ("pods", "pods/**", "configmaps/{name}")
    ]
    credential = keystone.application_credential(ivy, project, access_rules=rules)
    token, free = keystone.credential_token(credential), keystone.token(ivy, project)
    policy = tmp_path / "policy.json"
    everything = {"*/*": ["*"], "*/*/*": ["*"]}
    paths = {"nonresource": {"verbs": ["*"], "path": "*"}, "users": {"projects": ["inventive"]}}
    replace(policy, json.dumps([{"users": {"projects": ["inventive"]}, "resource_permissions": everything}, paths]))
    with with_us(None, policy=str(policy)) as (server, _):
        created = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
        assert server.send("POST", "/api/v1/namespaces/default/configmaps", server.admin_token, created)[0] == 201
        default = "/api/v1/namespaces/default"
        for path, code in (
            (f"{default}/pods", 200),
            (f"{default}/pods?labelSelector=a&watch=0", 200),
            (f"{default}/pods/none", 404),
            (f"{default}/pods/none/log", 404),
            (f"{default}/configmaps/c", 200),
        ):
            assert server.send("GET", path, token)[0] == code, path
        for method, path in (
            ("GET", f"{default}/configmaps"),
            ("GET", f"{default}/pods/none/exec?command=id"),
            ("GET", f"{default}/pods/none/attach"),
            ("GET", f"{default}/pods/none/portforward"),
            ("GET", f"{default}/pods/none/proxy/metrics"),
            ("GET", f"{default}/secrets"),
            ("GET", "/api/v1/pods"),
            ("GET", "/api/v1/namespaces/kube-system/pods"),
            ("GET", f"{default}/../kube-system/pods"),
            ("GET", f"{default}/pods/../../kube-system/secrets"),
            ("GET", f"{default}/pods/..%2f..%2fkube-system%2fsecrets"),
            ("GET", f"{default}/pods/%2e%2e/secrets"),
            ("GET", "/api/v1/namespaces//default/secrets"),
            ("GET", "//api/v1/namespaces/kube-system/secrets"),
            ("GET", "/api/v1/watch/namespaces/kube-system/pods"),
            ("GET", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods"),
            ("GET", "/metrics"),
            ("GET", "/logs/"),
            ("POST", f"{default}/pods"),
            ("POST", f"{default}/pods/none/exec"),
            ("POST", f"{default}/pods/none/eviction"),
            ("DELETE", f"{default}/pods"),
            ("DELETE", f"{default}/pods/none"),
            ("PATCH", f"{default}/configmaps/c"),
            ("PUT", f"{default}/configmaps/c"),
        ):
            code, answer = server.send(method, path, token, {} if method in ("POST", "PUT", "PATCH") else None)
            # Past the authorization are successes, complaints about what was sent, and "that one is not there".
            there = isinstance(answer, dict) and "name" in answer.get("details", {}) and code != 403
            assert code >= 300, (method, path, answer)
            assert code not in (400, 409, 415, 422), (method, path, answer)
            assert not there, (method, path, answer)
        assert server.send("GET", f"{default}/secrets", free)[0] == 200
        assert reviewed(server, token)["user"]["groups"] == ["system:authenticated"]


def test_whoever_impersonates_a_name_alone_gets_nothing_of_the_policy(
    keystone: Keystone, with_us: Callable[..., Any], tmp_path: Path
) -> None:
    """Nor with a part of the rest. With all of it he is the user: that is what may be impersonated by nobody else."""
    project = keystone.project("imitated")
    victim = keystone.member("vera", project)
    policy = tmp_path / "policy.json"
    users = {"projects": ["imitated"], "roles": ["member"]}
    replace(policy, json.dumps([{"users": users, "resource_permissions": {"default/pods": ["list"]}}]))
    with with_us(None, policy=str(policy)) as (server, _):
        token, pods = keystone.token(victim, project), "/api/v1/namespaces/default/pods"
        user = reviewed(server, token)["user"]
        name, uid = {"Impersonate-User": user["username"]}, {"Impersonate-Uid": user["uid"]}
        group = {"Impersonate-Group": f"keystone:project:{project.id}"}
        # One header each: every list here has one value, for http.client takes no header twice.
        extra = {
            f"Impersonate-Extra-{quote(key, safe='')}": "member" if key.endswith("/roles") else values[0]
            for key, values in user["extra"].items()
        }
        assert server.send("GET", pods, token)[0] == 200
        assert server.send("GET", pods, server.admin_token)[0] == 200
        without_project = {key: value for key, value in extra.items() if "project" not in key}
        for parts in (name, name | group, name | uid | group, name | extra, name | uid | without_project):
            assert server.send("GET", pods, server.admin_token, headers=parts)[0] == 403, parts
        other = {"Impersonate-User": "system:serviceaccount:default:default"}
        assert server.send("GET", pods, server.admin_token, headers=other | uid | extra)[0] == 403
        assert server.send("GET", pods, server.admin_token, headers=name | uid | extra)[0] == 200


def test_another_certificate_at_our_port_is_not_believed(
    keystone: Keystone, with_us: Callable[..., Any], tmp_path: Path
) -> None:
    """Somebody has the port and says of every token that it is an administrator's."""
    somebody = Authority(tmp_path / "somebody")
    masters = {"username": "admin", "groups": ["system:masters"]}

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        review = json.loads(body)
        return 200, {**review, "status": {"authenticated": True, "user": masters}}

    with with_us(None) as (server, service):
        assert server.send("GET", "/version", "anything")[0] == 401
        service.kill()
        impostor = StandIn(somebody.server_context(), port=service.port)
        impostor.behaviour = answer
        try:
            assert server.send("GET", "/api/v1/nodes", "anything else")[0] == 401
            assert impostor.requests == [], "not even a token is said to it"
            assert "certificate" in server.log()
        finally:
            impostor.close()


def test_the_api_server_says_no_audit_id_with_its_reviews(keystone: Keystone, with_us: Callable[..., Any]) -> None:
    """docs/observing.md says so, and how to follow a request without it: if a later one does, it is to say so."""
    project = keystone.project("audited")
    token = keystone.token(keystone.member("audie", project), project)
    with with_us(None, log_level="debug") as (server, service):
        assert server.send("GET", "/version", token)[0] == 200
        assert "TokenReview v1: authenticated" in service.log
        assert "audit ID" not in service.log
