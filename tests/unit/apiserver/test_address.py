"""Where others reach the API server, as its machine knows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import apiserver
from apiserver import Place, WiringError
from apiserver.charmed import Charmed
from apiserver.microk8s import MicroK8s
from apiserver.model import Layout

CA = "LS0tLQ=="


def machine(root: Path, layout: type, server: str, flags: str) -> Layout:
    made = layout(Place(root=root))
    for path, text in (
        (made.args_file, flags),
        (
            made.admin_kubeconfig,
            yaml.safe_dump(
                {
                    "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority-data": CA}}],
                    "users": [{"name": "u", "user": {"token": "admin::x"}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "c",
                }
            ),
        ),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return made


@pytest.mark.parametrize(
    ("layout", "server", "flags", "urls"),
    [
        (
            Charmed,
            "https://127.0.0.1:6443",
            '--advertise-address="10.5.0.11"\n--secure-port="6443"\n',
            ["https://127.0.0.1:6443", "https://10.5.0.11:6443"],
        ),
        (Charmed, "https://balancer:443/", "--advertise-address=fd00::11\n",
         ["https://balancer:443", "https://[fd00::11]:6443"]),
        (MicroK8s, "https://127.0.0.1:16443", "--secure-port=16443\n", ["https://127.0.0.1:16443"]),
        (Charmed, "https://a b\n", "--advertise-address=nowhere\n", []),
    ],
)  # fmt: skip
def test_the_administrators_url_comes_first_and_what_is_advertised_second(tmp_path, layout, server, flags, urls):
    found = apiserver.address(machine(tmp_path, layout, server, flags))

    assert [url for url, _ in found.candidates] == urls
    assert found.ca == b"----"


def test_what_cannot_be_read_is_named(tmp_path):
    layout = machine(tmp_path, Charmed, "https://k:6443", "")
    layout.admin_kubeconfig.write_text("nonsense")
    with pytest.raises(WiringError, match=str(layout.admin_kubeconfig)):
        apiserver.address(layout)
