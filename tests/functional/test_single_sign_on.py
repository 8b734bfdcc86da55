"""From single sign-on to `kubectl get pods`: Keystone behind mod_auth_openidc, a browser, an API server, all real."""

from __future__ import annotations

import contextlib
import http.client
import signal
import stat
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import BrowserContext, Page, Request

from testbed.browser import browser
from testbed.keystone import Group
from testbed.processes import free_port
from testbed.single_sign_on import PROTOCOL, PROVIDER, SingleSignOn
from tests.functional.test_plugin_kubectl import Cluster, Person, running
from tests.unit.authenticator.support import Authority

pytestmark = pytest.mark.functional

PORT = free_port()
ORIGIN = f"http://localhost:{PORT}/auth/websso/"
DEADLINE = 120.0
"""Seconds for what takes a moment on a machine that is not busy."""


@pytest.fixture(scope="module")
def sso() -> Iterator[SingleSignOn]:
    with SingleSignOn(ORIGIN) as found:
        yield found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, authority: Authority, sso: SingleSignOn) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("cluster"), authority, sso.keystone) as found:
        yield found


@pytest.fixture(scope="module")
def feds(cluster: Cluster) -> Group:
    """A group with a role in the project `demo`."""
    group = cluster.keystone.group("feds")
    cluster.keystone.grant("member", group, cluster.demo)
    return group


@pytest.fixture(scope="module")
def opened() -> Iterator[BrowserContext]:
    with browser() as found:
        yield found


@dataclass
class Federated(Person):
    """Somebody who knows an identity provider, and whose browser the test drives."""

    sso: SingleSignOn
    opened: BrowserContext
    account: str
    _begun: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(BROWSER=f"{self.home}/browser %s", **more)

    def prepare(self) -> None:
        """Give her a browser that says what it was to open."""
        program = self.home / "browser"
        program.write_text(
            f"#!/bin/sh\nprintf %s \"$*\" > '{self.home}/new' && mv '{self.home}/new' '{self.home}/url'\n"
        )
        program.chmod(0o755)

    def sign_on(self, *arguments: str, **more: str) -> SignOn:
        """Begin a command that opens the browser."""
        (self.home / "url").unlink(missing_ok=True)
        begun = self.begin("keystone-auth", *arguments, **more)
        self._begun.append(begun)
        return SignOn(self, begun)

    def first(self, *arguments: str, **more: str) -> SignOn:
        """Begin a login with all that is to be said at the first one."""
        api = self.cluster.api
        return self.sign_on(
            "login",
            "--browser",
            f"--identity-provider={PROVIDER}",
            f"--protocol={PROTOCOL}",
            f"--os-redirect-port={PORT}",
            f"--server=https://127.0.0.1:{api.port}",
            f"--certificate-authority={api.ca}",
            *arguments,
            OS_AUTH_URL=self.sso.url,
            **more,
        )

    def end(self) -> None:
        """End what is under way."""
        for begun in self._begun:
            begun.kill()
            begun.communicate()

    def section(self) -> dict[str, Any]:
        """The exec section of her one context."""
        content = yaml.safe_load((self.home / ".kube" / "config").read_text())
        return content["users"][0]["user"]["exec"]

    def credentials(self) -> list[dict[str, Any]]:
        """Her application credentials in Keystone."""
        keystone = self.cluster.keystone
        users = keystone.request("GET", f"/users?name={self.account}")["users"]
        found = [keystone.request("GET", f"/users/{user['id']}/application_credentials") for user in users]
        return [one for answer in found for one in answer["application_credentials"]]


@dataclass
class SignOn:
    """A command that waits for its browser."""

    person: Federated
    begun: subprocess.Popen[str]
    brought: list[str] = field(default_factory=list)
    """The tokens that the browser brought."""

    def url(self) -> str:
        """What the browser is to open."""
        file, end = self.person.home / "url", time.monotonic() + DEADLINE
        while not file.exists():
            assert self.begun.poll() is None, self.begun.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        return file.read_text()

    def browse(self, name: str = "") -> Page:
        """Log in in the browser, unless that has been done; gives the page as it is then."""
        page = self.person.opened.new_page()
        page.on("request", self._watch)
        page.goto(self.url())
        page.wait_for_selector("input[name=sub], h1#title:has-text('ogged in')")
        if page.query_selector("input[name=sub]"):
            self.person.sso.log_in(page, name or self.person.account)
        page.wait_for_selector("h1#title:has-text('ogged in')")
        return page

    def _watch(self, request: Request) -> None:
        if request.url == ORIGIN:
            self.brought.append((request.post_data or "").removeprefix("token="))

    def end(self) -> tuple[int, str, str]:
        """Wait for the command's end."""
        output, errors = self.begun.communicate(timeout=DEADLINE)
        assert "Traceback" not in errors
        assert "gAAAA" not in output + errors
        return self.begun.returncode, output, errors


@pytest.fixture
def fiona(
    cluster: Cluster,
    tmp_path: Path,
    installed: Path,
    sso: SingleSignOn,
    opened: BrowserContext,
    feds: Group,
) -> Iterator[Federated]:
    """Somebody new, who is in the group."""
    name = f"fiona-{uuid.uuid4().hex[:8]}"
    sso.person(name, [feds])
    found = Federated(cluster, tmp_path, installed, sso, opened, name)
    found.prepare()
    yield found
    found.end()
    for page in opened.pages:
        page.close()
    opened.clear_cookies()


@contextlib.contextmanager
def catalogued(cluster: Cluster) -> Iterator[None]:
    """The cloud's catalogue has Kubernetes meanwhile."""
    service = {"type": "kubernetes", "name": "kubernetes"}
    made = cluster.keystone.request("POST", "/services", {"service": service})["service"]["id"]
    endpoint = {"service_id": made, "interface": "public", "url": "https://kubernetes.example:6443"}
    cluster.keystone.request("POST", "/endpoints", {"endpoint": endpoint})
    try:
        yield
    finally:
        cluster.keystone.request("DELETE", f"/services/{made}")


def answer(method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
    """Ask the listener something, as no browser would."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    named = {"Host": f"localhost:{PORT}", "Content-Type": "application/x-www-form-urlencoded"}
    connection.request(method, path, body or None, {**named, **{k.replace("_", "-"): v for k, v in headers.items()}})
    response = connection.getresponse()
    told = response.status, response.read().decode()
    connection.close()
    return told


# -- the whole way


def test_from_single_sign_on_to_pods_and_back(fiona: Federated) -> None:
    cluster = fiona.cluster
    with catalogued(cluster):
        login = fiona.first("-v", "--exec", "--role=reader")
        page = login.browse()
        code, output, errors = login.end()
    assert code == 0, errors
    assert f"logged in as {fiona.account} (domain " in output
    assert "good for Kubernetes alone, until " in output
    # What the browser has seen is good for nothing by now.
    (token,) = login.brought
    found = cluster.keystone.send("GET", "/auth/tokens", token=token, headers={"X-Subject-Token": token})
    assert found.status_code in (401, 404)
    # The browser has the token in no address that it shows or remembers.
    assert page.url == f"http://localhost:{PORT}/end"
    assert token not in page.content()
    path = fiona.home / ".kube" / "config"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert fiona.section()["env"][0]["value"] not in output + errors
    # In one command: no other was run.
    fiona.works("get", "pods")
    (made,) = fiona.credentials()
    assert fiona.name() == f"keystone:app-cred:{made['id']}"
    assert [role["name"] for role in made["roles"]] == ["reader"]
    assert made["expires_at"] is not None
    assert {rule["service"] for rule in made["access_rules"]} == {"kubernetes"}
    for question in (("create", "pods"), ("create", "pods/web", "--subresource=exec")):
        assert fiona.kubectl("auth", "can-i", *question)[1] == "yes\n", question

    # Its token is renewed without a browser.
    (fiona.home / "url").unlink()
    fiona.works("keystone-auth", "login")
    assert not (fiona.home / "url").exists()

    # The next login needs no flags, and leaves no credential behind.
    with catalogued(cluster):
        again = fiona.sign_on("login", "--browser", "--read-only")
        again.browse()
        assert again.end()[0] == 0
    (second,) = fiona.credentials()
    assert second["id"] != made["id"]
    assert fiona.name() == f"keystone:app-cred:{second['id']}"
    assert fiona.kubectl("auth", "can-i", "create", "pods")[1].startswith("no")

    logout = fiona.sign_on("logout")
    logout.browse()
    code, output, errors = logout.end()
    assert (code, output) == (0, f"logged out; Keystone has deleted the application credential {second['name']!r}\n")
    assert fiona.credentials() == []
    assert "env" not in fiona.section()
    code, _, errors = fiona.kubectl("get", "pods")
    assert code == 1
    assert "nobody is logged in: `kubectl keystone-auth login` opens the browser" in errors


def test_without_kubernetes_in_the_catalogue_the_credential_is_an_ordinary_one(fiona: Federated) -> None:
    login = fiona.first("--name=laptop", "--expires=never", "--context=mine")
    login.browse()
    code, output, errors = login.end()
    assert code == 0, errors
    assert "no service `kubernetes` in the cloud's catalogue" in errors
    assert "by the application credential 'laptop', good for everything\n" in output
    (made,) = fiona.credentials()
    assert (made["name"], made["expires_at"], made.get("access_rules")) == ("laptop", None, None)
    assert fiona.kubectl("config", "current-context")[1] == "mine\n"
    assert fiona.name().startswith(f"keystone:{fiona.account}@")
    # Its name is taken now; the one that is there stays, and works.
    again = fiona.sign_on("login", "--browser", "--name=laptop")
    again.browse()
    code, _, errors = again.end()
    assert (code, "of that name is there already" in errors) == (2, True)
    fiona.works("get", "pods")
    assert [one["id"] for one in fiona.credentials()] == [made["id"]]


def test_a_credential_that_no_context_has_is_not_left_behind(fiona: Federated) -> None:
    path = fiona.home / ".kube" / "config"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({"users": [{"name": "keystone-demo", "user": {"token": "hers"}}]}))
    login = fiona.first()
    login.browse()
    code, _, errors = login.end()
    assert (code, "has a user 'keystone-demo' who logs in otherwise" in errors) == (2, True)
    assert fiona.credentials() == []


def test_a_logout_that_somebody_else_ends_says_what_goes_on(fiona: Federated, feds: Group) -> None:
    login = fiona.first("--context=mine")
    login.browse()
    assert login.end()[0] == 0
    (made,) = fiona.credentials()
    fiona.opened.clear_cookies()
    fiona.sso.person("somebody", [feds])
    logout = fiona.sign_on("logout")
    logout.browse("somebody")
    code, _, errors = logout.end()
    assert (code, "that login is somebody (domain " in errors) == (3, True)
    assert f"openstack application credential delete {made['id']}" in errors
    assert [one["id"] for one in fiona.credentials()] == [made["id"]]
    code, _, errors = fiona.sign_on("logout", "--timeout=1").end()
    assert (code, "nobody logged in within 1 s" in errors) == (3, True)
    fiona.works("get", "pods")


def test_without_a_credential_a_token_of_single_sign_on_does_until_it_ends(fiona: Federated) -> None:
    api = fiona.cluster.api
    words = (f"--os-identity-provider={PROVIDER}", f"--os-protocol={PROTOCOL}", f"--os-redirect-port={PORT}")
    words = (*words, "--os-auth-type=v3websso", f"--os-auth-url={fiona.sso.url}")
    cluster = (f"--server=https://127.0.0.1:{api.port}", f"--certificate-authority={api.ca}")
    made = fiona.sign_on("kubeconfig", *cluster, *words)
    made.browse()
    assert made.end()[0] == 0
    (fiona.home / "url").unlink()
    code, _, errors = fiona.kubectl("get", "pods")
    assert (code, "nobody is logged in" in errors) == (1, True)
    # kubectl itself opens no browser.
    assert not (fiona.home / "url").exists()
    login = fiona.sign_on("login")
    login.browse()
    assert login.end()[0] == 0
    fiona.works("get", "pods")
    assert fiona.credentials() == []
    fiona.works("keystone-auth", "logout")
    assert fiona.kubectl("get", "pods")[0] == 1


def test_of_several_projects_one_has_to_be_named(fiona: Federated, feds: Group) -> None:
    other = fiona.cluster.keystone.project("other")
    fiona.cluster.keystone.grant("member", feds, other)
    try:
        login = fiona.first()
        login.browse()
        code, _, errors = login.end()
        assert code == 4
        assert "which project is meant? --project-id says it. There are: " in errors
        assert f"'demo' ({fiona.cluster.demo.id}, domain default)" in errors
        assert f"'other' ({other.id}, domain default)" in errors
        login = fiona.first("--os-project-name=demo")
        login.browse()
        assert login.end()[0] == 0
        login = fiona.first("--os-project-name=third")
        login.browse()
        code, _, errors = login.end()
        assert (code, "has no role in the project 'third'. It has in: '" in errors) == (4, True)
    finally:
        fiona.cluster.keystone.delete(other)


def test_keystone_says_what_the_operator_has_to_set_where_groups_do_not_last(fiona: Federated) -> None:
    fiona.sso.lasting(None)
    try:
        login = fiona.first()
        login.browse()
        code, _, errors = login.end()
    finally:
        fiona.sso.lasting(60)
    assert code == 3
    assert "Keystone makes no application credential of roles that do not last" in errors
    assert "openstack identity provider set --authorization-ttl MINUTES" in errors
    assert not (fiona.home / ".kube" / "config").exists()


# -- what others may try


def test_a_token_of_somebody_elses_is_not_taken_from_another_tab(fiona: Federated, tmp_path: Path) -> None:
    """An attacker's page in the same browser, while the login is under way: it posts the attacker's own token."""
    cluster = fiona.cluster
    foreign = cluster.keystone.token(cluster.alice)
    login = fiona.first()
    mine = fiona.opened.new_page()
    mine.goto(login.url())
    mine.wait_for_url("**/oauth2/authorize**")
    theirs = fiona.opened.new_page()
    form = f'<form method="post" action="{ORIGIN}"><input name="token" value="{foreign}"></form>'
    theirs.set_content(form)
    theirs.evaluate("document.forms[0].submit()")
    theirs.wait_for_selector("#title:has-text('Not logged in')")
    assert "was not begun in this tab" in theirs.inner_text("#text")
    # Without the form, from a script: not even that far.
    sent = theirs.evaluate(
        "([url, token]) => fetch(url, {method: 'POST', mode: 'no-cors', body: new URLSearchParams({token})}).then("
        "(found) => found.status)",
        [ORIGIN, foreign],
    )
    assert sent in (0, 403)
    fiona.sso.log_in(mine, fiona.account)
    mine.wait_for_selector("#title:has-text('Logged in')")
    code, output, _ = login.end()
    assert (code, f"logged in as {fiona.account} " in output) == (0, True)


def test_nothing_but_keystones_page_in_the_right_tab_is_taken(fiona: Federated) -> None:
    token = fiona.cluster.keystone.token(fiona.cluster.alice)
    login = fiona.first()
    url = login.url()
    form = f"token={token}"
    assert answer("GET", f"/auth/websso/?{form}")[0] == 404
    assert answer("POST", "/auth/websso/", form)[0] == 409
    page = login.person.opened.new_page()
    page.goto(url)
    page.wait_for_url("**/oauth2/authorize**")
    assert answer("POST", "/auth/websso/", form, Host=f"evil.example:{PORT}")[0] == 421
    assert answer("POST", "/auth/websso/", form, Origin="https://evil.example")[0] == 403
    assert answer("POST", "/auth/websso/", form, Sec_Fetch_Mode="no-cors")[0] == 403
    assert answer("POST", "/auth/websso/", f"{form}&{form}")[0] == 400
    status, shown = answer("POST", "/auth/websso/", form)
    assert (status, token in shown) == (200, False)
    assert answer("POST", "/confirm", "secret=guessed&answer=guessed", Origin=f"http://localhost:{PORT}")[0] == 403
    fiona.sso.log_in(page, fiona.account)
    page.wait_for_selector("#title:has-text('Logged in')")
    code, output, _ = login.end()
    assert (code, f"logged in as {fiona.account} " in output) == (0, True)
    with pytest.raises(ConnectionRefusedError):
        answer("POST", "/auth/websso/", form)


def test_an_address_that_somebody_else_opened_first_ends_the_login(fiona: Federated) -> None:
    login = fiona.first()
    path = login.url().partition(str(PORT))[2]
    assert answer("GET", path)[0] == 200
    page = fiona.opened.new_page()
    page.goto(login.url())
    assert page.inner_text("#title") == "Not again"
    code, _, errors = login.end()
    assert (code, "the address was opened twice" in errors) == (3, True)


def test_nobody_who_logs_in_is_waited_for_only_so_long(fiona: Federated) -> None:
    login = fiona.first("--timeout=1")
    code, _, errors = login.end()
    assert (code, "nobody logged in within 1 s" in errors) == (3, True)
    assert f"trusted_dashboard = {ORIGIN}" in errors


def test_an_interrupted_login_listens_no_more_and_a_taken_port_is_named(fiona: Federated) -> None:
    # Where the tests run in the background, children would inherit that it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    login = fiona.first()
    signal.signal(signal.SIGINT, before)
    login.url()
    code, _, errors = fiona.first().end()
    assert (code, f"port {PORT} of this machine cannot be had" in errors) == (2, True)
    # kubectl and its plug-in are one program by now.
    login.begun.send_signal(signal.SIGINT)
    assert login.end()[0] == 130
    with pytest.raises(ConnectionRefusedError):
        answer("GET", "/")
