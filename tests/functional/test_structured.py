"""A real kube-apiserver whose authorization is a file: ours goes in while it runs, for Keystone's users alone.

What puts ours in, and judges whether it was accepted, is the wiring's own code (`apiserver.structured`); the layout is
one of a test's, for there is no machine here.
"""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import apiserver
import flags
from apiserver import Place, structured, ways
from apiserver.args import from_words
from apiserver.charmed import Charmed
from apiserver.unit import Unit
from apiserver.wanted import Stage, Wanted
from apiserver.wanted import write as want
from config import Listen
from testbed.apiserver import ApiServer
from testbed.keystone import Keystone, Project
from tests.functional.conftest import Starter
from tests.functional.test_api_server import TOKENS, webhook_file
from tests.unit.authenticator.support import Authority, Service, StandIn

pytestmark = pytest.mark.functional

NUMBERS = itertools.count()
CONFIG = """\
# The administrators' own file.
apiVersion: apiserver.config.k8s.io/v1
kind: AuthorizationConfiguration
authorizers:
- type: Node
  name: node
- type: RBAC
  name: rbac
- type: Webhook
  name: theirs
  webhook:
    timeout: 3s
    subjectAccessReviewVersion: v1
    matchConditionSubjectAccessReviewVersion: v1
    failurePolicy: NoOpinion
    connectionInfo:
      type: KubeConfigFile
      kubeConfigFile: {kubeconfig}
# The end.
"""
PATIENCE = apiserver.Patience(already=20, ready=20, token=20, reload=90, between=0.2)


class Running(Unit):
    """The way to an API server that is a process of this test's."""

    given: tuple[str, ...] = ()

    def others(self) -> Any:
        return from_words(self.given)

    read = others

    def log_tail(self, since: float) -> tuple[str, ...]:
        return ()


class Theirs(StandIn):
    """Somebody's authorization webhook: allows `/theirs` to everybody, and remembers about whom it was asked."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority.server_context())
        self.behaviour = self.answer

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        spec = json.loads(body)["spec"]
        allowed = spec.get("nonResourceAttributes", {}).get("path") == "/theirs"
        status = {"allowed": allowed}
        return 200, {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status}

    @property
    def users(self) -> set[str]:
        return {json.loads(body)["spec"]["user"] for _, _, _, body in self.requests}


@dataclass
class World:
    """All parts, and ours in the file if a test has put it there."""

    server: ApiServer
    service: Service
    theirs: Theirs
    layout: Charmed
    file: Path
    text: str
    authorizer: apiserver.Authorizer
    keystone: Keystone
    project: Project

    def member(self, name: str) -> str:
        """A token of somebody whom the policy lets list pods."""
        return self.keystone.token(self.keystone.member(f"{name}-of-{self.project.name}", self.project), self.project)

    def put_in(self, authorizer: apiserver.Authorizer | None = None) -> None:
        structured.apply(self.layout, authorizer or self.authorizer, lambda: None, PATIENCE)

    def code(self, path: str, token: str, method: str = "GET") -> int:
        return self.server.send(method, path, token)[0]

    def until(self, path: str, token: str, code: int) -> None:
        """Wait until this is the answer: the API server looks once a minute, and keeps answers for 5 s."""
        end = time.monotonic() + 90
        while self.code(path, token) != code:
            assert time.monotonic() < end
            time.sleep(0.2)

    def asked(self) -> int:
        """How many access reviews have come to our endpoint."""
        lines = self.service.get("/metrics")[1].decode().splitlines()
        mine = [line for line in lines if 'reviews_total{kind="SubjectAccessReview"' in line]
        assert mine
        return sum(int(line.rpartition(" ")[2]) for line in mine)

    def review(self, **spec: Any) -> dict[str, Any]:
        """What the API server says about somebody's access."""
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        body["spec"].setdefault("resourceAttributes", {"namespace": "default", "verb": "list", "resource": "pods"})
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        code, answer = self.server.send("POST", path, self.server.admin_token, body)
        assert code == 201, answer
        return answer["status"]


@pytest.fixture
def world(
    start: Starter, tmp_path: Path, authority: Authority, keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., World]]:
    """Make the world: an API server that has the token webhook's flags of ours, and a file of others'."""
    stack: list[Any] = []

    def make(upstream: bool = False) -> World:
        name = f"structured-{next(NUMBERS)}"
        project = keystone.project(name)
        users = {"projects": [name], "roles": ["member"]}
        policy = tmp_path / "policy.json"
        policy.write_text(json.dumps([{"users": users, "resource_permissions": {"default/pods": ["list"]}}]))
        service = start(policy=str(policy), upstream_compatible=upstream)
        theirs = Theirs(authority)
        stack.append(theirs.close)
        folder = tmp_path / "authorization"
        folder.mkdir()
        url = f"https://127.0.0.1:{service.port}/webhook"
        ours = webhook_file(tmp_path / "ours.kubeconfig", url, authority, service.client)
        kubeconfig = webhook_file(folder / "theirs.kubeconfig", f"{theirs.url}/authorize", authority)
        text = CONFIG.format(kubeconfig=kubeconfig)
        file = folder / "config.yaml"
        file.write_text(text)
        server = ApiServer(
            f"authorization-config={file}",
            f"{TOKENS}-config-file={ours}",
            f"{TOKENS}-version=v1",
            f"{TOKENS}-cache-ttl=10s",
        )
        server.__enter__()
        stack.append(lambda: server.__exit__(None, None, None))
        layout = Charmed(Place(tmp_path / "root"))
        layout.config_folder.mkdir(parents=True)
        layout.admin_kubeconfig.parent.mkdir(parents=True)
        user = {"token": server.admin_token}
        cluster = {
            "server": f"https://127.0.0.1:{server.port}",
            "certificate-authority-data": base64.b64encode(server.ca.read_bytes()).decode(),
        }
        admin = {
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        layout.admin_kubeconfig.write_text(yaml.safe_dump(admin))
        running = Running(layout)
        Running.given = (f"--authorization-config={file}", f"--secure-port={server.port}")
        monkeypatch.setattr(ways, "of", lambda _: running)
        want(layout.place, Wanted(Stage.CONFIRMED, 3, "", (), ()))
        listen = Listen(host="127.0.0.1", port=service.port)
        made = flags.authorizer(listen, ours.read_bytes(), names_upstream_way=upstream)
        return World(server, service, theirs, layout, file, text, made, keystone, project)

    yield make
    for undo in reversed(stack):
        undo()


def test_keystones_users_are_decided_by_our_policy_without_a_restart_and_nobody_else_reaches_us(
    world: Callable[..., World],
) -> None:
    made = world()
    server = made.server
    sara = made.member("sara")
    pods, default = "/api/v1/namespaces/default/pods", "/api/v1/namespaces/default"
    assert made.code(pods, sara) == 403, "RBAC alone, so far"
    began = server.process.pid
    made.put_in()
    assert made.code(pods, sara) == 200
    assert made.code(f"{default}/secrets", sara) == 403
    assert (server.process.pid, server.process.poll()) == (began, None)

    # Everybody else: the administrator, a real service account, a kubelet, a controller, anonymous, and liars.
    server.send("POST", f"{default}/serviceaccounts", server.admin_token, {"metadata": {"name": "robot"}})
    request = {"spec": {}, "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
    code, answer = server.send("POST", f"{default}/serviceaccounts/robot/token", server.admin_token, request)
    assert code == 201, answer
    robot = answer["status"]["token"]
    before = made.asked()
    assert before > 0
    assert made.code(pods, server.admin_token) == 200
    assert made.code(pods, robot) == 403
    assert "system:serviceaccount:default:robot" in made.theirs.users, "another webhook is still asked"
    marks = dict(made.authorizer.sample["extra"])  # type: ignore[call-overload]
    for liar in (
        {"user": "system:node:worker-0", "groups": ["system:nodes"]},
        {"user": "system:kube-controller-manager", "uid": "u"},
        {"user": "kubernetes-admin", "groups": ["kubeadm:cluster-admins"]},
        {"user": "system:anonymous", "groups": ["system:unauthenticated"]},
        {"user": "system:serviceaccount:a:b", "uid": "u", "extra": marks},
        {"user": "keystone:sara"},
        {"user": "keystone:sara", "uid": "u"},
        {"user": "keystone:sara", "uid": "u", "extra": {next(iter(marks)): ["x"]}},
        {"user": "keystone:sara", "extra": marks},
        {"user": "sara", "uid": "u", "extra": marks},
        {"user": "Keystone:sara", "uid": "u", "extra": marks},
    ):
        assert "evaluationError" not in made.review(**liar), liar
    assert made.asked() == before
    assert made.review(user="keystone:x", uid="u", extra=marks)["allowed"] is False
    assert made.asked() == before + 1
    # Theirs is asked before ours, about all that RBAC does not allow.
    assert made.code("/theirs", robot) == 404
    assert made.code("/theirs", sara) == 404

    structured.remove(made.layout)
    assert made.file.read_text() == made.text
    assert {path.name for path in made.file.parent.iterdir()} == {"config.yaml", "theirs.kubeconfig"}
    made.until(pods, sara, 403)

    for version in structured.VERSIONS[1:]:  # older ones of the format
        made.file.write_text(made.text.replace("/v1\n", f"/{version}\n"))
        made.put_in()
        made.until(pods, sara, 200)
        structured.remove(made.layout)
        made.until(pods, sara, 403)
    assert (server.process.pid, server.process.poll()) == (began, None)


def test_bare_names_of_the_upstream_compatible_mode_are_told_by_their_marks_alone(
    world: Callable[..., World],
) -> None:
    made = world(upstream=True)
    token = made.member("ursula")
    made.put_in()
    assert made.code("/api/v1/namespaces/default/pods", token) == 200
    before, marks = made.asked(), dict(made.authorizer.sample["extra"])  # type: ignore[call-overload]
    for other in (
        {"user": "ursula", "uid": "u"},
        {"user": "ursula", "uid": "u", "extra": {"authentication.kubernetes.io/credential-id": ["JTI=1"]}},
        {"user": "system:serviceaccount:a:b", "uid": "u", "extra": marks},
        {"user": "system:node:n", "uid": "u", "extra": marks},
        {"user": "kubeadm:x", "uid": "u", "extra": marks},
    ):
        assert made.review(**other)["allowed"] is False
    assert made.asked() == before
    made.review(user="somebody", uid="u", extra=marks)
    assert made.asked() == before + 1


def test_what_the_api_server_refuses_is_taken_back_and_told_from_its_own_mouth(
    world: Callable[..., World],
) -> None:
    made = world()
    began = made.server.process.pid
    broken = flags.Authorizer(  # a condition that does not compile: as if CEL were another one some day
        made.authorizer.kubeconfig, ("request.nothing == 'x'",), "", made.authorizer.sample
    )
    with pytest.raises(apiserver.ApplyFailed, match="does not accept it with Keystone's authorizer"):
        made.put_in(broken)
    assert made.file.read_text() == made.text
    assert "undefined field 'nothing'" in made.server.log()
    # An endpoint that is not there: accepted, but no review comes through.
    nowhere = made.authorizer.kubeconfig.replace(f":{made.service.port}/".encode(), b":1/")
    away = flags.authorizer(Listen(host="127.0.0.1", port=1), nowhere, names_upstream_way=False)
    with pytest.raises(apiserver.ApplyFailed, match=r"cannot ask Keystone's authorizer: .*https://127.0.0.1:1/webhook"):
        made.put_in(away)
    assert made.file.read_text() == made.text
    made.put_in()
    assert made.server.process.pid == began
    # Others break their file: the running server goes on with what it had, ours included.
    good = made.file.read_text()
    made.file.write_text(good.replace("type: RBAC", "type: Rbac"))
    token = made.member("bea")
    assert made.code("/api/v1/namespaces/default/pods", token) == 200
    with pytest.raises(apiserver.ApplyFailed):
        made.put_in(flags.Authorizer(b"x", ("true",), "", {}))
    made.file.write_text(good)
    made.put_in()
    assert made.code("/api/v1/namespaces/default/pods", token) == 200
