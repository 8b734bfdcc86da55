"""From flags to a file: it says what the flags said, and the printed commands do what they say."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
import yaml

import apiserver
from apiserver import args, verify, ways
from apiserver.model import MANAGED
from apiserver.yamltext import document
from tests.unit.apiserver import pods
from tests.unit.apiserver.support import Tree

GOLDEN = Path(__file__).parent / "golden"
FLAGS = {
    "authorization-webhook-version": "v1",
    "authorization-webhook-cache-authorized-ttl": "1m0s",
    "authorization-webhook-cache-unauthorized-ttl": "0s",
}


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    """No API server runs that could be asked for its version."""

    def nobody(_: object) -> None:
        raise verify.Unverified("nobody")

    monkeypatch.setattr(verify, "as_admin", nobody)


def theirs(tree: Tree, **more: str) -> str:
    """Have somebody's authorization webhook among the flags."""
    path = str(tree.root / "etc/theirs.kubeconfig")
    found = {"authorization-webhook-config-file": path, **more}
    text = tree.args.replace("Node,RBAC", "Node,RBAC,Webhook").replace("RBAC,Node", "RBAC,Node,Webhook")
    tree.args = text + "".join(f"--{name}={value}\n" for name, value in found.items())
    return path


def told(layout: apiserver.Layout) -> apiserver.Conversion:
    found = apiserver.way_over(layout)
    assert found is not None
    return found


def test_the_file_says_what_the_flags_say(canonical: Tree) -> None:
    path = theirs(canonical, **FLAGS)
    text = told(canonical.layout).text
    assert text.replace(path, "/etc/theirs.kubeconfig") == (GOLDEN / "authorization-config-from-flags").read_text()
    assert document(text.encode())[1] == yaml.safe_load(text)


def test_what_no_flag_says_is_what_the_api_server_takes_then(tree: Tree) -> None:
    path = theirs(tree)
    items = yaml.safe_load(told(tree.layout).text)["authorizers"]
    assert [item["name"] for item in items] in (["node", "rbac", "default"], ["rbac", "node", "default"])
    webhook = items[2]["webhook"]
    assert (webhook["authorizedTTL"], webhook["unauthorizedTTL"]) == ("5m0s", "30s")
    assert (webhook["subjectAccessReviewVersion"], webhook["timeout"]) == ("v1beta1", "30s")
    assert webhook["connectionInfo"]["kubeConfigFile"] == path


def test_without_another_webhook_there_is_nothing_to_tell(tree: Tree) -> None:
    assert apiserver.way_over(tree.layout) is None
    theirs(tree)
    with pytest.raises(apiserver.Conflict, match="the action show-webhook-config tells"):
        apiserver.check(tree.layout, authorization=True)


@pytest.mark.parametrize("tree", ["canonical", "microk8s"], indirect=True)
def test_the_commands_do_it_and_may_be_run_twice(tree: Tree, tmp_path: Path) -> None:
    theirs(tree, **FLAGS)
    tree.args = tree.args.removesuffix("\n")
    found = told(tree.layout)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, program in {"sudo": 'exec "$@"', "systemctl": f"echo $* >>{tmp_path}/asked", "snap": ""}.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{program}\n")
        (bin_folder / name).chmod(0o755)
    before = args.read(tree.layout)
    for _ in range(2):
        path = f"{bin_folder}:{os.environ['PATH']}"
        subprocess.run(["/bin/sh", "-e"], input="\n".join(found.commands).encode(), env={"PATH": path}, check=True)
    flags = args.read(tree.layout)
    config = flags.last("authorization-config")
    assert apiserver.authorization_config(tree.layout) == config
    file = ways.of(tree.layout).file(config)[1]
    assert file.read_text() == found.text
    assert file.stat().st_mode & 0o777 == 0o600
    kept = [flag for flag in before.flags if not flag.name.startswith("authorization-")]
    assert list(flags.flags)[:-1] == kept
    apiserver.check(tree.layout, authorization=True)


def test_who_has_no_such_way_is_told_so(charmed: Tree, tmp_path: Path) -> None:
    theirs(charmed)
    assert "always sets --authorization-mode" in told(charmed.layout).commands[0]
    folder = Tree(tmp_path / "folder", "canonical-folder")
    theirs(folder)
    assert folder.layout.args_folder
    assert (folder.layout.args_folder / MANAGED).is_file()
    commands = told(folder.layout).commands
    assert yaml.safe_load("\n".join(commands))["extra-node-kube-apiserver-args"]["--authorization-mode"] is None


def test_kubeadm_is_given_the_folder_to_mount(tmp_path: Path, tls: tuple[bytes, bytes]) -> None:
    pod = pods.Machine(tmp_path, tls)
    pod.upgrade(
        authorization_mode="Node,RBAC,Webhook", authorization_webhook_config_file="/etc/kubernetes/pki/theirs.yaml"
    )
    found = told(pod.layout)
    assert yaml.safe_load(found.text)["authorizers"][2]["webhook"]["connectionInfo"]["kubeConfigFile"] == (
        "/etc/kubernetes/pki/theirs.yaml"
    )
    assert any(line.endswith("mountPath: " + str(pod.root / "etc/kubernetes/authorization")) for line in found.commands)


@pytest.mark.parametrize(
    ("minor", "version"), [("29", "v1alpha1"), ("30+", "v1beta1"), ("32", "v1"), ("36", "v1"), ("", "v1")]
)
def test_the_format_is_the_newest_that_the_server_knows(
    charmed: Tree, monkeypatch: pytest.MonkeyPatch, minor: str, version: str
) -> None:
    class Session:
        def get(self, url: str, timeout: float) -> Session:
            assert url == "https://server/version"
            return self

        def json(self) -> dict[str, str]:
            return {"major": "1", "minor": minor}

    monkeypatch.setattr(verify, "as_admin", lambda _: contextlib.nullcontext((Session(), "https://server")))
    theirs(charmed)
    assert yaml.safe_load(told(charmed.layout).text)["apiVersion"] == f"apiserver.config.k8s.io/{version}"
