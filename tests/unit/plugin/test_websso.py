"""Single sign-on without a browser: where it is sent, which project is meant, and what is said without one."""

from __future__ import annotations

import pytest
import yaml

from kubectl_keystone_auth import terminal, websso
from kubectl_keystone_auth.errors import BadInput, NoProject
from kubectl_keystone_auth.options import WEBSSO, Options, read
from tests.unit.plugin.support import exec_info

ORIGIN = "http://localhost:9990/auth/websso/"
LOGIN = ("--os-auth-type=v3websso", "--os-identity-provider=sso", "--os-protocol=openid")
PROJECTS = [
    websso.Project({"id": "1" * 32, "name": "demo", "domain_id": "default"}),
    websso.Project({"id": "2" * 32, "name": "demo", "domain_id": "other"}),
    websso.Project({"id": "3" * 32, "name": "web\x1b[2J", "domain_id": "default"}),
]


def options(**given: str) -> Options:
    return Options({"auth_url": "https://keystone.example", **given}, WEBSSO)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"protocol": "openid"}, "websso/openid"),
        ({"identity_provider": "sso", "protocol": "saml2"}, "identity_providers/sso/protocols/saml2/websso"),
        ({"identity_provider": "a/b?c", "protocol": "#"}, "identity_providers/a%2Fb%3Fc/protocols/%23/websso"),
    ],
)
def test_the_browser_is_sent_to_keystones_page(given, path):
    begins = "https://keystone.example/v3/auth/OS-FEDERATION/"
    query = "?origin=http%3A%2F%2Flocalhost%3A9990%2Fauth%2Fwebsso%2F"
    assert websso.page(options(**given), ORIGIN) == f"{begins}{path}{query}"


def test_without_a_protocol_there_is_no_page():
    with pytest.raises(BadInput, match="missing: --protocol"):
        websso.page(options(identity_provider="sso"), ORIGIN)


def test_a_cloud_of_clouds_yaml_says_where(tmp_path, monkeypatch):
    auth = {"auth_url": "https://sso.example/v3", "identity_provider": "i", "protocol": "p", "project_id": "7"}
    clouds = {"clouds": {"c": {"auth_type": "v3websso", "auth": auth, "cacert": "/ca.pem", "verify": False}}}
    (tmp_path / "clouds.yaml").write_text(yaml.safe_dump(clouds))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    found = read(["--os-cloud=c"], {})
    websso.read_cloud(found)
    names = ("auth_url", "identity_provider", "protocol", "project_id", "cacert", "insecure")
    assert [found.get(name) for name in names] == ["https://sso.example/v3", "i", "p", "7", "/ca.pem", "true"]
    with pytest.raises(BadInput, match=r"the cloud 'd' of clouds\.yaml"):
        websso.read_cloud(read(["--os-cloud=d"], {}))


def test_the_one_project_is_taken_and_of_several_the_one_that_is_named():
    assert websso.choose(PROJECTS[:1], options(), False) == "1" * 32
    assert websso.choose(PROJECTS, options(project_id="2" * 32), False) == "2" * 32
    assert websso.choose(PROJECTS, options(project_name="demo"), False) == "1" * 32
    assert websso.choose(PROJECTS, options(project_name="demo", project_domain_id="other"), False) == "2" * 32
    # A name that is there once needs no domain.
    assert websso.choose(PROJECTS[1:], options(project_name="demo"), False) == "2" * 32


@pytest.mark.parametrize(
    ("projects", "given", "words"),
    [
        ([], {}, "no role in any project"),
        (PROJECTS, {}, r"which project is meant\? .* 'demo' \(1{32}, domain default\); 'demo' \(2{32}, domain other\)"),
        (PROJECTS, {"project_name": "demo", "project_domain_id": "third"}, "no role in the project 'demo'"),
        (PROJECTS, {"project_id": "9"}, "no role in the project '9'. It has in: 'demo'"),
    ],
)
def test_what_is_not_one_project_is_said_with_those_that_there_are(projects, given, words):
    with pytest.raises(NoProject, match=words):
        websso.choose(projects, options(**given), False)


@pytest.mark.parametrize(("typed", "meant"), [("2", "2" * 32), (" 3 ", "3" * 32), ("1" * 32, "1" * 32)])
def test_on_a_terminal_it_is_asked_for(monkeypatch, capsys, typed, meant):
    monkeypatch.setattr(terminal, "present", lambda: True)
    monkeypatch.setattr(terminal, "ask", lambda label, hidden: typed)
    assert websso.choose(PROJECTS, options(), True) == meant
    shown = capsys.readouterr()
    assert (shown.out, "\x1b" in shown.err, "  2 'demo' (2" in shown.err) == ("", False, True)


@pytest.mark.parametrize("typed", ["", "0", "4", "demo", "nonsense"])
def test_an_answer_that_names_none_or_several_is_none(monkeypatch, typed):
    monkeypatch.setattr(terminal, "present", lambda: True)
    monkeypatch.setattr(terminal, "ask", lambda label, hidden: typed)
    with pytest.raises(NoProject, match="which project is meant"):
        websso.choose(PROJECTS, options(), True)


def test_kubectl_is_told_who_opens_the_browser(plugin, keystone):
    code, said = plugin.refusal(f"--os-auth-url={keystone.url}", *LOGIN, info=exec_info(interactive=True))
    assert (code, keystone.logins) == (2, 0)
    assert said.startswith("nobody is logged in: `kubectl keystone-auth login` opens the browser")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "missing: --server"),
        (("--server=https://k", "--timeout=soon"), "--timeout='soon'"),
        (("--server=https://k", "--for=fun"), "--for: kubernetes or everything"),
        (("--server=https://k", "--for=everything", "--read-only"), "--for: kubernetes or everything"),
        (("--server=https://k", "--expires=soon"), "--expires='soon'"),
        (("--server=https://k", "--output=-"), "--output"),
        (("--server=https://k", "--os-redirect-port=x"), "--os-redirect-port='x'"),
        (
            ("--server=https://k", "--os-redirect-port=8\N{SUPERSCRIPT TWO}"),
            "--os-redirect-port='8\N{SUPERSCRIPT TWO}'",
        ),
        (("--server=https://k", "--identity-provider=i"), "missing: --protocol"),
        (("--server=https://k", "gheim"), "is no flag"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_browser_opens(plugin, keystone, words, message):
    words = (*words, *(() if message == "missing: --protocol" else ("--protocol=openid",)))
    program = plugin.home / "browser"
    program.write_text('#!/bin/sh\ntouch "${0%/*}/opened"\n')
    program.chmod(0o755)
    begun = ("login", "--browser", f"--keystone-url={keystone.url}", *words)
    code, said = plugin.refusal(*begun, info=None, PATH="/nowhere", BROWSER=f"{program} %s")
    assert (code, keystone.logins, (plugin.home / "opened").exists()) == (2, 0, False)
    assert message in said


@pytest.mark.slow
def test_where_there_is_no_screen_the_address_is_shown_and_how_to_reach_it(plugin, keystone):
    words = ("--protocol=openid", "--server=https://k", "--timeout=1", "--os-redirect-port=19990")
    begun = ("login", "--browser", f"--keystone-url={keystone.url}", *words)
    code, _, errors = plugin.call(*begun, info=None, SSH_CONNECTION="192.0.2.1 1 192.0.2.2 22")
    first, second, last = errors.splitlines()
    assert first.startswith("Log in, open this in a browser: http://localhost:19990/")
    assert "ssh -L 19990:localhost:19990" in second
    assert (code, "nobody logged in within 1 s" in last) == (3, True)
