"""The kubeconfigs that operators hand out: what is in them, where the API server was found, and what is refused."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import ops.testing
import pytest
import yaml

import apiserver
import kubeconfigs
from kubectl_keystone_auth import flavours
from testbed.certificates import Authority

PROJECT_ID = "0123456789abcdef0123456789abcdef"


class Server:
    """An API server as far as its TLS goes, on an address of loopback's that is not taken for one."""

    def __init__(self, folder: Path, status: int = 401) -> None:
        self.authority = Authority("cluster")
        issued = self.authority.sign("kube-apiserver", hosts=["127.0.0.1"])
        for name, content in (("certificate", issued.certificate), ("key", issued.key)):
            (folder / name).write_bytes(content)
        self.ca = self.authority.certificate.decode()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate", folder / "key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.port = self.server.server_address[1]
        self.url = f"https://127.0.0.1:{self.port}"


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def found(monkeypatch, server, wiring):
    """Where the machine says that its API server is; loopback counts as the network that users are on."""

    def say(*candidates: tuple[str, str], ca: str | None = None) -> None:
        made = apiserver.Address(tuple(candidates), (server.ca if ca is None else ca).encode())
        monkeypatch.setattr(apiserver, "address", lambda _: made)

    monkeypatch.setattr(kubeconfigs, "is_loopback", lambda url: "localhost" in url)
    say((server.url, "the administrator's kubeconfig /root/.kube/config"))
    return say


def config_of(results: dict) -> dict:
    return yaml.safe_load(results["kubeconfig"])


@pytest.mark.parametrize("flavour", ["plugin", "curl", "powershell", "openstack"])
def test_a_flavour_logs_in_as_the_plug_in_would_write_it(unit, found, server, keystone_url, flavour):
    written = config_of(unit.action("get-kubeconfig", flavour=flavour))

    assert written["clusters"][0]["cluster"]["server"] == server.url
    assert written["current-context"] == written["contexts"][0]["name"] == "keystone"
    section = written["users"][0]["user"]["exec"]
    environment = {one["name"]: one["value"] for one in section.pop("env") or []}
    theirs = flavours.section(flavour, {})
    del theirs["env"]
    if flavour == "plugin":
        theirs["args"] = [f"--keystone-url={keystone_url}"]
    assert section == theirs
    assert environment == {
        "plugin": {}, "openstack": {"OS_CLOUD": "openstack"},
    }.get(flavour, {"OS_AUTH_URL": keystone_url})  # fmt: skip


def test_no_comment_is_needed_to_read_it_and_the_credential_is_put_where_it_says(unit, found):
    text = unit.action("get-kubeconfig", flavour="curl")["kubeconfig"]
    filled = text.replace("          #- name", "          - name").replace("          #  value", "            value")
    names = [one["name"] for one in yaml.safe_load(filled)["users"][0]["user"]["exec"]["env"]]

    assert names == ["OS_AUTH_URL", "OS_APPLICATION_CREDENTIAL_ID", "OS_APPLICATION_CREDENTIAL_SECRET"]


def test_keystones_own_ca_is_in_the_file(unit, found, server):
    unit.configure(keystone_ca=server.ca)
    for flavour in ("plugin", "curl", "powershell"):
        environment = config_of(unit.action("get-kubeconfig", flavour=flavour))["users"][0]["user"]["exec"]["env"]
        assert {"name": "KEYSTONE_CA", "value": server.ca.strip() + "\n"} in environment
    results = unit.action("get-kubeconfig", flavour="openstack")
    assert results["keystone-ca"].strip() == server.ca.strip()
    assert "cacert" in yaml.safe_load(results["clouds"])["clouds"]["openstack"]


def test_a_project_is_a_context(unit, found):
    written = config_of(unit.action("get-kubeconfig", projects=f"demo, web, {PROJECT_ID}"))

    assert [one["name"] for one in written["contexts"]] == ["keystone-demo", "keystone-web", f"keystone-{PROJECT_ID}"]
    assert [one["name"] for one in written["users"]] == [one["context"]["user"] for one in written["contexts"]]
    words = [one["user"]["exec"]["args"][-1] for one in written["users"]]
    assert words == ["--project-name=demo", "--project-name=web", f"--project-id={PROJECT_ID}"]


@pytest.mark.parametrize(
    ("form", "project", "made"),
    [
        ("", "", ""),
        ("web", "", "web"),
        ("team-%n", "demo", "team-demo"),
        ("%i", PROJECT_ID, PROJECT_ID),
        (f"{'x' * 40}-%i", PROJECT_ID, PROJECT_ID),
    ],
)
def test_a_namespace_comes_from_the_projects_name_or_id(form, project, made):
    assert kubeconfigs.namespace(form, project) == made


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"namespace": "%i", "projects": "demo"}, "namespace: %i stands for a project's ID"),
        ({"namespace": "%n"}, "namespace: %n stands for a project's name"),
        ({"namespace": "No_Name"}, "namespace: 'No_Name' is not a namespace's name"),
        ({"context": "a\nb"}, "context: "),
        ({"projects": "a\x1bb"}, "projects: "),
    ],
)
def test_what_cannot_be_in_a_kubeconfig_is_named(unit, found, parameters, complaint):
    with pytest.raises(ops.testing.ActionFailed, match=complaint):
        unit.action("get-kubeconfig", **parameters)


def test_what_only_this_machine_reaches_is_of_no_use(unit, found, server):
    local = ("https://localhost:6443", "the administrator's kubeconfig /root/.kube/config")
    found(local)
    with pytest.raises(ops.testing.ActionFailed) as raised:
        unit.action("get-kubeconfig")
    for part in ("kubernetes-url", "/root/.kube/config says https://localhost:6443", "nobody but this machine"):
        assert part in raised.value.message
    found(local, (server.url, "the API server's --advertise-address"))
    assert unit.action("get-kubeconfig")["found"] == "the API server's --advertise-address"


def test_an_address_that_does_not_answer_as_that_server_is_not_handed_out(unit, found, server):
    found((server.url, "a"), ca=Authority("another").certificate.decode())
    with pytest.raises(ops.testing.ActionFailed, match="not signed by the CA that is known"):
        unit.action("get-kubeconfig")
    found(("https://127.0.0.1:1", "a"))
    with pytest.raises(ops.testing.ActionFailed, match="does not answer there"):
        unit.action("get-kubeconfig")


def test_an_option_is_taken_although_this_machine_cannot_try_it(unit, found, server):
    unit.configure(kubernetes_url="https://kubernetes.invalid:6443/", kubernetes_ca=server.ca)
    results = unit.action("get-kubeconfig")

    assert config_of(results)["clusters"][0]["cluster"]["server"] == "https://kubernetes.invalid:6443"
    assert "certificate-authority-data" in config_of(results)["clusters"][0]["cluster"]
    assert (results["found"], "does not answer" in results["warning"]) == ("kubernetes-url", True)


def test_without_an_api_server_here_the_option_is_asked_for(unit, found, wiring):
    wiring.raises["detect"] = apiserver.NotFound("none")
    with pytest.raises(ops.testing.ActionFailed, match=r"kubernetes-url: is not set, .*no API server is found"):
        unit.action("get-kubeconfig")


def test_a_result_that_juju_could_not_pass_on_is_refused(unit, found, server):
    unit.configure(keystone_ca=server.ca * 200)
    with pytest.raises(ops.testing.ActionFailed, match="an action's result may have"):
        unit.action("get-kubeconfig", flavour="curl")


def test_keystone_over_http_is_said_to_the_plug_in(unit, found, monkeypatch):
    wanted = kubeconfigs.Wanted()
    config = kubeconfigs.CharmConfig(keystone_url="http://10.0.0.1:5000", keystone_insecure=True)
    login = kubeconfigs.Login("kubectl-keystone-auth", (), "", "IfAvailable", "", ())
    assert "--insecure" in kubeconfigs._contexts(config, wanted, login)[0]["arguments"]
