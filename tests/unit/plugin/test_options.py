"""Which login is meant, how it is named, and what kubectl asks."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubectl_keystone_auth.errors import BadInput
from kubectl_keystone_auth.options import base_url, question, read
from tests.unit.plugin.support import UNHURRIED, exec_info

UPSTREAM = {
    "keystone-url": "auth_url",
    "domain-name": "domain_name",
    "user-name": "username",
    "project-name": "project_name",
    "password": "password",
    "cert": "cert",
    "key": "key",
    "cacert": "cacert",
    "application-credential-id": "application_credential_id",
    "application-credential-name": "application_credential_name",
    "application-credential-secret": "application_credential_secret",
}


@pytest.mark.parametrize(("flag", "option"), UPSTREAM.items())
def test_flags_are_upstreams_in_all_forms_that_go_takes(flag, option):
    for arguments in ([f"--{flag}=a=b"], [f"--{flag}", "a=b"], [f"--{flag.replace('-', '_')}=a=b"]):
        assert read(arguments, {}).given == {option: "a=b"}


def test_what_every_go_program_takes_changes_nothing():
    words = ["--vmodule=a=1", "--log-flush-frequency", "5s", "-v", "4", "--user-name=alice"]
    assert read(words, {}).given == {"username": "alice"}
    assert [read([word], {}).verbose for word in ("-v", "-v=6", "-v6", "--v=1", "--v=0")] == [True] * 4 + [False]


def test_what_horizon_writes_is_an_application_credential():
    options = read(
        [
            "--keystone-url=https://keystone.example:5000/v3",
            "--domain-name=none",
            "--user-name=1f0e",
            "--application-credential-id=9f5a",
            "--application-credential-secret=gheim",
        ],
        {},
    )
    assert (options.auth_type, options.get("application_credential_id")) == ("v3applicationcredential", "9f5a")


def test_a_flag_outdoes_the_environment_also_where_that_says_it_by_another_name():
    sourced = {
        "OS_AUTH_URL": "https://other/v3",
        "OS_USER_ID": "1",
        "OS_PROJECT_ID": "2",
        "OS_PROJECT_DOMAIN_ID": "3",
        "OS_USER_DOMAIN_NAME": "4",
        "OS_PASSWORD": "p",
    }
    options = read(["--user-name=alice", "--project-name=demo", "--domain-name=Default"], sourced)
    assert options.given == {
        "auth_url": "https://other/v3",
        "username": "alice",
        "project_name": "demo",
        "domain_name": "Default",
        "password": "p",
    }


@pytest.mark.parametrize(
    "sourced",
    [{"OS_CLOUD": "prod"}, {"OS_AUTH_TYPE": "v3oidcpassword"}, {"OS_USERNAME": "bob", "OS_PASSWORD": "p"}],
)
def test_what_is_in_the_environment_does_not_change_what_flags_name(sourced):
    options = read(["--keystone-url=https://a", "--application-credential-id=9f5a"], sourced)
    assert (options.auth_type, options.get("cloud")) == ("v3applicationcredential", "")
    assert read(["--keystone-url=https://a"], sourced).get("cloud") == ""


@pytest.mark.parametrize(
    ("environment", "auth_type"),
    [
        ({"OS_USERNAME": "alice"}, "password"),
        ({"OS_USERNAME": "alice", "OS_AUTH_TYPE": "v3password"}, "password"),
        ({"OS_USERNAME": "alice", "OS_AUTH_TYPE": "v3totp"}, "v3totp"),
        ({"OS_USERNAME": "alice", "OS_TRUST_ID": "1"}, "v3password"),
        ({"OS_USERNAME": "alice", "OS_APPLICATION_CREDENTIAL_ID": "9f5a"}, "v3applicationcredential"),
        ({"OS_USERNAME": "alice", "OS_CLOUD": "prod"}, ""),
        ({}, "password"),
    ],
)
def test_the_environment_says_how_to_log_in_where_flags_do_not(environment, auth_type):
    assert read([], environment).auth_type == auth_type


def test_the_environment_adds_nothing_to_a_cloud():
    assert read(["--os-cloud=prod"], {"OS_USERNAME": "bob", "OS_CLOUD": "x"}).given == {"cloud": "prod"}


@pytest.mark.parametrize("arguments", [["--passwort=gheim"], ["-p", "gheim"], ["--user-name=a", "gheim"]])
def test_what_is_not_known_is_refused_without_telling_what_may_be_a_secret(arguments):
    with pytest.raises(BadInput, match="is not known") as raised:
        read(arguments, {})
    assert "gheim" not in str(raised.value)


def test_a_flag_that_a_login_does_not_know_is_refused_as_mistyped():
    with pytest.raises(BadInput, match="'--os-projct-name' says nothing"):
        read(["--os-projct-name=demo"], {})
    assert read(["--os-auth-type=v3totp", "--os-passcode=1"], {}).get("passcode") == "1"
    assert read(["--os-region-name=a", "--os-project-name=demo"], {}).get("project_name") == "demo"


def test_todays_names_count_more_than_yesterdays():
    for names in (("OS_TENANT_NAME", "OS_PROJECT_NAME"), ("OS_PROJECT_NAME", "OS_TENANT_NAME")):
        environment = {name: name for name in names}
        assert read([], environment).given == {"project_name": "OS_PROJECT_NAME"}
    assert read([], {"OS_TENANT_NAME": "demo"}).given == {"project_name": "demo"}


def test_a_flag_without_its_value_is_named():
    with pytest.raises(BadInput, match="--user-name needs a value"):
        read(["--user-name"], {})


@pytest.mark.parametrize(
    "url", ["https://k:5000", "https://k:5000/", "https://k:5000/v3", "https://k:5000/v3/", "https://k:5000/v2.0"]
)
def test_the_version_is_added_to_keystones_url(url):
    assert base_url(url) == "https://k:5000/v3"


# -- the name of a login

SECRETS = ("OS_PASSWORD", "OS_APPLICATION_CREDENTIAL_SECRET", "OS_TOKEN", "OS_CLIENT_SECRET", "OS_PASSCODE")


@UNHURRIED
@given(st.text(min_size=1))
def test_no_secret_has_a_part_in_the_name_of_a_login(secret):
    plain = {"OS_AUTH_URL": "https://k", "OS_USERNAME": "alice", "OS_PROJECT_NAME": "demo"}
    for way in ({}, {"OS_AUTH_TYPE": "v3oidcpassword"}, {"OS_APPLICATION_CREDENTIAL_ID": "9f5a"}):
        named = {read([], {**plain, **way, **dict.fromkeys(SECRETS, value)}).login() for value in (secret, "other")}
        assert len(named) == 1


@UNHURRIED
@given(st.dictionaries(st.sampled_from(["OS_USERNAME", "OS_PROJECT_NAME", "OS_USER_DOMAIN_NAME"]), st.text()))
def test_the_name_of_a_login_is_one_line_of_ascii(environment):
    login = read([], environment).login()
    assert login.isascii()
    assert login.isprintable()


def test_no_two_logins_share_a_name():
    base = {"OS_AUTH_URL": "https://k", "OS_USERNAME": "alice", "OS_PROJECT_NAME": "demo"}
    credential = {"OS_AUTH_URL": "https://k", "OS_APPLICATION_CREDENTIAL_NAME": "c"}
    different = [
        base,
        {**base, "OS_AUTH_URL": "https://other"},
        {**base, "OS_USERNAME": "bob"},
        {**base, "OS_PROJECT_NAME": "other"},
        {**base, "OS_USER_DOMAIN_NAME": "evil"},
        {**base, "OS_USER_DOMAIN_ID": "evil"},
        {**base, "OS_PROJECT_DOMAIN_NAME": "evil"},
        {**base, "OS_DOMAIN_NAME": "evil"},
        {**base, "OS_DEFAULT_DOMAIN": "evil"},
        {**base, "OS_DEFAULT_DOMAIN_ID": "evil"},
        {**base, "OS_DEFAULT_DOMAIN_NAME": "evil"},
        {**base, "OS_USERNAME": "", "OS_USER_ID": "alice"},
        {**base, "OS_PROJECT_NAME": "", "OS_PROJECT_ID": "demo"},
        {**base, "OS_AUTH_TYPE": "v3totp"},
        {**base, "OS_AUTH_TYPE": "v3oidcpassword", "OS_IDENTITY_PROVIDER": "a"},
        {**base, "OS_AUTH_TYPE": "v3oidcpassword", "OS_IDENTITY_PROVIDER": "b"},
        {**base, "OS_APPLICATION_CREDENTIAL_ID": "9f5a"},
        {**credential, "OS_USER_ID": "1"},
        {**credential, "OS_USERNAME": "1"},
        {**credential, "OS_USERNAME": "1", "OS_USER_DOMAIN_NAME": "evil"},
        {**credential, "OS_USERNAME": "1", "OS_DEFAULT_DOMAIN_ID": "evil"},
        {"OS_CLOUD": "a"},
        {"OS_CLOUD": "b"},
    ]
    names = [read([], environment).login() for environment in different]
    assert len(set(names)) == len(names)


def test_the_same_cloud_is_another_login_once_its_file_changes(tmp_path: Path, monkeypatch):
    path = tmp_path / "clouds.yaml"
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    names = []
    for content in ("a", "ab", None):
        path.write_text(content) if content else path.unlink()
        names.append(read(["--os-cloud=prod"], {}).login())
    assert all(first != second for first, second in itertools.combinations(names, 2))


@pytest.mark.parametrize("auth_type", ["v3token", "v3oidcaccesstoken", "v3oidcauthcode", "v3kerberos"])
def test_a_token_is_not_kept_where_a_secret_alone_says_whose_it_is(auth_type):
    assert not read([], {"OS_AUTH_TYPE": auth_type}).cacheable()
    assert read([], {"OS_AUTH_TYPE": "v3totp"}).cacheable()
    assert not read(["--no-cache"], {"OS_AUTH_TYPE": "v3totp"}).cacheable()


# -- what kubectl asks


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
@pytest.mark.parametrize("interactive", [True, False])
@pytest.mark.parametrize("more", [{}, {"cluster": {"server": "https://k8s"}}])
def test_kubectl_is_understood(version, interactive, more):
    asked = question({"KUBERNETES_EXEC_INFO": exec_info(version, interactive, **more)})
    assert asked is not None
    assert (asked.version, asked.interactive) == (version, interactive)


@pytest.mark.parametrize("environment", [{}, {"KUBERNETES_EXEC_INFO": ""}])
def test_who_is_not_kubectl_asks_nothing(environment):
    assert question(environment) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("garbage", "is not an ExecCredential"),
        ("[]", "is not an ExecCredential"),
        ("[" * 100_000, "is not an ExecCredential"),
        ('{"kind": "ExecCredential"}', "is not an ExecCredential"),
        ('{"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "spec": 1}', "is not"),
        (exec_info("v1alpha1"), "client.authentication.k8s.io/v1alpha1.*answers.*v1beta1"),
        (exec_info().replace("ExecCredential", "Pod"), "'Pod'"),
    ],
)
def test_what_kubectl_never_says_is_refused(text, message):
    with pytest.raises(BadInput, match=message):
        question({"KUBERNETES_EXEC_INFO": text})


def test_a_terminal_is_lent_by_true_alone():
    text = exec_info().replace("false", '"true"')
    asked = question({"KUBERNETES_EXEC_INFO": text})
    assert asked is not None
    assert not asked.interactive
