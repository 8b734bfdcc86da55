"""The scripts that log in without the plug-in: what they send, what they take for an answer, and what they say."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_powershell
import yaml

from kubectl_keystone_auth import flavours
from tests.unit.plugin.support import CREDENTIAL, LoginStandIn

SCRIPT = (flavours.LOGINS / "curl.sh").read_text()
CLIENT = (flavours.LOGINS / "openstack.sh").read_text()
POWERSHELL = (flavours.LOGINS / "powershell.ps1").read_text()
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"], "mksh": ["mksh"]}
CONTROLS = "".join(map(chr, range(1, 32))) + "\x7f"
HOSTILE = (
    f"a{CONTROLS}b",
    "\"'`\\ \\\\ \\n \\u0041 $(id) ${HOME} %s %41 $'x' !! *",
    " blanks at both ends, and line breaks\n\n",
    "END_OF_BODY\nEND_OF_BODY\n",
    "-q --data @/etc/passwd",
    "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n \N{SNOWMAN} \N{GRINNING FACE} \N{RIGHT-TO-LEFT OVERRIDE}",
)


@pytest.fixture(params=[name for name in SHELLS if shutil.which(name) or name in ("dash", "bash")])
def shell(request) -> list[str]:
    return SHELLS[request.param]


def run(shell: list[str], script: str = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    return subprocess.run(
        [*shell, "-c", script], env={**base, **environment}, capture_output=True, text=True, timeout=60
    )


def login(url: str, secret: str = "secret", **more: str) -> dict[str, str]:
    return {
        "OS_AUTH_URL": url,
        "OS_APPLICATION_CREDENTIAL_ID": CREDENTIAL,
        "OS_APPLICATION_CREDENTIAL_SECRET": secret,
        **more,
    }


@pytest.fixture
def keystone() -> Iterator[LoginStandIn]:
    """Without TLS, which the functional tests have."""
    stand_in = LoginStandIn()
    yield stand_in
    stand_in.close()


@pytest.mark.parametrize("secret", HOSTILE)
def test_a_secret_arrives_as_it_is_whatever_is_in_it(keystone, shell, secret):
    run(shell, **login(keystone.url, secret, OS_APPLICATION_CREDENTIAL_ID=f"{CREDENTIAL}{secret}"))
    ((_, path, headers, body),) = keystone.requests
    sent = json.loads(body)["auth"]["identity"]
    assert path == "/v3/auth/tokens?nocatalog"
    assert headers["content-type"] == "application/json"
    assert sent == {
        "methods": ["application_credential"],
        "application_credential": {"id": f"{CREDENTIAL}{secret}", "secret": secret},
    }


# -- answers


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that reads a request and says just this."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v3"
        thread.join(10)


BODY = (
    b'{"token": {"user": {"password_expires_at": "2001-01-01T00:00:00.0"},'
    b' "expires_at": "2030-01-02T03:04:05.000000Z"}}'
)


def head(*lines: str, status: str = "201 Created", body: bytes = BODY, end: str = "\r\n") -> bytes:
    length = f"Content-Length: {len(body)}"
    return end.join([f"HTTP/1.1 {status}", length, "Connection: close", *lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        head("X-Subject-Token: gAAAA-_=."),
        head("x-subject-token:gAAAA-_=."),
        head("X-SUBJECT-TOKEN: \t gAAAA-_=. "),
        head("X-Subject-Token: gAAAA-_=.", end="\n"),
        head("X-Subject-Token: early", status="103 Early Hints", body=b"").replace(b"Content-Length: 0\r\n", b"")
        + head("X-Subject-Token: gAAAA-_=."),
        head("X-Subject-Token: gAAAA-_=.", body=b"\n" + BODY.replace(b", ", b",\r\n  ")),
        head("X-Subject-Token: gAAAA-_=.", body=b"\r\nX-Subject-Token: other\r\n\r\n" + BODY),
        head(
            "X-Subject-Token: gAAAA-_=.",
            body=BODY.replace(b"2001-01-01T00:00:00.0", rb"\"expires_at\": \"2999-01-01T00:00:00Z\""),
        ),
    ],
)
def test_a_token_is_found_however_it_is_written(shell, answer):
    with answering(answer) as url:
        done = run(shell, **login(url))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "gAAAA-_=.", "expirationTimestamp": "2030-01-02T03:04:05Z"},
    }


@pytest.mark.parametrize("ends", [b"null", b'"soon"', b'"2030-01-02T03:04:05\\",\\"x\\":\\""'])
def test_an_end_that_is_no_time_is_left_out(shell, ends):
    with answering(head("X-Subject-Token: gAAAA", body=b'{"token": {"expires_at": ' + ends + b"}}")) as url:
        assert json.loads(run(shell, **login(url)).stdout)["status"] == {"token": "gAAAA"}


def keystone_says(status: int, message: str) -> bytes:
    body = json.dumps({"error": {"code": status, "message": message, "title": "x"}}).encode()
    return head(status=f"{status} x", body=body)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (keystone_says(401, "The request you have made requires authentication."), 3, "requires authentication."),
        (keystone_says(404, "Could not find Application Credential: x."), 3, "Could not find"),
        (keystone_says(500, "An unexpected error"), 5, "cannot answer now (500)"),
        (head(status="401 x", body=b"<html>log in</html>"), 5, "something else than Keystone answers"),
        (head("Location: https://elsewhere/", status="302 x", body=b""), 5, "redirects"),
        (head(), 5, "gives no token that can be used"),
        (head('X-Subject-Token: a","x":"'), 5, "gives no token that can be used"),
        (head("X-Subject-Token: gAAAA", status="200 OK"), 5, "something else than Keystone"),
        (head(status="400 x", body=b'{"error": {"message": "a\x1b[2Jb\x07"}}'), 5, "a\\u001b[2Jb\\u0007"),
        (b"nonsense\r\n\r\n", 5, "no answer"),
        (b"", 5, "no answer"),
    ],
)
def test_what_is_no_token_is_one_line_and_a_code_of_the_plug_ins(shell, answer, code, words):
    with answering(answer) as url:
        done = run(shell, **login(url))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert done.stderr.startswith("login at Keystone: ")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OS_AUTH_URL": "https://k/v3"}, "there is no application credential"),
        ({**login("https://k/v3"), "OS_APPLICATION_CREDENTIAL_ID": ""}, "there is no application credential"),
        (login("file:///etc/passwd"), "is no https:// URL"),
        ({**login("https://k/v3"), "PATH": "/nowhere"}, "there is no curl"),
    ],
)
def test_what_is_missing_is_one_line(shell, environment, words, tmp_path):
    (tmp_path / "printf").symlink_to(shutil.which("printf") or "")  # not every shell has its own
    # curl is where it always is: only a script that does not look there finds none.
    script = SCRIPT.replace("PATH=/usr/bin:/bin:${PATH-}", f"PATH={tmp_path}") if "curl" in words else SCRIPT
    done = subprocess.run(
        [shutil.which(shell[0]) or shell[0], *shell[1:], "-c", script],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert words in done.stderr


def test_nobody_there_is_one_line(shell):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        done = run(shell, **login(f"http://127.0.0.1:{taken.getsockname()[1]}/v3"))
    assert (done.returncode, done.stderr.count("\n"), "nothing listens" in done.stderr) == (5, 1, True)


def test_a_shell_that_stops_at_errors_and_unset_names_does_it_too(keystone):
    token = '{"apiVersion":'
    keystone.answer = None
    environment = login(keystone.url, SHELLOPTS="errexit:nounset:allexport:xtrace:verbose:noglob")
    environment["OS_APPLICATION_CREDENTIAL_SECRET"] = "wrong word"
    done = run(["bash", "--posix"], **environment)
    assert (done.returncode, "wrong word" in done.stderr) == (3, False)
    with answering(head("X-Subject-Token: gAAAA")) as url:
        done = run(["bash", "--posix"], **{**environment, "OS_AUTH_URL": url})
    assert (done.returncode, done.stdout[: len(token)]) == (0, token)


# -- the openstack client


@pytest.mark.parametrize(
    ("said", "code", "printed"),
    [
        ('expires="2030-01-02T03:04:05+0000"\nid="gAAAA"\nproject_id="1f"\n', 0, "2030-01-02T03:04:05Z"),
        ('expires="2030-01-02T03:04:05+0000"\nid="gAAAA"\nproject_id="None"\n', 4, "not for a project"),
        ('expires="2030-01-02T03:04:05+0000"\nid="gAAAA"\n', 4, "not for a project"),
        ("", 5, "no token that can be used"),
        ("exit 1", 3, "gives no token"),
        (None, 2, "no openstack client"),
    ],
)
def test_the_openstack_clients_token_is_taken_if_it_is_for_a_project(shell, tmp_path, said, code, printed):
    folder = tmp_path / "bin"
    folder.mkdir()
    if said is not None:
        body = said if said.startswith("exit") else f"/bin/cat <<'END'\n{said}END\n"
        (folder / "openstack").write_text(f'#!/bin/sh\n[ "$1 $2" = "token issue" ] || exit 9\n{body}')
        (folder / "openstack").chmod(0o755)
    program = shutil.which(shell[0])
    assert program
    done = subprocess.run(
        [program, *shell[1:], "-c", CLIENT], env={"PATH": f"{folder}:/bin"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert printed in (done.stdout if code == 0 else done.stderr)
    if code == 0:
        assert json.loads(done.stdout)["status"]["token"] == "gAAAA"


# -- PowerShell


def test_the_powershell_script_is_powershell():
    language = tree_sitter.Language(tree_sitter_powershell.language())

    def wrong(node: tree_sitter.Node) -> list[str]:
        own = [f"{node.type} in line {node.start_point.row + 1}"] if node.type == "ERROR" or node.is_missing else []
        return own + [found for child in node.children for found in wrong(child)]

    assert wrong(tree_sitter.Parser(language).parse(POWERSHELL.encode()).root_node) == []
    assert wrong(tree_sitter.Parser(language).parse(POWERSHELL.replace("{", "", 1).encode()).root_node) != []


def test_the_powershell_script_goes_through_a_command_line_and_loads_no_module():
    # Windows takes a command line apart by double quotes; a PSModulePath of PowerShell 7 breaks cmdlets of modules.
    assert '"' not in POWERSHELL
    assert not POWERSHELL.endswith("\\")
    assert len(POWERSHELL) < 16_000
    assert POWERSHELL.isascii()
    for cmdlet in ("New-Object", "ConvertTo-Json", "ConvertFrom-Json", "Invoke-", "Write-", "Add-Type", "Out-"):
        assert cmdlet not in POWERSHELL


@pytest.mark.skipif(not shutil.which("pwsh"), reason="there is no PowerShell here: its script is parsed, but never run")
def test_powershell_logs_in(keystone):
    words = flavours.section("powershell", {})["args"]
    for secret in HOSTILE:
        environment = {**os.environ, **login(keystone.url, secret)}
        done = subprocess.run(["pwsh", *words], env=environment, capture_output=True, text=True, timeout=60)
        assert json.loads(keystone.requests[-1][3])["auth"]["identity"]["application_credential"]["secret"] == secret
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)


# -- exec sections


@pytest.mark.parametrize("flavour", ["plugin", "curl", "powershell", "openstack"])
def test_a_flavour_reads_what_it_says(flavour):
    entry = yaml.safe_load((flavours.LOGINS / "flavours.yaml").read_text())[flavour]
    if "script" in entry:
        script = (flavours.LOGINS / entry["script"]).read_text()
        assert [name for name in entry["reads"] if name not in script] == []
    assert set(flavours.section(flavour, {})) <= {
        *("apiVersion", "interactiveMode", "command", "env", "args", "installHint")
    }


def test_every_file_beside_the_scripts_is_used():
    named = {entry.get("script") for entry in yaml.safe_load((flavours.LOGINS / "flavours.yaml").read_text()).values()}
    assert {path.name for path in Path(flavours.LOGINS).iterdir()} == named - {None} | {"flavours.yaml"}
