"""Kubeconfigs of the other flavours as the plug-in writes them: what is in them, what is refused, what reads them."""

from __future__ import annotations

import os

import pytest
import yaml

from kubectl_keystone_auth import flavours, kubeconfig
from kubectl_keystone_auth.commands import _names
from kubectl_keystone_auth.errors import BadInput
from kubectl_keystone_auth.options import CREDENTIAL as LOGIN
from kubectl_keystone_auth.options import Options, read
from kubectl_keystone_auth.tokens import Token
from tests.unit.plugin.support import CREDENTIAL, PASSWORD, SECRET, USER

TOKEN = Token("gAAAA", 1e10, project="demo", project_id="1f" * 16, project_domain_id="d0")
ROBOT = {"OS_APPLICATION_CREDENTIAL_ID": CREDENTIAL, "OS_APPLICATION_CREDENTIAL_SECRET": SECRET}
SERVER = "--server=https://api:6443"


@pytest.fixture
def url(keystone):
    return f"--keystone-url={keystone.url}"


def robot(**more: str) -> Options:
    given = {"auth_url": "https://k:5000", "application_credential_id": "i", "application_credential_secret": "s"}
    return Options({**given, **more}, LOGIN)


def environment(user: dict) -> dict[str, str]:
    return {one["name"]: one["value"] for one in user["exec"]["env"]}


@pytest.mark.parametrize("flavour", ["curl", "powershell"])
def test_a_file_for_a_script_holds_all_that_it_needs(plugin, url, authority, flavour):
    code, output, errors = plugin.call(
        "kubeconfig", url, SERVER, f"--flavour={flavour}", "--output=-", info=None, **ROBOT
    )
    assert (code, errors) == (0, "")
    user = yaml.safe_load(output)["users"][0]["user"]
    assert environment(user) == {
        "OS_AUTH_URL": url.partition("=")[2],
        "OS_APPLICATION_CREDENTIAL_ID": CREDENTIAL,
        "OS_APPLICATION_CREDENTIAL_SECRET": SECRET,
        "KEYSTONE_CA": authority.ca.read_text(),
    }
    assert user["exec"]["args"][-1] == next(flavours.LOGINS.glob(f"{flavour}.*")).read_text()
    assert output.isascii()


def test_a_script_is_written_as_the_lines_that_it_is(plugin, url):
    words = ("kubeconfig", url, SERVER, "--flavour=curl", "--output=-")
    _, output, _ = plugin.call(*words, info=None, **ROBOT)
    assert "\n        answer=$(\n" in output.replace("        - |", "").replace("\n          ", "\n        ")


def test_a_file_that_is_written_again_takes_the_old_ones_place(plugin, url, tmp_path):
    path = tmp_path / "file"
    for flavour in ("curl", "token", "openstack", "plugin", "curl"):
        words = ("kubeconfig", url, SERVER, f"--flavour={flavour}", f"--output={path}")
        code, _, errors = plugin.call(*words, info=None, **ROBOT)
        assert code == 0, errors
        assert path.stat().st_mode & 0o777 == 0o600
        assert len(yaml.safe_load(path.read_text())["users"]) == 1


def test_a_plain_token_is_told_to_end(plugin, url, tmp_path):
    words = ("kubeconfig", url, SERVER, *USER, "--flavour=token", f"--output={tmp_path / 'file'}")
    code, output, errors = plugin.call(*words, info=None, OS_PASSWORD=PASSWORD)
    assert code == 0
    assert "gAAAA" not in output + errors
    assert "59 minutes from now, and until then whoever has the file is you" in errors
    user = yaml.safe_load((tmp_path / "file").read_text())["users"][0]["user"]
    assert (sorted(user), user["token"][:5]) == (["extensions", "token"], "gAAAA")


@pytest.mark.parametrize(
    ("options", "flavour", "complaint"),
    [
        (Options({"auth_url": "https://k", "username": "a"}, "password"), "curl", "takes an application credential"),
        (Options({"auth_url": "https://k", "username": "a"}, "password"), "openstack", "takes an application cred"),
        (robot(insecure="true"), "curl", "checks certificates"),
        (robot(cert="/x"), "powershell", "no client certificate"),
        (robot(application_credential_secret="a\0b"), "curl", "its secret has a NUL"),
        (robot(auth_url="http://k"), "curl", "unencrypted"),
        (robot(cacert="/nowhere"), "curl", "/nowhere"),
        (robot(ca_data="x"), "openstack", "as a file"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(options, flavour, complaint):
    with pytest.raises(BadInput, match=complaint):
        flavours.user(flavour, options, TOKEN)


def test_a_credential_that_was_named_is_written_by_its_id():
    options = Options({"auth_url": "https://k", "application_credential_secret": "s"}, LOGIN)
    user = flavours.user("curl", options, TOKEN._replace(credential_id="by-its-id"))
    assert environment(user)["OS_APPLICATION_CREDENTIAL_ID"] == "by-its-id"


def test_a_file_is_read_as_the_login_that_it_is():
    made = flavours.user("curl", robot(ca_data="PEM"), TOKEN)
    login = kubeconfig.login_of({"users": [{"name": "x", "user": made}]})
    assert login is not None
    stray = {"OS_CLOUD": "other", "OS_AUTH_TYPE": "password", "OS_USERNAME": "x", "OS_CACERT": "/x"}
    found = read([*login.arguments], {**stray, **login.environment})
    assert found.auth_type == LOGIN
    assert (found.get("auth_url"), found.get("ca_data"), found.get("cacert")) == ("https://k:5000/v3", "PEM", "")
    assert found.get("application_credential_secret") == "s"
    cloud = flavours.user("openstack", Options({"cloud": "lab"}, ""), TOKEN)
    assert flavours.login(cloud) == (("--os-cloud=lab",), {})
    assert flavours.login(flavours.user("token", robot(), TOKEN)) is None
    assert flavours.login({"exec": {"env": [{"name": "OS_CLOUD", "value": "somebody's"}]}}) is None


@pytest.mark.parametrize(
    ("form", "made"),
    [("", ""), ("web", "web"), ("%n", "demo"), ("%d-%n", "d0-demo"), ("%i", "1f" * 16), ("x" * 40 + "-%i", "1f" * 16)],
)
def test_a_namespace_follows_a_synchronizations_format(form, made):
    assert flavours.namespace(form, TOKEN) == made


def test_a_namespace_that_is_none_is_refused():
    for form, project in (("%n", "Demo Project"), ("No", "demo"), ("x" * 64, "demo")):
        with pytest.raises(BadInput, match="no name of a namespace"):
            flavours.namespace(form, TOKEN._replace(project=project))


def test_contexts_are_named_after_their_projects():
    other = TOKEN._replace(project="web")
    namesake = TOKEN._replace(project_id="2e" * 16)
    assert _names("", [TOKEN], several=False) == ["keystone-demo"]
    assert _names("x", [TOKEN], several=False) == ["x"]
    assert _names("", [TOKEN, other], several=True) == ["keystone-demo", "keystone-web"]
    assert _names("x", [TOKEN, namesake], several=True) == [f"x-{'1f' * 16}", f"x-{'2e' * 16}"]


# -- Keystone's CA in the environment


def test_a_ca_may_stand_in_the_kubeconfig_itself(plugin, url, authority):
    ca = authority.ca.read_text()
    assert plugin.token(url, *USER, OS_PASSWORD=PASSWORD, OS_CACERT="/nowhere", KEYSTONE_CA=ca)
    code, said = plugin.refusal(url, *USER, "--no-cache", OS_PASSWORD=PASSWORD, OS_CACERT="", KEYSTONE_CA="nonsense")
    assert (code, said) == (2, "KEYSTONE_CA is not PEM of certificates")
    # A flag says it more plainly.
    flag = f"--cacert={authority.ca}"
    assert plugin.token(url, *USER, flag, "--no-cache", OS_PASSWORD=PASSWORD, KEYSTONE_CA="nonsense")


# -- the same for the openstack client


def test_openrc_gives_the_credential_for_a_shell(plugin, url, authority, tmp_path):
    code, output, errors = plugin.call("openrc", url, f"--application-credential-id={CREDENTIAL}", info=None, **ROBOT)
    assert (code, errors) == (0, "")
    script = tmp_path / "openrc"
    script.write_text(f'{output}printf %s "$OS_APPLICATION_CREDENTIAL_SECRET" >{tmp_path}/said\n')
    assert os.system(f"sh {script}") == 0
    assert (tmp_path / "said").read_text() == SECRET
    assert f"export OS_CACERT={authority.ca}" in output
    for words, code in ((("--output=yaml",), 2), (("--os-cloud=x",), 2), (USER, 2)):
        assert plugin.refusal("openrc", url, *words, info=None, OS_PASSWORD=PASSWORD)[0] == code
