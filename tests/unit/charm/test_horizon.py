"""The settings that operators take to Horizon. What Horizon makes of them: tests/functional/test_horizon.py."""

from __future__ import annotations

import base64
from typing import Any

import jinja2
import ops.testing
import pytest
import yaml

import kubeconfigs
from files import Places
from tests.unit.charm import test_kubeconfigs

server, found = test_kubeconfigs.server, test_kubeconfigs.found
TEMPLATE = "identity/application_credentials/kubeconfig.template"


def read(settings: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Run the settings as Horizon does; give what they set, and the templates that they put in front."""
    loaders = ["Horizon's"]
    names: dict[str, Any] = {"TEMPLATES": [{"OPTIONS": {"loaders": loaders}}]}
    exec(settings, names)
    (loader, templates), last = loaders
    assert (loader, last) == ("django.template.loaders.locmem.Loader", "Horizon's")
    return {name: value for name, value in names.items() if name.startswith("KUBECONFIG_")}, templates  # pyright: ignore[reportReturnType]


def test_the_three_settings_name_the_api_server_as_it_was_found(unit, found, server):
    results = unit.action("get-horizon-settings")

    three, templates = read(results["settings"])
    assert three == {
        "KUBECONFIG_ENABLED": True,
        "KUBECONFIG_KUBERNETES_URL": server.url,
        "KUBECONFIG_CERTIFICATE_AUTHORITY_DATA": base64.b64encode(server.ca.encode()).decode(),
    }
    assert TEMPLATE in templates
    assert results["file"] in results["settings"]
    assert results["found"] == "the administrator's kubeconfig /root/.kube/config"


def test_a_server_that_does_not_answer_here_is_taken_with_a_warning(unit, found, server):
    server.server.server_close()
    results = unit.configure(**{"kubernetes-url": "https://kubernetes.invalid:6443"}).action("get-horizon-settings")

    assert read(results["settings"])[0]["KUBECONFIG_KUBERNETES_URL"] == "https://kubernetes.invalid:6443"
    assert results["warning"].startswith("from this machine it does not answer there")


def test_without_a_server_that_users_reach_the_option_is_named(unit, found):
    found()

    with pytest.raises(ops.testing.ActionFailed, match="kubernetes-url: is not set"):
        unit.action("get-horizon-settings")


@pytest.mark.parametrize("flavour", ["plugin", "curl", "powershell"])
def test_ansible_may_bring_them_to_their_place_as_a_template(unit, found, flavour):
    settings = unit.action("get-horizon-settings", flavour=flavour)["settings"]

    # Jinja's own rules, and those that Ansible adds.
    for rules in ({}, {"trim_blocks": True, "undefined": jinja2.StrictUndefined}):
        brought = jinja2.Environment(**rules, autoescape=False).from_string(settings).render()
        assert read(brought) == read(settings)


@pytest.mark.parametrize("flavour", ["plugin", "curl", "powershell"])
def test_a_flavours_login_is_the_one_that_get_kubeconfig_gives(unit, found, server, flavour):
    unit.configure(**{"keystone-ca": server.ca})
    templates = read(unit.action("get-horizon-settings", flavour=flavour)["settings"])[1]
    text = templates["kubernetes_keystone/login.template"]
    begin, end = "{% verbatim %}", "{% endverbatim %}"
    assert text.startswith(begin)
    assert text.endswith(end)
    # Whatever is between the two is text to Django.
    assert text.count(end) == 1
    login = yaml.safe_load(text.removeprefix(begin).removesuffix(end))["user"]

    written = yaml.safe_load(unit.action("get-kubeconfig", flavour=flavour)["kubeconfig"])["users"][0]["user"]
    same = ("apiVersion", "command", "interactiveMode", "installHint")
    assert {name: login["exec"].get(name) for name in same} == {name: written["exec"].get(name) for name in same}
    assert login.get("extensions") == written.get("extensions")
    chosen = kubeconfigs.Login.load(Places(), flavour)
    assert login["exec"].get("args", []) == [*chosen.arguments, *([chosen.script] if chosen.script else [])]
    assert {"name": "KEYSTONE_CA", "value": server.ca} in login["exec"]["env"]


def test_what_juju_could_not_hand_on_is_refused(unit, found, server):
    unit.configure(**{"keystone-ca": server.ca * 300})

    with pytest.raises(ops.testing.ActionFailed, match="set kubernetes-ca and keystone-ca to the one CA certificate"):
        unit.action("get-horizon-settings")


@pytest.mark.parametrize(
    ("url", "insecure"), [("http://keystone.example:5000/v3", True), ("https://keystone.example:5000/v3", False)]
)
def test_the_plug_in_may_talk_in_clear_where_the_operator_lets_it(unit, found, url, insecure):
    unit.configure(**{"keystone-url": url, "keystone-insecure": True})
    login = read(unit.action("get-horizon-settings")["settings"])[1]["kubernetes_keystone/login.template"]

    assert ("OS_INSECURE" in login) is insecure
