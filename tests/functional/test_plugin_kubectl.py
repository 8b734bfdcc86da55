"""The plug-in as pip installs it, under the real kubectl, before a real API server with our authenticator behind it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from testbed import setup
from testbed.apiserver import ApiServer
from testbed.keystone import Keystone, Project, User
from tests.functional.test_api_server import webhook_file
from tests.unit.authenticator.support import Authority, Service, serving
from tests.unit.plugin.support import Plugin, Terminal

pytestmark = pytest.mark.functional

RBAC = "rbac.authorization.k8s.io"
LOGGED_OUT = ("You must be logged in", "Unauthorized", "provide credentials")


@dataclass
class Cluster:
    """An API server that asks our authenticator, and a Keystone."""

    api: ApiServer
    keystone: Keystone
    service: Service
    demo: Project
    alice: User


@contextlib.contextmanager
def running(folder: Path, authority: Authority, keystone: Keystone) -> Iterator[Cluster]:
    """A cluster of this Keystone's users."""
    with contextlib.ExitStack() as stack:
        everything = {"users": {"projects": ["demo"]}, "resource_permissions": {"*/*": ["*"]}}
        (folder / "policy.json").write_text(json.dumps([everything]))
        settings = {
            "keystone": {"url": keystone.url, "ca": str(keystone.ca)},
            "token_cache_ttl": 0.1,
            "policy": str(folder / "policy.json"),
        }
        service = stack.enter_context(serving(folder, authority, **settings))
        url = f"https://127.0.0.1:{service.port}/webhook"
        webhook = webhook_file(folder / "webhook.yaml", url, authority, service.client)
        flags = (
            f"authentication-token-webhook-config-file={webhook}",
            "authentication-token-webhook-version=v1",
            "authentication-token-webhook-cache-ttl=1s",
            "authorization-mode=RBAC,Webhook",
            f"authorization-webhook-config-file={webhook}",
            "authorization-webhook-version=v1",
        )
        api = stack.enter_context(ApiServer(*flags))
        demo = keystone.project("demo")
        alice = keystone.member("alice", demo)
        # No controller runs that would fill the role `view`.
        rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}
        role = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": "pods"}, "rules": [rule]}
        group = {"apiGroup": RBAC, "kind": "Group", "name": f"keystone:project:{demo.id}"}
        reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "pods"}
        binding = {**role, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [group]}
        for kind, thing in (("clusterroles", role), ("clusterrolebindings", binding)):
            assert api.send("POST", f"/apis/{RBAC}/v1/{kind}", api.admin_token, thing)[0] == 201
        yield Cluster(api, keystone, service, demo, alice)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Cluster]:
    with Keystone() as keystone, running(tmp_path_factory.mktemp("cluster"), authority, keystone) as found:
        yield found


@dataclass
class Person:
    """Somebody with a home, a kubeconfig and kubectl."""

    cluster: Cluster
    home: Path
    programs: Path

    def configure(
        self,
        arguments: Sequence[str],
        command: str = "kubectl-keystone-auth",
        version: str = "v1",
        **environment: str,
    ) -> None:
        """Write the kubeconfig."""
        api, keystone = self.cluster.api, self.cluster.keystone
        words = [f"--keystone-url={keystone.url}", *arguments]
        login = {
            "apiVersion": f"client.authentication.k8s.io/{version}",
            "command": command,
            "args": words,
            "env": [{"name": name, "value": value} for name, value in environment.items()],
        }
        if version == "v1":
            login["interactiveMode"] = "IfAvailable"
        ca = base64.b64encode(api.ca.read_bytes()).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "k", "cluster": {"server": f"https://127.0.0.1:{api.port}", "certificate-authority-data": ca}}
            ],
            "users": [{"name": "keystone", "user": {"exec": login}}],
            "contexts": [{"name": "k", "context": {"cluster": "k", "user": "keystone"}}],
            "current-context": "k",
        }
        path = self.home / ".kube" / "config"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))

    def environment(self, **more: str) -> dict[str, str]:
        """What kubectl is run with."""
        path = f"{self.programs}:{setup.kubernetes()}:{os.environ['PATH']}"
        return {"HOME": str(self.home), "PATH": path, "OS_CACERT": str(self.cluster.keystone.ca), **more}

    def begin(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start kubectl, with more in its environment."""
        return subprocess.Popen(
            [setup.kubernetes() / "kubectl", *arguments],
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kubectl(self, *arguments: str, **more: str) -> tuple[int, str, str]:
        """Run kubectl, with more in its environment."""
        started = self.begin(*arguments, **more)
        output, errors = started.communicate(timeout=120)
        return started.returncode, output, errors

    def works(self, *arguments: str, **more: str) -> str:
        """Run kubectl until it works, and give what it prints: on a busy machine a token may not be judged in time."""
        end = time.monotonic() + 120
        while (said := self.kubectl(*arguments, **more))[0] != 0:
            assert time.monotonic() < end, said
        return said[1]

    def name(self) -> str:
        """Whom the cluster takes this person for."""
        return self.works("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")


@pytest.fixture
def person(cluster: Cluster, tmp_path: Path, installed: Path) -> Person:
    return Person(cluster, tmp_path, installed)


def logins(cluster: Cluster) -> int:
    """How many logins Keystone has seen; the plug-in's alone, as it names itself."""
    calls = cluster.keystone.calls("POST", "/v3/auth/tokens")
    return sum(call.agent.startswith("kubectl-keystone-auth/") for call in calls)


def password(person: Person) -> None:
    """Configure a login by password."""
    person.configure(("--user-name=alice", "--project-name=demo"), OS_PASSWORD=person.cluster.alice.password)


def test_pip_installs_the_plug_in_and_nothing_else(installed: Path) -> None:
    programs = {path.name for path in installed.iterdir() if "kubectl" in path.name}
    assert programs == {"kubectl-keystone-auth", "kubectl-keystone_auth"}
    packages = next((installed.parent / "lib").iterdir()) / "site-packages"
    found = {path.name for path in packages.iterdir()} - {"pip", "setuptools", "_distutils_hack", "pkg_resources"}
    found = {name for name in found if not name.startswith(("pip-", "setuptools-", "distutils-precedence", "__pyc"))}
    assert {name.split("-")[0].lower() for name in found} == {"kubectl_keystone_auth", "pyyaml", "yaml", "_yaml"}


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_an_application_credential_gets_pods(person: Person, version: str) -> None:
    credential = person.cluster.keystone.application_credential(person.cluster.alice, person.cluster.demo)
    person.configure(
        [f"--application-credential-id={credential.id}"],
        version=version,
        OS_APPLICATION_CREDENTIAL_SECRET=credential.secret,
    )
    assert person.works("get", "pods") == ""
    assert person.name() == "keystone:alice"


def test_a_file_as_horizon_writes_it_works_with_the_program_beside_it(person: Person, installed: Path) -> None:
    credential = person.cluster.keystone.application_credential(person.cluster.alice, person.cluster.demo)
    person.configure(
        [
            "--domain-name=none",
            f"--user-name={person.cluster.alice.id}",
            f"--application-credential-id={credential.id}",
            f"--application-credential-secret={credential.secret}",
        ],
        command="bin/kubectl-keystone-auth",
        version="v1beta1",
    )
    (person.home / ".kube" / "bin").mkdir()
    (person.home / ".kube" / "bin" / "kubectl-keystone-auth").symlink_to(installed / "kubectl-keystone-auth")
    assert person.name() == "keystone:alice"


def test_ten_kubectls_at_once_log_in_once(person: Person) -> None:
    password(person)
    person.cluster.keystone.forget_calls()
    begun = [person.begin("get", "pods") for _ in range(10)]
    assert [one.communicate(timeout=120)[1] for one in begun] == ["No resources found in default namespace.\n"] * 10
    assert logins(person.cluster) == 1


def test_a_wrong_password_is_one_try_although_kubectl_asks_five_times(person: Person) -> None:
    person.configure(("--user-name=alice", "--project-name=demo"), OS_PASSWORD="wrong word")
    person.cluster.keystone.forget_calls()
    code, output, errors = person.kubectl("get", "pods")
    assert (code, output) == (1, "")
    assert "kubectl-keystone-auth: Keystone refuses 'alice' (domain 'default'): user name, domain or pass" in errors
    assert errors.rstrip().endswith("failed with exit code 3")
    assert "wrong word" not in errors
    # The second request tells whether it is the password or the project.
    assert logins(person.cluster) == 2


def test_what_is_missing_is_said_where_there_is_no_terminal(person: Person) -> None:
    person.configure(("--user-name=alice", "--project-name=demo"))
    code, _, errors = person.kubectl("get", "pods")
    assert code == 1
    assert "missing, and there is no terminal to ask on: the password (OS_PASSWORD)" in errors


def test_what_is_missing_is_asked_for_on_the_terminal_that_kubectl_lends(person: Person) -> None:
    person.configure(())
    terminal = Terminal([setup.kubernetes() / "kubectl", "get", "pods"], person.environment(), piped=False)
    terminal.answer("User name: ", "alice")
    terminal.answer("Project name: ", "demo")
    terminal.answer("Password: ", person.cluster.alice.password)
    code, _ = terminal.end()
    assert (code, "No resources found" in terminal.shown) == (0, True), terminal.shown
    assert person.cluster.alice.password not in terminal.shown


@pytest.mark.parametrize("cached", [True, False])
def test_after_a_token_was_revoked_the_second_kubectl_works_at_the_latest(person: Person, cached: bool) -> None:
    """With what kubectl knows of the API cached, it sends one request, and a refusal of that is its end."""
    password(person)
    person.works("get", "pods")
    plugin = Plugin(person.home, person.cluster.keystone.ca)
    words = (f"--keystone-url={person.cluster.keystone.url}", "--user-name=alice", "--project-name=demo")
    first = plugin.cache(*words).entry()
    assert first is not None
    time.sleep(1.1)  # Keystone keeps no revocation apart from an issue within the same second
    person.cluster.keystone.revoke_token(first.token)
    plugin.age(100, None, *words)
    if not cached:
        for folder in ("discovery", "http"):
            subprocess.run(["rm", "-rf", person.home / ".kube" / "cache" / folder], check=True)
    deadline = time.monotonic() + 30
    # The API server keeps a yes for some seconds.
    while (said := person.kubectl("get", "pods"))[0] == 0 and plugin.cache(*words).entry().token == first.token:  # pyright: ignore[reportOptionalMemberAccess]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert said[0] == 0 or any(word in said[2] for word in LOGGED_OUT)
    person.works("get", "pods")
    second = plugin.cache(*words).entry()
    assert second is not None
    assert second.token != first.token


def test_a_token_at_hand_goes_on_while_keystone_is_away(person: Person) -> None:
    password(person)
    person.works("get", "pods")
    person.cluster.keystone.stop()
    try:
        # The authenticator trusts what it knew; the plug-in has what it needs.
        assert person.kubectl("get", "pods")[0] == 0
    finally:
        person.cluster.keystone.start()


# -- the commands


def test_login_whoami_and_logout_are_about_the_current_context(person: Person) -> None:
    cluster = person.cluster
    password(person)
    code, output, _ = person.kubectl("keystone-auth", "login")
    assert (code, output[:50]) == (0, "logged in as alice (domain Default) in the project")
    cluster.keystone.forget_calls()
    code, output, _ = person.kubectl("keystone-auth", "whoami")
    said = dict(line.split(maxsplit=1) for line in output.splitlines() if not line.startswith(" "))
    assert said["user"] == f"alice ({cluster.alice.id})"
    assert said["project"] == f"demo ({cluster.demo.id}), domain Default"
    assert said["roles"] == "member, reader"
    assert said["cluster"] == "keystone:alice"
    assert f"in keystone:project:{cluster.demo.id}:role:member" in output
    assert logins(cluster) == 0
    token = kept(person)
    assert person.kubectl("keystone-auth", "logout") == (0, "logged out\n", "")
    assert kept(person) == ""
    time.sleep(1.1)
    answer = cluster.keystone.send("GET", "/auth/tokens", token=token, headers={"X-Subject-Token": token})
    assert answer.status_code == 401
    assert person.kubectl("keystone-auth", "logout")[:2] == (0, "there is no token at hand for this login\n")


def kept(person: Person) -> str:
    """The token that is at hand for alice's password."""
    words = (f"--keystone-url={person.cluster.keystone.url}", "--user-name=alice", "--project-name=demo")
    entry = Plugin(person.home, person.cluster.keystone.ca).cache(*words).entry()
    return entry.token if entry else ""


def sourced(cluster: Cluster) -> dict[str, str]:
    """What a file for the `openstack` client sets."""
    return {
        "OS_AUTH_URL": cluster.keystone.url,
        "OS_USERNAME": "alice",
        "OS_PASSWORD": cluster.alice.password,
        "OS_PROJECT_NAME": "demo",
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_ID": "default",
    }


def test_a_kubeconfig_is_written_and_used(person: Person) -> None:
    api = person.cluster.api
    cluster = (f"--server=https://127.0.0.1:{api.port}", f"--certificate-authority={api.ca}", "--namespace=default")
    code, output, _ = person.kubectl("keystone-auth", "kubeconfig", *cluster, **sourced(person.cluster))
    assert (code, "the context keystone-demo logs in as alice" in output) == (0, True)
    path = person.home / ".kube" / "config"
    assert path.stat().st_mode & 0o777 == 0o600
    assert person.cluster.alice.password not in path.read_text()
    person.works("get", "pods", OS_PASSWORD=person.cluster.alice.password)
    credential = person.cluster.keystone.application_credential(person.cluster.alice, person.cluster.demo)
    # The cluster is that of the current context.
    words = ("keystone-auth", "kubeconfig", "--context=robot", "--use", f"--keystone-url={person.cluster.keystone.url}")
    words += (f"--application-credential-id={credential.id}",)
    assert person.kubectl(*words, OS_APPLICATION_CREDENTIAL_SECRET=credential.secret)[0] == 0
    assert person.kubectl("config", "current-context")[1] == "robot\n"
    assert person.name() == "keystone:alice"
    code, _, errors = person.kubectl(*words, OS_APPLICATION_CREDENTIAL_SECRET="wrong word")
    assert (code, "its secret is wrong" in errors) == (3, True)
    assert person.name() == "keystone:alice"


def test_a_credential_for_kubernetes_alone_opens_that_much_and_nothing_in_openstack(person: Person) -> None:
    cluster = person.cluster
    words = ("credential", "create", "ci", "--read-only", "--namespace=default", "--expires=30d", "--output=json")
    code, output, errors = person.kubectl("keystone-auth", *words, **sourced(cluster))
    assert code == 0, errors
    made = json.loads(output)
    assert made["OS_APPLICATION_CREDENTIAL_SECRET"] not in errors
    password(person)
    # RBAC and policy allow alice herself more than the credential may.
    for question in (("create", "pods"), ("list", "pods", "--namespace=kube-system"), ("delete", "secrets")):
        assert person.kubectl("auth", "can-i", *question)[1] == "yes\n"
    mine = kept(person)
    person.configure(
        [f"--application-credential-id={made['OS_APPLICATION_CREDENTIAL_ID']}"],
        OS_APPLICATION_CREDENTIAL_SECRET=made["OS_APPLICATION_CREDENTIAL_SECRET"],
    )
    assert person.name() == f"keystone:app-cred:{made['OS_APPLICATION_CREDENTIAL_ID']}"
    person.works("get", "pods")
    for question in (("get", "pods"), ("list", "secrets"), ("watch", "deployments.apps")):
        assert person.kubectl("auth", "can-i", *question)[1] == "yes\n"
    for question in (
        ("create", "pods"),
        ("list", "pods", "--namespace=kube-system"),
        ("list", "pods", "--all-namespaces"),
        ("delete", "secrets"),
        ("get", "pods", "--subresource=exec"),
    ):
        assert person.kubectl("auth", "can-i", *question)[1].startswith("no"), question
    for request in (("get", "nodes"), ("get", "pods", "-A"), ("create", "configmap", "x"), ("delete", "pod", "x")):
        code, _, errors = person.kubectl(*request)
        assert (code, "Forbidden" in errors or "forbidden" in errors) == (1, True), request
    robot = json.loads(person.kubectl("config", "view", "--raw", "-o", "json")[1])["users"][0]["user"]["exec"]["args"]
    entry = Plugin(person.home, cluster.keystone.ca).cache(*robot).entry()
    assert entry is not None
    for token, status in ((mine, 200), (entry.token, 401)):
        assert cluster.keystone.send("GET", "/auth/projects", token=token).status_code == status
    # Keystone does not let it do as much as revoke itself.
    assert person.kubectl("keystone-auth", "logout")[1] == "the token is forgotten here; Keystone takes it on\n"


def test_a_credential_cannot_make_another(person: Person) -> None:
    credential = person.cluster.keystone.application_credential(person.cluster.alice, person.cluster.demo)
    person.configure(
        [f"--application-credential-id={credential.id}"], OS_APPLICATION_CREDENTIAL_SECRET=credential.secret
    )
    code, output, errors = person.kubectl("keystone-auth", "credential", "create", "more")
    assert (code, output) == (3, "")
    assert "this login may make no application credentials" in errors


def test_kubectl_finds_the_commands(person: Person) -> None:
    code, output, _ = person.kubectl("keystone-auth", "--help")
    assert (code, "credential create" in output) == (0, True)
    code, _, errors = person.kubectl("keystone-auth", "nonsense")
    assert (code, errors) == (2, "kubectl-keystone-auth: there is no such command; --help lists what there is\n")
