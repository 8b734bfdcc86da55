"""Horizon's "Download kubeconfig file", pressed in a real browser; the very file under the real kubectl."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import horizon
from files import Places
from testbed import setup
from testbed.browser import page
from testbed.horizon import Horizon
from tests.functional import test_plugin_kubectl as with_plugin
from tests.functional.test_plugin_kubectl import Cluster, Person

pytestmark = pytest.mark.functional

cluster, person = with_plugin.cluster, with_plugin.person

SECRET = """ "it's" \\n <b> & %s {{ user }} {% if %} #\u00fc\U0001f600\x7f\x85 """.strip()
RULES = '[{"service": "kubernetes", "method": "GET", "path": "/**"}]'
LETTERS = "".join(map(chr, [*range(1, 0x2100), 0xD7FF, 0xE000, 0xFEFF, *range(0xFFF0, 0x10000), 0x1F600, 0x10FFFF]))
HOSTILE = [
    SECRET,
    LETTERS,
    "two\nlines\r\nof\ttext ",
    " - {leading: spaces}",
    "'",
    '"',
    "\\",
    "\\x41",
    "*anchor",
    "!!python/object:os.system",
    "null",
    "0x10",
    '"\nusers: []\n#',
    '"""',
    "",
]
"""Texts that mean something to YAML, to Django or to Python, and every character for once."""


def settings(cluster: Cluster, flavour: str) -> str:
    """What the action gives for this cluster."""
    api, keystone = cluster.api, cluster.keystone
    server = f"https://127.0.0.1:{api.port}"
    return horizon.settings(Places(), server, api.ca.read_text(), keystone_ca=keystone.ca.read_text(), flavour=flavour)


def pressed(cluster: Cluster, path: Path, given: str, secret: str = SECRET, access_rules: str = "") -> str:
    """Log alice in, have her make a credential and press the button; put the file there, and give what is in it."""
    with Horizon(cluster.keystone, given) as running, page() as seen:
        running.make_credential(seen, cluster.alice, path.parents[1].name, secret, access_rules)
        running.download(seen, path)
    return path.read_text()


@pytest.mark.parametrize(("flavour", "access_rules"), [("plugin", ""), ("curl", ""), ("plugin", RULES)])
def test_the_file_that_the_button_gives_works(
    cluster: Cluster, person: Person, flavour: str, access_rules: str
) -> None:
    path = person.home / ".kube" / "config"
    written = pressed(cluster, path, settings(cluster, flavour), access_rules=access_rules)
    env = {one["name"]: one["value"] for one in yaml.safe_load(written)["users"][0]["user"]["exec"]["env"]}
    name = f"keystone:app-cred:{env['OS_APPLICATION_CREDENTIAL_ID']}" if access_rules else "keystone:alice"
    # Keystone's CA is in the file, and what was sourced in the shell does not count.
    elsewhere = {"OS_CACERT": "", "OS_CLOUD": "other", "OS_AUTH_TYPE": "password", "OS_AUTH_URL": "https://other/v3"}
    assert person.works("get", "pods", "-o", "name", **elsewhere) == ""
    assert person.works("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", **elsewhere) == name
    assert person.kubectl("config", "current-context")[1] == "keystone-demo\n"
    login = yaml.safe_load(written)["users"][0]["user"]["exec"]
    assert env["OS_APPLICATION_CREDENTIAL_SECRET"] == SECRET
    assert not any(SECRET in word for word in login.get("args", []))
    # The plug-in's commands know the login, whatever the file logs in with.
    code, output, errors = person.kubectl("keystone-auth", "whoami", OS_CACERT="")
    assert code == 0, errors
    said = dict(line.split(maxsplit=1) for line in output.splitlines() if not line.startswith(" "))
    assert (said["user"], said["cluster"]) == (f"alice ({cluster.alice.id})", name)


# -- what Horizon does by itself


MENDED = "Horizon mended its template: docs/horizon.md, docs/users.md and templates/horizon/settings say otherwise"


@pytest.fixture(scope="module")
def unmended(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What Horizon's own template makes, with the secret `a&b`."""
    three, ours, _ = settings(cluster, "plugin").partition("# Horizon's own template")
    assert ours
    return pressed(cluster, tmp_path_factory.mktemp("unmended") / ".kube" / "config", three, "a&b")


def test_kubectl_does_not_read_what_horizons_own_template_makes(person: Person, unmended: str) -> None:
    (person.home / ".kube").mkdir()
    (person.home / ".kube" / "config").write_text(unmended)
    code, _, errors = person.kubectl("get", "pods")
    assert code == 1, MENDED
    assert "yaml: line 22: did not find expected key" in errors, MENDED


def test_with_the_quote_put_in_the_secret_is_still_another_and_an_argument(person: Person, unmended: str) -> None:
    (broken,) = (line for line in unmended.splitlines() if "--keystone-url=" in line and not line.endswith('"'))
    (person.home / ".kube").mkdir()
    (person.home / ".kube" / "config").write_text(unmended.replace(broken, f'{broken}"'))
    shown = json.loads(person.works("config", "view", "--raw", "-o", "json"))
    assert "--application-credential-secret=a&amp;b" in shown["users"][0]["user"]["exec"]["args"], MENDED


# -- whatever people call things


RENDER = """
import json, sys
import django
from django.conf import settings
from django.template.loader import render_to_string

given = json.load(sys.stdin)
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": {"loaders": []}}]
exec(given["settings"])
settings.configure(TEMPLATES=TEMPLATES)
django.setup()
name = "identity/application_credentials/kubeconfig.template"
json.dump([render_to_string(name, context) for context in given["contexts"]], sys.stdout)
"""


def rendered(given: str, contexts: Sequence[dict[str, Any]]) -> list[str]:
    """Have Horizon's Django make files of these contexts, as Horizon's view has it make them."""
    asked = json.dumps({"settings": given, "contexts": contexts})
    command = [setup.horizon() / "bin" / "python", "-c", RENDER]
    return json.loads(subprocess.run(command, input=asked, capture_output=True, check=True, text=True).stdout)


def context(text: str = "demo", **more: str) -> dict[str, Any]:
    """What Horizon's view gives a template, as far as ours takes it; with this text wherever users choose one."""
    return {
        "user": {"project_name": text},
        "auth_url": "https://keystone.example:5000/v3",
        "application_credential_id": "0123456789abcdef0123456789abcdef",
        "application_credential_secret": text,
        "kubernetes_namespace": text,
        "kubernetes_url": "https://kubernetes.example:6443",
        "kubernetes_certificate_authority_data": "",
        **more,
    }


def test_whatever_people_call_things_stands_in_the_file_as_it_is(tmp_path: Path) -> None:
    given = horizon.settings(Places(), "https://kubernetes.example:6443", "")
    for text, written in zip(HOSTILE, rendered(given, [context(text) for text in HOSTILE]), strict=True):
        (tmp_path / "file").write_text(written)
        command = [setup.kubernetes() / "kubectl", f"--kubeconfig={tmp_path}/file", "config", "view", "--raw", "-ojson"]
        shown = subprocess.run(command, capture_output=True, check=True, text=True)
        for read in (yaml.safe_load(written), json.loads(shown.stdout)):
            name = f"keystone-{text}"
            assert read["current-context"] == name
            assert [one["name"] for kind in ("clusters", "contexts", "users") for one in read[kind]] == [name] * 3
            assert read["contexts"][0]["context"].get("namespace", "") == text
            assert read["clusters"][0]["cluster"] == {"server": "https://kubernetes.example:6443"}
            env = {variable["name"]: variable["value"] for variable in read["users"][0]["user"]["exec"]["env"]}
            assert env["OS_APPLICATION_CREDENTIAL_SECRET"] == text


def test_keystones_url_is_the_catalogues_with_the_version_in_it() -> None:
    given = horizon.settings(Places(), "https://kubernetes.example:6443", "", flavour="curl")
    urls = [f"https://keystone.example{path}" for path in (":5000", ":5000/", "/identity/v3", "/identity/v3/")]
    found = []
    for written in rendered(given, [context(auth_url=url) for url in urls]):
        env = yaml.safe_load(written)["users"][0]["user"]["exec"]["env"]
        found += [variable["value"] for variable in env if variable["name"] == "OS_AUTH_URL"]
    assert found == ["https://keystone.example:5000/v3"] * 2 + ["https://keystone.example/identity/v3"] * 2
