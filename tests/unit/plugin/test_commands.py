"""`kubectl keystone-auth …`: how its words are taken, and what it says without a cluster."""

from __future__ import annotations

import json

import pytest
import yaml

from kubectl_keystone_auth import __version__
from kubectl_keystone_auth.commands import Words
from kubectl_keystone_auth.errors import BadInput
from tests.unit.plugin.support import CREDENTIAL, PASSWORD, SECRET, USER

ALICE = {"OS_PASSWORD": PASSWORD, "PATH": "/nowhere"}
ROBOT = {"OS_APPLICATION_CREDENTIAL_ID": CREDENTIAL, "OS_APPLICATION_CREDENTIAL_SECRET": SECRET, "PATH": "/nowhere"}


@pytest.fixture
def url(keystone):
    return f"--keystone-url={keystone.url}"


def test_a_commands_own_words_are_told_from_the_logins():
    words = Words(
        [
            "create",
            "--user-name",
            "alice",
            "--role=a",
            "ci",
            "-v",
            "4",
            "--role",
            "b",
            "--insecure",
            "--exec",
            "--cert=x",
        ],
        ("role",),
        ("exec",),
    )
    assert words.names == ["create", "ci"]
    assert words.login == ["--user-name", "alice", "-v", "4", "--insecure", "--cert=x"]
    assert (words.several("role"), words.one("role"), words.one("output")) == (["a", "b"], "b", "")
    assert (words.has("exec"), words.has("read-only")) == (True, False)
    with pytest.raises(BadInput, match="--role needs a value"):
        Words(["--role"], ("role",))


def test_help_and_version_are_there(plugin):
    assert plugin.call("--version", info=None)[:2] == (0, f"{__version__}\n")
    for words in (("--help",), ("help",), ("login", "--help"), ("credential", "create", "-h")):
        code, output, errors = plugin.call(*words, info=None)
        assert (code, errors) == (0, "")
        assert "credential create NAME" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nonsense",), "no such command"),
        (("login", "gheim"), "is no flag"),
        (("credential",), "credential create NAME"),
        (("credential", "delete", "ci"), "credential create NAME"),
        (("credential", "create"), "credential create NAME"),
        (("credential", "create", "ci", "--output=yaml"), "--output"),
        (("credential", "create", "ci", "--expires=soon"), "--expires='soon'"),
        (("credential", "create", "ci", "--namespace=A"), "'A' is no name"),
        (("credential", "create", "ci", "--rule=GET"), "--rule='GET' is no rule"),
        (("kubeconfig", "--server=http://api"), "https://"),
        (("kubeconfig", "--server=https://api", "--certificate-authority=/nowhere"), "/nowhere"),
        (("kubeconfig",), "missing: --server"),
        (("whoami", "--context=x"), "kubectl is not on the PATH"),
        (("login", "--nonsense=1"), "'--nonsense' is not known"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_asked_of_keystone(keystone, plugin, words, message):
    code, said = plugin.refusal(*words, info=None, PATH="/nowhere")
    assert (code, keystone.logins) == (2, 0)
    assert message in said
    assert "gheim" not in said


def test_login_keeps_the_token_that_kubectl_then_gets(keystone, plugin, url):
    code, output, errors = plugin.call("login", url, *USER, info=None, **ALICE)
    assert (code, errors) == (0, "")
    assert output.startswith("logged in as alice (domain Default) in the project demo, until 20")
    assert plugin.token(url, *USER) == keystone.headers["X-Subject-Token"]
    assert plugin.call("logout", url, *USER, info=None, **ALICE)[0] == 0
    assert plugin.cache(url, *USER).entry() is None


def test_all_tokens_are_forgotten_at_once(plugin, url):
    plugin.token(url, *USER, **ALICE)
    plugin.token(url, **ROBOT)
    (plugin.folder / "letter").write_text("of somebody's own")
    assert plugin.call("logout", "--all", info=None)[0] == 0
    assert {path.name for path in plugin.folder.iterdir()} == {"lock", "letter"}


def test_a_kubeconfig_is_printed_with_the_secret_in_the_environment_alone(plugin, url, authority):
    words = ("kubeconfig", "--server=https://api:6443", f"--certificate-authority={authority.ca}", "--output=-", url)
    code, output, errors = plugin.call(*words, info=None, **ROBOT)
    assert (code, errors, output.isascii()) == (0, "", True)
    found = yaml.safe_load(output)
    section = found["users"][0]["user"]["exec"]
    assert section["args"] == [url, f"--cacert={authority.ca}", f"--application-credential-id={CREDENTIAL}"]
    assert section["env"] == [{"name": "OS_APPLICATION_CREDENTIAL_SECRET", "value": SECRET}]
    assert found["current-context"] == "keystone-demo"
    code, output, _ = plugin.call(*words, *USER, info=None, **ALICE)
    section = yaml.safe_load(output)["users"][0]["user"]["exec"]
    assert section["args"] == [url, f"--cacert={authority.ca}", *USER]
    assert "env" not in section
    assert json.dumps(PASSWORD) not in output
    # What was written logs in.
    login = {"OS_PASSWORD": PASSWORD}
    assert plugin.token(*section["args"], **login)


def test_a_kubeconfig_is_not_written_for_a_login_that_fails(plugin, url):
    words = ("kubeconfig", "--server=https://api:6443", url, *USER)
    assert plugin.refusal(*words, info=None, PATH="/nowhere", OS_PASSWORD="wrong word")[0] == 3
    assert not (plugin.home / ".kube" / "config").exists()
