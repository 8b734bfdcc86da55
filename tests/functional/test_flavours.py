"""Kubeconfigs that need no plug-in: with the real kubectl, a real Keystone and a real API server; and attacks on them.

Each attack is tried twice: on the file as it is, and on one without the one thing that keeps it off, which shows that
the attack is one.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shlex
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import kubeconfigs
from config import CharmConfig
from files import Places
from testbed import setup
from testbed.certificates import Authority
from testbed.keystone import ApplicationCredential
from tests.functional import test_plugin_kubectl as with_plugin
from tests.functional.conftest import PROJECT
from tests.functional.test_plugin_kubectl import Cluster, Person

pytestmark = pytest.mark.functional

cluster, person = with_plugin.cluster, with_plugin.person
SHELLS = {
    "dash": ["/usr/bin/dash"],
    "bash as sh": ["/usr/bin/bash", "--posix"],
    "busybox": ["/usr/bin/busybox", "sh"],
    "mksh": ["/usr/bin/mksh"],
}
SECRET = 'it\'s "$(touch /tmp/x)" \\n `id` %s\n gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n \N{SNOWMAN}'
CLIENT = PROJECT / ".venv" / "bin"


@pytest.fixture(scope="module", autouse=True)
def _shells() -> None:
    setup.apt("busybox", "mksh")


@pytest.fixture
def credential(cluster: Cluster) -> ApplicationCredential:
    return cluster.keystone.application_credential(cluster.alice, cluster.demo, secret=SECRET)


@dataclass
class User:
    """Somebody who has kubectl and a kubeconfig, and no plug-in."""

    person: Person
    credential: ApplicationCredential
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The kubeconfig."""
        return self.person.home / ".kube" / "config"

    def make(self, flavour: str, *words: str, **environment: str) -> None:
        """Have the plug-in write the kubeconfig; what it reads is not there afterwards."""
        cluster = self.person.cluster
        known = (f"--server=https://127.0.0.1:{cluster.api.port}", f"--certificate-authority={cluster.api.ca}")
        login = {
            "OS_AUTH_URL": cluster.keystone.url,
            "OS_APPLICATION_CREDENTIAL_ID": self.credential.id,
            "OS_APPLICATION_CREDENTIAL_SECRET": self.credential.secret,
        }
        words = ("keystone-auth", "kubeconfig", f"--flavour={flavour}", *known, *words)
        code, output, errors = self.person.kubectl(*words, **{**login, **environment})
        assert code == 0, errors
        assert self.credential.secret not in output + errors
        assert self.path.stat().st_mode & 0o777 == 0o600

    def change(self, changed: Callable[[dict[str, Any]], None]) -> None:
        """Change the exec section."""
        content = yaml.safe_load(self.path.read_text())
        changed(content["users"][0]["user"]["exec"])
        self.path.write_text(yaml.safe_dump(content))

    def shell(self, *words: str) -> None:
        """Let another shell than the system's run the script."""

        def changed(section: dict[str, Any]) -> None:
            section["command"], section["args"] = words[0], [*words[1:], *section["args"]]

        self.change(changed)

    def soften(self, *replacements: tuple[str, str]) -> None:
        """Take something out of the script."""

        def changed(section: dict[str, Any]) -> None:
            for hard, soft in replacements:
                assert hard in section["args"][-1]
                section["args"][-1] = section["args"][-1].replace(hard, soft)

        self.change(changed)

    def environment(self) -> dict[str, str]:
        """Only what everybody has."""
        return {"HOME": str(self.person.home), "PATH": "/usr/bin:/bin", **self.extra}

    def begin(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start kubectl."""
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        program = setup.kubernetes() / "kubectl"
        folder = self.person.home
        return subprocess.Popen(
            [program, *arguments], env={**self.environment(), **more}, cwd=folder, text=True, **pipes
        )

    def kubectl(self, *arguments: str, **more: str) -> tuple[int, str, str]:
        """Run kubectl."""
        started = self.begin(*arguments, **more)
        output, errors = started.communicate(timeout=120)
        return started.returncode, output, errors

    def name(self, **more: str) -> str:
        """Whom the cluster takes this user for; on a busy machine a token may not be judged in time."""
        end = time.monotonic() + 60
        while (said := self.kubectl("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", **more))[0]:
            assert time.monotonic() < end, said
        return said[1]


@pytest.fixture
def user(person: Person, credential: ApplicationCredential) -> User:
    return User(person, credential)


# -- with sh and curl


@pytest.mark.parametrize("shell", SHELLS)
def test_sh_and_curl_are_enough(user: User, shell: str) -> None:
    user.make("curl")
    user.shell(*SHELLS[shell])
    assert user.name() == "keystone:alice"
    assert user.kubectl("get", "pods")[0] == 0


def test_the_file_is_whole(user: User) -> None:
    """Keystone's CA is in it: nothing else is read, and the shell's own login is not looked at."""
    user.make("curl")
    content = user.path.read_text()
    assert str(user.person.cluster.keystone.ca) not in content
    assert "BEGIN CERTIFICATE" in content
    stray = {"OS_AUTH_URL": "https://127.0.0.1:1/v3", "OS_CACERT": "/nowhere", "OS_CLOUD": "other", "OS_USERNAME": "x"}
    assert user.name(**stray) == "keystone:alice"


def test_kubectl_keeps_the_token_until_it_ends(user: User) -> None:
    user.make("curl")
    keystone = user.person.cluster.keystone
    keystone.forget_calls()
    # Several requests: discovery first, as there is no cache of it yet.
    assert user.kubectl("get", "pods")[0] == 0
    calls = [call for call in keystone.calls("POST", "/v3/auth/tokens") if call.agent.startswith("curl/")]
    assert len(calls) == 1


def test_errors_are_one_line_with_the_plug_ins_codes(user: User) -> None:
    cluster = user.person.cluster
    user.make("curl")
    good = user.path.read_text()

    def refused(**changes: str) -> str:
        user.path.write_text(good)

        def changed(section: dict[str, Any]) -> None:
            for entry in section["env"]:
                entry["value"] = changes.get(entry["name"], entry["value"])

        user.change(changed)
        code, output, errors = user.kubectl("get", "pods")
        assert (code, output) == (1, "")
        assert SECRET not in errors
        (line,) = {line for line in errors.splitlines() if line.startswith("login at Keystone: ")}
        return f"{errors.rstrip().rpartition(' ')[2]} {line.removeprefix('login at Keystone: ')}"

    said = refused(OS_APPLICATION_CREDENTIAL_SECRET="wrong word")
    assert said.startswith("3 Keystone refuses the application credential: ")
    assert refused(OS_APPLICATION_CREDENTIAL_ID="0" * 32).startswith("3 Keystone refuses")
    assert refused(OS_AUTH_URL="https://127.0.0.1:1/v3").startswith("5 nothing listens")
    assert refused(OS_AUTH_URL=f"https://127.0.0.1:{cluster.api.port}/v3").startswith("6 the certificate")
    assert refused(KEYSTONE_CA=Authority("x").certificate.decode()).startswith("6 the certificate")
    assert refused(KEYSTONE_CA="nonsense").startswith("6 ")
    assert refused(OS_AUTH_URL=cluster.keystone.url.replace("/v3", "/v9")).startswith("5 something else than")
    cluster.keystone.stop()
    try:
        assert refused().startswith("5 nothing listens")
    finally:
        cluster.keystone.start()


# -- attacks


class Listener:
    """Somebody who takes connections, with or without a certificate, and keeps what is said."""

    def __init__(self, authority: Authority | None = None, folder: Path | None = None, answer: str = "") -> None:
        heard: list[str] = []
        self.heard = heard

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_CONNECT(self) -> None:
                heard.append(self.path)
                self.send_error(502)

            def do_POST(self) -> None:
                heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(307 if answer else 401)
                if answer:
                    self.send_header("Location", answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        if authority and folder:
            pair = authority.sign("x", hosts=["127.0.0.1"])
            (folder / "x.pem").write_bytes(pair.certificate + pair.key)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "x.pem")
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


SOFT = "gheimnis-0123456789-gheimnis"
"""A secret without anything odd, so that it is found wherever it is written."""


@pytest.fixture
def prey(person: Person, cluster: Cluster) -> User:
    """A user whose file is attacked; the system's sh is taken for bash, which has more to attack."""
    made = User(person, cluster.keystone.application_credential(cluster.alice, cluster.demo, secret=SOFT))
    made.make("curl")
    made.shell(*SHELLS["bash as sh"])
    return made


def stolen(user: User) -> bool:
    """Whether the secret is in some file of the user's home, beside the kubeconfig."""
    found = [path for path in user.person.home.rglob("*") if path.is_file() and path != user.path]
    return any(SOFT in path.read_text(errors="replace") for path in found)


QUIET = (" -q --silent", " --silent")
NO_FUNCTIONS = (("unset -f command curl cat printf read", "true"), ("command curl", "curl"))
NO_PATH = ("PATH=/usr/bin:/bin:${PATH-}", "PATH=${PATH-}")


def curlrc(user: User, folder: Path, text: str = "") -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / ".curlrc").write_text(text or f'trace-ascii = "{user.person.home}/trace"\n')


def by_curlrc(user: User) -> None:
    curlrc(user, user.person.home)


def by_curl_home(user: User) -> None:
    curlrc(user, user.person.home / "elsewhere")
    user.extra["CURL_HOME"] = str(user.person.home / "elsewhere")


def by_xdg(user: User) -> None:
    curlrc(user, user.person.home / "xdg")
    # Whichever it reads: that has changed.
    (user.person.home / "xdg" / "curlrc").write_bytes((user.person.home / "xdg" / ".curlrc").read_bytes())
    user.extra["XDG_CONFIG_HOME"] = str(user.person.home / "xdg")


def by_function(user: User) -> None:
    user.extra["BASH_FUNC_curl%%"] = f"() {{ /bin/cat >{user.person.home}/stolen; }}"


def by_path(user: User) -> None:
    program = user.person.home / "curl"
    program.write_text(f"#!/bin/sh\ncat >{user.person.home}/stolen\n")
    program.chmod(0o755)
    user.extra["PATH"] = ".:/usr/bin:/bin"


@pytest.mark.parametrize(
    ("attack", "softer"),
    [
        (by_curlrc, [QUIET]),
        (by_curl_home, [QUIET]),
        (by_xdg, [QUIET]),
        (by_function, NO_FUNCTIONS),
        (by_path, [NO_PATH]),
    ],
)
def test_the_secret_is_not_stolen_into_a_file(prey: User, attack: Callable[[User], None], softer: Any) -> None:
    attack(prey)
    assert prey.name() == "keystone:alice"
    assert not stolen(prey)
    prey.soften(*softer)
    prey.kubectl("get", "pods")
    assert stolen(prey)


def test_tracing_shows_no_secret(prey: User) -> None:
    environment = {"SHELLOPTS": "xtrace:verbose", "PS4": "+ ", "ENV": "/nowhere", "BASH_ENV": "/nowhere"}
    code, _, errors = prey.kubectl("get", "pods", **environment)
    assert (code, SOFT in errors, "gAAAA" in errors) == (0, False, False)
    prey.soften(("set +vxeua && set -f", "true"))
    assert SOFT in prey.kubectl("get", "pods", **environment)[2]


def test_no_proxy_of_the_environments_is_asked(prey: User) -> None:
    proxy = Listener()
    names = ("https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
    # kubectl itself shall not ask it: it takes no proxy to this address.
    environment = dict.fromkeys(names, f"http://127.0.0.1:{proxy.port}")
    try:
        assert prey.name(**environment) == "keystone:alice"
        assert proxy.heard == []
        prey.soften((" --noproxy '*'", ""))
        prey.kubectl("get", "pods", **environment)
        assert set(proxy.heard) == {prey.person.cluster.keystone.url.removeprefix("https://").removesuffix("/v3")}
    finally:
        proxy.close()


def set_url(user: User, url: str, ca: str | None = None) -> None:
    def changed(section: dict[str, Any]) -> None:
        for entry in section["env"]:
            if entry["name"] == "OS_AUTH_URL":
                entry["value"] = url
            if entry["name"] == "KEYSTONE_CA" and ca is not None:
                entry["value"] = ca

    user.change(changed)


@pytest.mark.parametrize("name", ["CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_no_ca_of_the_environments_is_trusted(prey: User, name: str, tmp_path: Path) -> None:
    theirs = Authority("theirs")
    (tmp_path / "theirs.pem").write_bytes(theirs.certificate)
    thief = Listener(theirs, tmp_path)
    set_url(prey, f"https://127.0.0.1:{thief.port}/v3")
    environment = {name: str(tmp_path / "theirs.pem")}
    try:
        assert "is not trusted" in prey.kubectl("get", "pods", **environment)[2]
        assert thief.heard == []
        prey.soften(("${ca:+--cacert /dev/fd/3} ", ""))
        prey.kubectl("get", "pods", **environment)
        assert SOFT in thief.heard[0]
    finally:
        thief.close()


def test_no_redirect_takes_the_secret_along(prey: User, tmp_path: Path) -> None:
    ours = Authority("ours")
    thief = Listener(ours, tmp_path)
    keystone = Listener(ours, tmp_path, answer=f"https://127.0.0.1:{thief.port}/v3/auth/tokens")
    set_url(prey, f"https://127.0.0.1:{keystone.port}/v3", ours.certificate.decode())
    curlrc(prey, prey.person.home, "location\n")
    try:
        assert "redirects, and no secret is sent" in prey.kubectl("get", "pods")[2]
        assert (bool(keystone.heard), thief.heard) == (True, [])
        # The CA from a pipe is good for one connection; that this keeps a redirect off as well is luck.
        (tmp_path / "ours.pem").write_bytes(ours.certificate)
        prey.soften(QUIET, ("--cacert /dev/fd/3", f"--cacert {tmp_path}/ours.pem"))
        prey.kubectl("get", "pods")
        assert SOFT in thief.heard[0]
    finally:
        keystone.close()
        thief.close()


def test_the_connections_keys_are_not_written_down(prey: User) -> None:
    keys = prey.person.home / "keys"
    environment = {"SSLKEYLOGFILE": str(keys)}
    assert prey.name(**environment) == "keystone:alice"
    assert not keys.exists()
    prey.soften(("unset SSLKEYLOGFILE", "true"))
    assert prey.name(**environment) == "keystone:alice"
    assert keys.exists()


def seen(word: str, kind: str) -> set[str]:
    """The programs in whose arguments (`cmdline`) or environment (`environ`) a word is now."""
    found = set()
    for path in Path("/proc").glob(f"[0-9]*/{kind}"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes():
                found.add((path.parent / "comm").read_text().strip())
    return found


def test_no_process_list_shows_the_secret(prey: User) -> None:
    keystone = prey.person.cluster.keystone

    def looked() -> tuple[set[str], set[str]]:
        keystone.pause()
        running = prey.begin("get", "pods")
        try:
            end = time.monotonic() + 60
            while "curl" not in seen(f":{keystone.port}/v3/auth/tokens", "cmdline"):
                assert time.monotonic() < end
                time.sleep(0.05)
            return seen(SOFT, "cmdline"), seen(SOFT, "environ")
        finally:
            keystone.resume()
            running.communicate(timeout=120)

    arguments, environments = looked()
    assert arguments == set()
    assert "curl" not in environments
    prey.soften(("--data-binary @-", '--data-binary "$body"'), ("unset OS_APPLICATION_CREDENTIAL_SECRET", "true"))
    arguments, environments = looked()
    assert arguments == {"curl"}
    assert "curl" in environments


# -- the operators' file


@pytest.fixture
def handed_out(person: Person, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """What the action get-kubeconfig gives, for a cluster that is on loopback."""
    api, keystone = person.cluster.api, person.cluster.keystone
    server = kubeconfigs.Server(f"https://127.0.0.1:{api.port}", api.ca.read_text(), "the test")
    monkeypatch.setattr(kubeconfigs, "find_server", lambda *_: server)
    config = CharmConfig(keystone_url=keystone.url, keystone_ca=keystone.ca.read_text())

    def give(**parameters: Any) -> dict[str, str]:
        results = kubeconfigs.make(Places(charm=PROJECT), None, config, kubeconfigs.Wanted(**parameters))
        path = person.home / ".kube" / "config"
        path.parent.mkdir(exist_ok=True)
        path.write_text(results["kubeconfig"])
        return results

    return give


def test_the_operators_file_works_with_a_sourced_credential_or_one_written_into_it(
    user: User, handed_out: Callable[..., dict[str, str]]
) -> None:
    handed_out(flavour="curl", projects="demo", namespace="%n")
    assert "there is no application credential" in user.kubectl("get", "pods")[2]
    login = {
        "OS_AUTH_TYPE": "v3applicationcredential",
        "OS_APPLICATION_CREDENTIAL_ID": user.credential.id,
        "OS_APPLICATION_CREDENTIAL_SECRET": user.credential.secret,
    }
    assert user.name(**login) == "keystone:alice"
    text = user.path.read_text().replace("          #- name", "          - name").replace("   #  value", "     value")
    for value in (user.credential.id, user.credential.secret):
        text = text.replace('value: ""', f"value: {json.dumps(value)}", 1)
    user.path.write_text(text)
    assert user.name() == "keystone:alice"
    view = json.loads(user.kubectl("config", "view", "--minify", "-o", "json")[1])
    assert view["contexts"][0] == {
        "name": "keystone-demo",
        "context": {"cluster": "kubernetes", "user": "keystone-demo", "namespace": "demo"},
    }


def test_the_operators_file_for_the_plug_in_asks_or_takes_what_was_sourced(
    user: User, handed_out: Callable[..., dict[str, str]]
) -> None:
    handed_out(projects="demo")
    environment = {"PATH": f"{user.person.programs}:/usr/bin:/bin"}
    code, _, errors = user.kubectl("get", "pods", **environment)
    assert (code, "missing, and there is no terminal to ask on: the user (" in errors) == (1, True), errors
    password = {"OS_USERNAME": "alice", "OS_PASSWORD": user.person.cluster.alice.password}
    assert user.name(**environment, **password) == "keystone:alice"
    # As Horizon's openrc file for a credential sets it.
    sourced = {
        "OS_AUTH_TYPE": "v3applicationcredential",
        "OS_AUTH_URL": "https://elsewhere.invalid",
        "OS_IDENTITY_API_VERSION": "3",
        "OS_REGION_NAME": "RegionOne",
        "OS_INTERFACE": "public",
        "OS_APPLICATION_CREDENTIAL_ID": user.credential.id,
        "OS_APPLICATION_CREDENTIAL_SECRET": user.credential.secret,
    }
    assert user.name(**environment, **sourced) == "keystone:alice"


@pytest.mark.parametrize("flavour", ["plugin", "curl"])
@pytest.mark.parametrize("made", ["plugin", "curl"])
def test_the_operators_file_and_a_credential_are_all_that_the_plug_in_needs(
    user: User, handed_out: Callable[..., dict[str, str]], flavour: str, made: str
) -> None:
    handed_out(flavour=flavour, projects="demo")
    login = {
        "OS_APPLICATION_CREDENTIAL_ID": user.credential.id,
        "OS_APPLICATION_CREDENTIAL_SECRET": user.credential.secret,
        "OS_CACERT": "",
    }
    code, output, errors = user.person.kubectl("keystone-auth", "kubeconfig", f"--flavour={made}", "--use", **login)
    assert (code, "the context keystone-demo logs in as alice" in output) == (0, True), errors
    assert user.name(PATH=f"{user.person.programs}:/usr/bin:/bin") == "keystone:alice"


# -- the openstack client


def write_clouds(user: User, name: str, **more: str) -> None:
    keystone, folder = user.person.cluster.keystone, user.person.home / ".config" / "openstack"
    folder.mkdir(parents=True)
    auth = {
        "auth_url": keystone.url,
        "application_credential_id": user.credential.id,
        "application_credential_secret": user.credential.secret,
    }
    cloud = {"auth_type": "v3applicationcredential", "auth": auth, "cacert": str(keystone.ca), **more}
    (folder / "clouds.yaml").write_text(yaml.safe_dump({"clouds": {name: cloud}}))


def test_the_openstack_client_logs_in_with_horizons_clouds_file(
    user: User, handed_out: Callable[..., dict[str, str]]
) -> None:
    handed_out(flavour="openstack")
    write_clouds(user, "openstack")
    environment = {"PATH": f"{CLIENT}:/usr/bin:/bin"}
    assert user.name(**environment) == "keystone:alice"
    # What a shell was sourced for before is not mixed with it.
    stray = {"OS_PROJECT_NAME": "other", "OS_USERNAME": "bob", "OS_PASSWORD": "x", "OS_AUTH_TYPE": "password"}
    assert user.name(**environment, **stray) == "keystone:alice"
    user.soften(("unset $others OS_AUTH_TYPE", "true"))
    assert user.kubectl("get", "pods", **environment, **stray)[0] == 1


def test_the_clouds_file_that_comes_with_it_is_one(user: User, handed_out: Callable[..., dict[str, str]]) -> None:
    given = handed_out(flavour="openstack", cloud="lab")
    folder = user.person.home / ".config" / "openstack"
    folder.mkdir(parents=True)
    (folder / "keystone-ca.pem").write_text(given["keystone-ca"])
    text = given["clouds"].replace("keystone-ca.pem", str(folder / "keystone-ca.pem"))
    for value in (user.credential.id, user.credential.secret):
        text = text.replace('""', json.dumps(value), 1)
    (folder / "clouds.yaml").write_text(text)
    assert user.name(PATH=f"{CLIENT}:/usr/bin:/bin") == "keystone:alice"


def test_the_plug_in_writes_a_file_for_the_openstack_client(user: User) -> None:
    user.make("openstack")
    assert user.name(PATH=f"{CLIENT}:/usr/bin:/bin", OS_PROJECT_NAME="other") == "keystone:alice"
    assert "there is no openstack client" in user.kubectl("get", "pods")[2]


def test_one_download_serves_kubectl_and_openstack(user: User) -> None:
    """`kubectl keystone-auth openrc` gives what the openstack client needs, of the kubeconfig's credential."""
    user.make("curl")
    code, output, errors = user.person.kubectl("keystone-auth", "openrc")
    assert code == 0, errors
    issue = f"{output}\nexec {CLIENT}/openstack token issue -f value -c project_id"
    done = subprocess.run(
        ["/bin/sh", "-c", issue],
        env={**user.environment(), "OS_CACERT": str(user.person.cluster.keystone.ca)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.returncode) == (user.person.cluster.demo.id, 0), done.stderr
    assert shlex.quote(SECRET) in output
    code, output, _ = user.person.kubectl("keystone-auth", "openrc", "--output=clouds")
    assert yaml.safe_load(output)["clouds"]["openstack"]["auth"]["application_credential_secret"] == SECRET


def test_a_cloud_of_horizons_becomes_a_file_for_curl(user: User) -> None:
    write_clouds(user, "openstack")
    cluster = user.person.cluster
    words = (f"--server=https://127.0.0.1:{cluster.api.port}", f"--certificate-authority={cluster.api.ca}")
    done = subprocess.run(
        [sys.executable, "-m", "kubectl_keystone_auth", "kubeconfig", "--flavour=curl", "--os-cloud=openstack", *words],
        env={**user.environment(), "PYTHONPATH": str(PROJECT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert user.name() == "keystone:alice"


# -- a token, several projects, and the plug-in's commands


def test_a_plain_token_is_for_devices_that_run_nothing(user: User) -> None:
    cluster, path = user.person.cluster, user.person.home / "phone.yaml"
    words = (f"--server=https://127.0.0.1:{cluster.api.port}", f"--certificate-authority={cluster.api.ca}")
    password = {"OS_AUTH_URL": cluster.keystone.url, "OS_USERNAME": "alice", "OS_PASSWORD": cluster.alice.password}
    words = ("keystone-auth", "kubeconfig", "--flavour=token", f"--output={path}", *words)
    for _ in range(2):  # the second takes the first one's place
        code, output, errors = user.person.kubectl(*words, OS_PROJECT_NAME="demo", **password)
        assert code == 0, errors
        assert "minutes from now, and until then whoever has the file is you" in errors
        assert "gAAAA" not in output + errors
    assert path.stat().st_mode & 0o777 == 0o600
    assert user.name(KUBECONFIG=str(path), PATH="/nowhere") == "keystone:alice"
    assert user.kubectl("config", "view", KUBECONFIG=str(path))[0] == 0
    before = path.read_bytes()
    code, _, errors = user.person.kubectl(*words, OS_AUTH_TYPE="v3token", OS_AUTH_URL=cluster.keystone.url,
                                          OS_TOKEN=cluster.keystone.token(cluster.alice))  # fmt: skip
    assert (code, path.read_bytes()) == (4 if "not for a project" in errors else code, before)
    assert code != 0


def test_each_project_is_a_context(user: User) -> None:
    cluster = user.person.cluster
    web = cluster.keystone.project("web")
    cluster.keystone.grant("member", cluster.alice, web)
    words = (f"--server=https://127.0.0.1:{cluster.api.port}", f"--certificate-authority={cluster.api.ca}")
    login = {"OS_AUTH_URL": cluster.keystone.url, "OS_USERNAME": "alice", "OS_PASSWORD": cluster.alice.password}
    code, output, errors = user.person.kubectl(
        "keystone-auth", "kubeconfig", "--all-projects", "--namespace=in-%n", *words, **login, OS_PROJECT_NAME="demo"
    )
    assert (code, output.count("the context")) == (0, 2), errors
    for project in (cluster.demo, web):
        said = user.person.works(
            "auth", "whoami", "-o", "json", f"--context=keystone-{project.name}", OS_PASSWORD=cluster.alice.password
        )
        assert f"keystone:project:{project.id}" in json.loads(said)["status"]["userInfo"]["groups"]
    view = json.loads(user.kubectl("config", "view", "-o", "json")[1])
    assert [one["context"]["namespace"] for one in view["contexts"]] == ["in-demo", "in-web"]
    cluster.keystone.delete(web)


def test_the_plug_ins_commands_know_a_file_for_curl(user: User) -> None:
    user.make("curl")
    code, output, errors = user.person.kubectl("keystone-auth", "whoami", OS_CACERT="", OS_USERNAME="stray")
    assert code == 0, errors
    assert "keystone:alice" in output
    user.make("curl")  # in the place of the one that is there
    user.make("plugin")
    assert user.person.name() == "keystone:alice"


def test_what_no_file_can_hold_is_refused(user: User) -> None:
    cluster = user.person.cluster
    words = (f"--server=https://127.0.0.1:{cluster.api.port}", f"--certificate-authority={cluster.api.ca}")
    login = {"OS_AUTH_URL": cluster.keystone.url, "OS_USERNAME": "alice", "OS_PASSWORD": cluster.alice.password}
    for more, part in (
        (("--flavour=curl",), "takes an application credential"),
        (("--flavour=openstack",), "takes an application credential"),
        (("--flavour=telnet",), "--flavour: there are plugin, curl, "),
        (("--flavour=curl", "--all-projects"), "--all-projects takes a password"),
        (("--namespace=No",), "no name of a namespace"),
    ):
        code, output, errors = user.person.kubectl(
            "keystone-auth", "kubeconfig", *words, *more, **login, OS_PROJECT_NAME="demo"
        )
        assert (code, output, part in errors) == (2, "", True), errors
    assert not user.path.exists()


@pytest.fixture(scope="module", autouse=True)
def _nothing_was_touched() -> Iterator[None]:
    """What is in the hostile secret is never run."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink("/tmp/x")  # noqa: PTH108
    yield
    assert not Path("/tmp/x").exists()
