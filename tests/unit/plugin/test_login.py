"""Calls as kubectl makes them: what is answered, what Keystone is asked, and what is said when it goes wrong."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kubectl_keystone_auth.keystone import proxy_for
from tests.unit.authenticator.support import StandIn, eventually, keystone_error, token_body
from tests.unit.plugin.support import CREDENTIAL, PASSWORD, SECRET, USER, LoginStandIn, exec_info

ALICE = {"OS_PASSWORD": PASSWORD}
ROBOT = {"OS_APPLICATION_CREDENTIAL_ID": CREDENTIAL, "OS_APPLICATION_CREDENTIAL_SECRET": SECRET}


@pytest.fixture
def url(keystone: LoginStandIn) -> str:
    return f"--keystone-url={keystone.url}"


# -- what is answered


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_the_answer_is_in_the_version_asked_with_a_token_at_hand_or_without(keystone, plugin, url, version):
    said = [plugin.call(url, *USER, info=exec_info(version), **ALICE) for _ in range(2)]
    assert said[0] == said[1]
    code, output, errors = said[0]
    answer = json.loads(output)
    assert (code, errors) == (0, "")
    assert (answer["kind"], answer["apiVersion"]) == ("ExecCredential", f"client.authentication.k8s.io/{version}")
    assert answer["status"]["token"] == keystone.headers["X-Subject-Token"]
    end = datetime.datetime.fromisoformat(answer["status"]["expirationTimestamp"].replace("Z", "+00:00"))
    # A little before Keystone's own end, so that no request is under way when it comes.
    left = end.timestamp() - time.time()
    assert 3400 < left < 3500
    assert keystone.logins == 1


def test_who_does_not_say_in_which_version_gets_upstreams(plugin, url):
    _, output, _ = plugin.call(url, *USER, info=None, **ALICE)
    assert json.loads(output)["apiVersion"] == "client.authentication.k8s.io/v1beta1"


def test_a_garbled_question_is_not_answered(keystone, plugin, url):
    code, said = plugin.refusal(url, *USER, info="garbage", **ALICE)
    assert (code, keystone.logins) == (2, 0)
    assert "KUBERNETES_EXEC_INFO" in said


def test_horizons_arguments_log_in_and_ask_for_no_scope(keystone, plugin, url):
    arguments = ("--domain-name=none", "--user-name=1f0e", f"--application-credential-id={CREDENTIAL}")
    sourced = {"OS_PROJECT_ID": "9", "OS_CLOUD": "prod", "OS_USERNAME": "bob", "OS_PASSWORD": "p"}
    assert plugin.token(url, *arguments, f"--application-credential-secret={SECRET}", **sourced)
    _, path, headers, body = keystone.requests[0]
    assert path == "/v3/auth/tokens?nocatalog"
    assert headers["user-agent"].startswith("kubectl-keystone-auth/")
    credential = {"id": CREDENTIAL, "secret": SECRET}
    identity = {"methods": ["application_credential"], "application_credential": credential}
    assert json.loads(body) == {"auth": {"identity": identity}}


@pytest.mark.parametrize(
    ("arguments", "user", "project"),
    [
        (USER, {"id": "default"}, {"id": "default"}),
        ((*USER, "--domain-name=Acme"), {"name": "Acme"}, {"name": "Acme"}),
        ((*USER, "--domain-id=a1"), {"id": "a1"}, {"id": "a1"}),
        ((*USER, "--domain-name=Acme", "--project-domain-id=a1"), {"name": "Acme"}, {"id": "a1"}),
        ((*USER, "--os-default-domain=a1", "--user-domain-name=Acme"), {"name": "Acme"}, {"id": "a1"}),
    ],
)
def test_domains_are_those_given_and_else_the_default(keystone, plugin, url, arguments, user, project):
    assert plugin.token(url, *arguments, **ALICE)
    auth = json.loads(keystone.requests[0][3])["auth"]
    assert auth["identity"]["password"]["user"] == {"name": "alice", "domain": user, "password": PASSWORD}
    assert auth["scope"] == {"project": {"name": "demo", "domain": project}}


def test_a_credential_is_known_by_name_too(keystone, plugin, url):
    words = ("--application-credential-name=ci", "--user-id=1f0e")
    assert plugin.token(url, *words, OS_APPLICATION_CREDENTIAL_SECRET=SECRET)
    credential = json.loads(keystone.requests[0][3])["auth"]["identity"]["application_credential"]
    assert credential == {"name": "ci", "secret": SECRET, "user": {"id": "1f0e"}}


# -- the token at hand


def test_with_a_token_at_hand_nothing_is_loaded_but_what_python_has_loaded(plugin, url):
    plugin.token(url, *USER, **ALICE)
    environment = plugin.environment(**ALICE)
    program = (
        f"import sys; sys.path[:0] = [{environment['PYTHONPATH']!r}]; before = set(sys.modules)\n"
        "from kubectl_keystone_auth.main import main\n"
        "main(); print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-I", "-S", "-c", program, url, *USER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer, loaded = done.stdout.splitlines()
    assert json.loads(answer)["status"]["token"]
    ours = ["", ".cache", ".errors", ".main", ".options"]
    python = ["__future__", "os", "os.path", "posixpath", "genericpath", "stat", "_stat", "binascii"]
    abstract = ["_collections_abc", "abc", "_abc"]
    assert set(loaded.split()) <= {*(f"kubectl_keystone_auth{name}" for name in ours), *python, *abstract}


def test_two_users_of_one_machine_account_get_their_own(keystone, plugin, url):
    alice = plugin.token(url, *USER, **ALICE)
    robot = plugin.token(url, **ROBOT)
    bob = plugin.token(url, "--user-name=bob", "--project-name=demo", **ALICE)
    assert len({alice, robot, bob}) == 3
    assert (plugin.token(url, *USER, **ALICE), plugin.token(url, **ROBOT)) == (alice, robot)
    assert keystone.logins == 3


def test_ten_calls_at_once_log_in_once(keystone, plugin, url):
    keystone.hang()
    begun = [plugin.begin(url, *USER, **ALICE) for _ in range(10)]
    eventually(lambda: keystone.logins, 20)
    keystone.release()
    tokens = {json.loads(one.communicate(timeout=60)[0])["status"]["token"] for one in begun}
    assert (len(tokens), keystone.logins) == (1, 1)


def waits(pid: int) -> bool:
    """Whether a call has come as far as the lock."""
    opened = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            opened.append(descriptor.readlink().name)
    return "lock" in opened


def test_ten_calls_at_once_with_a_wrong_password_are_one_try(keystone, plugin, url):
    keystone.hang()
    begun = [plugin.begin(url, *USER, OS_PASSWORD="wrong word") for _ in range(10)]
    eventually(lambda: all(waits(one.pid) for one in begun), 60)
    keystone.release()
    said = {(one.communicate(timeout=60)[1], one.returncode) for one in begun}
    assert ({code for _, code in said}, len(said)) == ({3}, 1)
    # So that no account is locked by it. The second request is the one that tells the password from the project.
    assert keystone.logins == 2


def test_kubectl_that_asks_again_after_a_failure_is_told_the_same_and_keystone_is_not_asked(keystone, plugin, url):
    said = {plugin.refusal(url, *USER, OS_PASSWORD="wrong word") for _ in range(3)}
    assert len(said) == 1
    assert keystone.logins == 2


def test_a_person_who_tries_again_means_it(keystone, plugin, url):
    assert plugin.refusal(url, *USER, info=None, OS_PASSWORD="wrong word")[0] == 3
    assert plugin.token(url, *USER, info=None, **ALICE)


def test_kubectl_that_asks_twice_gets_a_new_token(keystone, plugin, url):
    first = plugin.token(url, *USER, **ALICE)
    assert plugin.token(url, *USER, **ALICE) == first
    plugin.age(100, None, url, *USER)
    second = plugin.token(url, *USER, **ALICE)
    assert second != first
    assert plugin.token(url, *USER, **ALICE) == second


def test_a_token_that_is_about_to_end_is_renewed(keystone, plugin, url):
    first = plugin.token(url, *USER, **ALICE)
    plugin.age(3500, 100, url, *USER)
    assert plugin.token(url, *USER, **ALICE) != first


def test_while_keystone_is_away_a_token_that_has_not_ended_is_given_out(keystone, plugin, url):
    first = plugin.token(url, *USER, **ALICE)
    plugin.age(3500, 100, url, *USER)
    keystone.answer = 503, {}
    _, output, _ = plugin.call(url, *USER, **ALICE)
    status = json.loads(output)["status"]
    assert status["token"] == first
    end = datetime.datetime.fromisoformat(status["expirationTimestamp"].replace("Z", "+00:00")).timestamp()
    assert time.time() < end < time.time() + 100  # its real end: until then nobody need ask again
    assert plugin.token(url, *USER, info=None, **ALICE) == first
    # Neither this caller nor another one waits for Keystone again at once.
    assert keystone.logins == 2
    plugin.age(200, 0, url, *USER)
    assert plugin.refusal(url, *USER, **ALICE)[0] == 5


def test_a_token_that_has_not_ended_is_given_out_where_there_is_no_password_to_renew_it(keystone, plugin, url):
    first = plugin.token(url, *USER, **ALICE)
    plugin.age(3500, 100, url, *USER)
    Path(f"{plugin.cache(url, *USER).path}.handed").unlink()
    assert plugin.token(url, *USER) == first
    # But whoever was refused with it is told what is missing.
    code, said = plugin.refusal(url, *USER)
    assert (code, "the password (OS_PASSWORD)" in said) == (2, True)


def test_a_token_goes_when_keystone_refuses_the_login(keystone, plugin, url):
    plugin.token(url, *USER, **ALICE)
    plugin.age(100, None, url, *USER)
    assert plugin.refusal(url, *USER, OS_PASSWORD="changed meanwhile")[0] == 3
    assert plugin.cache(url, *USER).entry() is None


def test_without_a_cache_every_call_logs_in(keystone, plugin, url):
    assert plugin.token(url, *USER, "--no-cache", **ALICE) != plugin.token(url, *USER, "--no-cache", **ALICE)
    assert not plugin.folder.exists()


def test_no_secret_is_kept(plugin, url):
    plugin.token(url, *USER, **ALICE)
    plugin.token(url, **ROBOT)
    plugin.refusal(url, *USER, "--domain-name=x", OS_PASSWORD="not this one")
    kept = plugin.kept()
    for secret in (PASSWORD, SECRET, "not this one"):
        assert secret not in kept
        assert json.dumps(secret)[1:-1] not in kept
        assert ascii(secret)[1:-1] not in kept


def test_a_planted_token_is_not_given_out(keystone, plugin, url, tmp_path):
    plugin.token(url, *USER, **ALICE)
    path = Path(plugin.cache(url, *USER).path)
    planted = tmp_path / "planted"
    planted.write_text(path.read_text().replace(keystone.headers["X-Subject-Token"], "planted"))
    path.unlink()
    path.symlink_to(planted)
    assert plugin.token(url, *USER, **ALICE) == keystone.headers["X-Subject-Token"]
    assert "planted" in planted.read_text()


# -- what is said when it goes wrong


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (USER, {"OS_PASSWORD": "wrong word"}, 3, "refuses 'alice' (domain 'default'): user name, domain or password"),
        (
            USER[:1],
            {"OS_PASSWORD": PASSWORD, "OS_PROJECT_NAME": "other"},
            4,
            "'alice' .* no role in the project 'other'",
        ),
        ((), {**ROBOT, "OS_APPLICATION_CREDENTIAL_SECRET": "wrong word"}, 3, f"credential '{CREDENTIAL}': its secret"),
        ((), {**ROBOT, "OS_APPLICATION_CREDENTIAL_ID": "1" * 32}, 3, "has no application credential '1{32}'"),
        (USER, {}, 2, "missing, and there is no terminal to ask on: the password .OS_PASSWORD."),
        (USER[:1], {}, 2, "the project .--project-name or OS_PROJECT_NAME., the password"),
        ((), {"OS_APPLICATION_CREDENTIAL_ID": "9f"}, 2, "secret .OS_APPLICATION_CREDENTIAL_SECRET"),
        (USER, {**ALICE, "OS_CACERT": "/nowhere"}, 2, "the CA file '/nowhere' .* is not there"),
        (USER, {**ALICE, "OS_CACERT": __file__}, 2, "the CA file .* cannot be used"),
        ((*USER, "--cert=/nowhere"), ALICE, 2, "the client certificate '/nowhere' .* cannot be used"),
        (USER, {**ALICE, "OS_CACERT": ""}, 6, "is not trusted .*; --cacert or OS_CACERT names the CA"),
        (("--os-auth-type=nonsense",), {}, 2, "'nonsense' is no way to log in"),
    ],
)
def test_each_failure_is_one_line_with_a_code_of_its_kind(plugin, url, arguments, environment, code, message):
    found, said = plugin.refusal(url, *arguments, **environment)
    assert found == code
    assert re.search(message.replace("(domain 'default')", "[(]domain 'default'[)]"), said), said
    assert not any(secret in said for secret in ("wrong word", PASSWORD, SECRET))


def test_nothing_given_at_all_says_what_there_is_to_give(plugin):
    code, said = plugin.refusal()
    assert code == 2
    assert "--application-credential-id" in said
    assert "--os-cloud" in said


@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ("https://127.0.0.1:1/v3", 5, "cannot be reached: Connection refused"),
        ("https://nowhere.invalid/v3", 5, "its name does not resolve"),
        ("http://keystone.example/v3", 2, "would carry the secret unencrypted"),
        ("https://alice:gheim@keystone.example/v3", 2, "holds a user name or a password"),
        ("ftp://keystone.example/v3", 2, "is no http"),
        ("https://keystone.example:99999/v3", 2, "is none"),
        ("https://keystone.example/?a=b", 2, "without '[?]' and '#'"),
        ("https://keystone.example/\r\nX: y", 2, "is no http"),
    ],
)
def test_a_url_that_cannot_be_keystones_is_refused(plugin, where, code, message):
    found, said = plugin.refusal(f"--keystone-url={where}", *USER, **ALICE)
    assert found == code
    assert re.search(message, said), said
    assert "gheim" not in said


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        ((404, b"<html>"), 5, "answers 404, not as Keystone does"),
        ((401, b"{}"), 5, "answers 401, not as Keystone does"),
        ((401, DEEP), 5, "answers 401, not as Keystone does"),
        ((403, keystone_error(403, "no\nway")), 3, "refuses the login: no"),
        ((400, keystone_error(400, "what?")), 2, "does not understand the login .400.: what"),
        ((429, keystone_error(429, "slowly")), 5, "cannot answer now .429.: slowly"),
        ((503, keystone_error(503, "soon")), 5, "cannot answer now .503.: soon"),
        ((201, b"{}"), 5, "gave no token that can be used"),
        ((201, DEEP), 5, "gave no token that can be used"),
        ((201, b"x" * 3_000_000), 5, "answers without end"),
        ((401, keystone_error(401, "The password is expired and needs to be changed")), 3, "password is expired"),
        ((400, keystone_error(400, f"{PASSWORD!r} is too long")), 2, "[*][*][*]"),
    ],
)
def test_whatever_answers_is_told_from_a_verdict(keystone, plugin, url, answer, code, message):
    keystone.answer = answer
    found, said = plugin.refusal(url, *USER, **ALICE)
    assert found == code
    assert re.search(message, said), said
    assert "pass" not in said.replace("password is expired", "")


def test_a_token_with_quotes_in_it_is_none(keystone, plugin, url):
    keystone.token = 'a","x":"y'
    assert plugin.refusal(url, *USER, **ALICE)[0] == 5


def test_a_token_for_no_project_is_none_for_kubernetes(keystone, plugin, url):
    keystone.headers["X-Subject-Token"] = "abc"
    keystone.behaviour = lambda *_: (201, {"token": token_body(project=None)})
    assert plugin.refusal(url, *USER, **ALICE)[0] == 4


def test_a_redirect_is_named_and_not_followed(keystone, plugin, url):
    other = StandIn()
    keystone.headers["Location"] = f"{other.url}/v3/auth/tokens"
    keystone.answer = 307, b""
    code, said = plugin.refusal(url, *USER, **ALICE)
    other.close()
    assert (code, other.requests) == (5, [])
    assert other.url in said


def test_keystone_that_breaks_off_is_away(plugin, authority):
    listener = socket.create_server(("127.0.0.1", 0))
    context = authority.server_context()

    def serve() -> None:
        for _ in range(1):
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(10)

    threading.Thread(target=serve, daemon=True).start()
    code, said = plugin.refusal(f"--keystone-url=https://127.0.0.1:{listener.getsockname()[1]}", *USER, **ALICE)
    listener.close()
    assert code == 5
    assert "cannot be reached" in said


# -- clocks


def certificate(authority, begins: float, ends: float, folder: Path) -> ssl.SSLContext:
    """A server's certificate that holds from and until so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority._name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=begins))
        .not_valid_after(now + datetime.timedelta(days=ends))
        .add_extension(x509.SubjectAlternativeName([address]), critical=True)
        .sign(authority._key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "dated.pem").write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "dated.pem")
    return context


@pytest.mark.parametrize(
    ("begins", "ends", "code", "message"),
    [(1, 2, 7, "not valid yet by this machine's clock"), (-2, -1, 6, "has expired, unless this machine's clock")],
)
def test_a_certificate_of_another_time_points_to_the_clock(plugin, authority, tmp_path, begins, ends, code, message):
    keystone = LoginStandIn(certificate(authority, begins, ends, tmp_path))
    found, said = plugin.refusal(f"--keystone-url={keystone.url}", *USER, **ALICE)
    keystone.close()
    assert (found, keystone.logins) == (code, 0)
    assert message in said


@pytest.mark.parametrize(("hours", "way"), [(-3, "180 minutes ahead of"), (3, "180 minutes behind")])
def test_a_token_lasts_as_long_by_a_wrong_clock_and_the_clock_is_named(keystone, plugin, url, hours, way):
    there = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=hours)
    keystone.headers["Date"] = there.strftime("%a, %d %b %Y %H:%M:%S GMT")
    keystone.lifetime = 3600 + hours * 3600
    code, output, errors = plugin.call(url, *USER, **ALICE)
    end = json.loads(output)["status"]["expirationTimestamp"]
    left = datetime.datetime.fromisoformat(end.replace("Z", "+00:00")).timestamp() - time.time()
    assert code == 0
    assert 3300 < left < 3600
    assert f"this machine's clock is {way} Keystone's" in errors
    assert plugin.call(url, *USER, **ALICE) == (0, output, "")
    assert keystone.logins == 1


# -- the conversation


def test_verbose_shows_the_conversation_and_no_secret(keystone, plugin, url):
    code, output, errors = plugin.call(url, *USER, "-v", **ALICE)
    assert code == 0
    assert f"> POST {keystone.url}/auth/tokens?nocatalog" in errors
    assert '"name": "alice"' in errors
    assert '"password": "***"' in errors
    assert "x-subject-token: ***" in errors
    assert json.loads(output)["status"]["token"] not in errors
    assert ascii(PASSWORD)[1:-1] not in errors
    _, _, errors = plugin.call(url, "-v", **ROBOT)
    assert '"secret": "***"' in errors


def test_a_server_cannot_write_to_the_terminal(keystone, plugin, url):
    keystone.answer = 503, keystone_error(503, "\x1b]0;owned\x07\u202e\u0000")
    code, _, errors = plugin.call(url, *USER, "-v", **ALICE)
    assert code == 5
    assert not set(errors) & set("\x1b\x07\u202e\x00")


# -- proxies


class Proxy:
    """A proxy that tunnels to one place whatever it is asked for, and remembers what it was sent."""

    def __init__(self, port: int, status: str = "200 fine") -> None:
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target, self._status = port, status
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.heads.append(head)
            client.sendall(f"HTTP/1.1 {self._status}\r\n\r\n".encode())
            if not self._status.startswith("200"):
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while part := source.recv(65536):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        # Its thread first: about to accept, it would do so on whatever gets the descriptor's number next.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


def test_a_proxy_is_a_tunnel_and_learns_the_hosts_name_alone(keystone, plugin):
    port = int(keystone.url.split(":")[2].split("/")[0])
    proxy = Proxy(port)
    # Reached through the proxy alone: no such address here.
    where = f"--keystone-url=https://localhost.localdomain.invalid:{port}/v3"
    through = {"HTTPS_PROXY": f"http://me:p%40ss@127.0.0.1:{proxy.port}", **ALICE}
    code, said = plugin.refusal(where, *USER, **through)
    assert (code, keystone.logins) == (6, 0)  # the certificate is checked for the host that was asked for
    assert "Hostname mismatch" in said
    assert plugin.token(where, *USER, "--insecure", **through, info=None)
    proxy.close()
    assert proxy.heads[0].startswith(b"CONNECT localhost.localdomain.invalid:%d HTTP/1." % port)
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==" in proxy.heads[0]
    assert PASSWORD.encode() not in b"".join(proxy.heads)


def test_a_proxy_that_refuses_is_named_as_the_reason(plugin):
    proxy = Proxy(0, "403 Forbidden by policy")
    through = {"HTTPS_PROXY": f"127.0.0.1:{proxy.port}", **ALICE}
    code, said = plugin.refusal("--keystone-url=https://keystone.invalid/v3", *USER, **through)
    proxy.close()
    assert code == 5
    assert "403 Forbidden by policy" in said


@pytest.mark.parametrize(
    ("proxy", "exempt", "host", "used"),
    [
        ("http://proxy:3128", "", "keystone.example", True),
        ("proxy:3128", "", "keystone.example", True),
        ("", "", "keystone.example", False),
        ("http://proxy:3128", "example", "keystone.example", False),
        ("http://proxy:3128", " .Example ,x", "keystone.example", False),
        ("http://proxy:3128", "*.example", "keystone.example", False),
        ("http://proxy:3128", "stone.example", "keystone.example", True),
        ("http://proxy:3128", "*", "keystone.example", False),
        ("http://proxy:3128", "keystone.example:5000", "keystone.example", False),
        ("http://proxy:3128", "keystone.example:443", "keystone.example", True),
        ("http://proxy:3128", "10.0.0.0/8", "10.1.2.3", False),
        ("http://proxy:3128", "10.0.0.0/8", "11.1.2.3", True),
        ("http://proxy:3128", "10.0.0.0/8", "keystone.example", True),
        ("http://proxy:3128", "", "127.0.0.1", False),
        ("http://proxy:3128", "", "localhost", False),
    ],
)
def test_a_proxy_is_used_as_kubectl_uses_it(proxy, exempt, host, used):
    for names in (("HTTPS_PROXY", "NO_PROXY"), ("https_proxy", "no_proxy")):
        found = proxy_for(host, 5000, dict(zip(names, (proxy, exempt), strict=True)))
        assert (found is not None) == used


@pytest.mark.parametrize("proxy", ["socks5://proxy:1080", "https://proxy", "http://", "http://proxy:x"])
def test_a_proxy_of_another_kind_is_refused(plugin, proxy):
    code, said = plugin.refusal("--keystone-url=https://keystone.example", *USER, HTTPS_PROXY=proxy, **ALICE)
    assert code == 2
    assert "HTTPS_PROXY" in said


# -- a terminal


@pytest.mark.parametrize("info", [exec_info(interactive=True), None])
def test_what_is_missing_is_asked_for_on_a_terminal(keystone, plugin, url, info, monkeypatch):
    monkeypatch.setattr("tests.unit.plugin.support.PASSWORD", "typed word")
    terminal = plugin.on_terminal(url, info=info)
    terminal.answer("User name: ", "alice")
    terminal.answer("Project name: ", "demo")
    terminal.answer("Password: ", "typed word")
    code, output = terminal.end()
    assert code == 0, terminal.shown
    assert json.loads(output)["status"]["token"] == keystone.headers["X-Subject-Token"]
    assert "alice" in terminal.shown
    assert "typed word" not in terminal.shown
    # The next call has a token at hand, and asks nothing.
    assert plugin.token(url) == keystone.headers["X-Subject-Token"]


def test_nothing_is_asked_where_kubectl_does_not_lend_its_terminal(plugin, url):
    terminal = plugin.on_terminal(url, *USER, info=exec_info())
    code, output = terminal.end()
    assert (code, output) == (2, "")
    assert "there is no terminal to ask on: the password" in terminal.shown


# -- faults of our own


def test_a_fault_of_the_plug_in_is_one_line_and_verbose_says_where(plugin, url, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import kubectl_keystone_auth.cache as cache\n"
        "def entry(self): raise ZeroDivisionError('gheim')\n"
        "cache.Cache.entry = entry\n"
    )
    path = f"{tmp_path}{os.pathsep}{plugin.environment()['PYTHONPATH']}"
    code, said = plugin.refusal(url, *USER, PYTHONPATH=path)
    assert code == 1
    assert "a fault of this plug-in" in said
    assert "ZeroDivisionError" in said
    code, _, errors = plugin.call(url, *USER, "-v", PYTHONPATH=path)
    assert "sitecustomize.py:2 entry" in errors
    assert "gheim" not in errors
