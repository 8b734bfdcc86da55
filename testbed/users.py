"""What a researcher has in hands: a kubeconfig that turns an application credential into a Keystone token at each call.

No plug-in is installed for it: it is the flavour `curl` of the action get-kubeconfig, with the credential filled in.
"""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

import yaml

from testbed import setup
from testbed.cluster import Cluster
from testbed.keystone import ApplicationCredential, Keystone

LOGINS = setup.HERE.parent / "src" / "kubectl_keystone_auth" / "logins"


def kubeconfig(
    credential: ApplicationCredential,
    *,
    keystone_url: str,
    keystone_ca: Path,
    server: str,
    server_ca: bytes,
    namespace: str = "default",
) -> str:
    """Write a kubeconfig.

    Args:
        credential: whose it is.
        keystone_url: ends in `/v3`.
        keystone_ca: a file with the CA of its certificate.
        server: the API server's URL.
        server_ca: the CA of its certificate, PEM.
        namespace: where kubectl looks when none is named.

    Returns:
        YAML. It holds the secret: for a file with mode 0600.

    """
    environment = {
        "OS_AUTH_URL": keystone_url,
        "KEYSTONE_CA": keystone_ca.read_text(),
        "OS_APPLICATION_CREDENTIAL_ID": credential.id,
        "OS_APPLICATION_CREDENTIAL_SECRET": credential.secret,
    }
    flavour = yaml.safe_load((LOGINS / "flavours.yaml").read_text())["curl"]
    login = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "interactiveMode": flavour["interactiveMode"],
        "command": flavour["command"],
        "args": [*flavour["args"], (LOGINS / flavour["script"]).read_text()],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
    }
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(server_ca).decode()}
    context = {"cluster": "kubernetes", "user": "keystone", "namespace": namespace}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "kubernetes", "cluster": cluster}],
            "users": [{"name": "keystone", "user": {"exec": login}}],
            "contexts": [{"name": "keystone", "context": context}],
            "current-context": "keystone",
        },
        sort_keys=False,
        allow_unicode=True,
    )


def hand_out(
    credential: ApplicationCredential, keystone: Keystone, cluster: Cluster, namespace: str = "default"
) -> Path:
    """Write a user's kubeconfig for this Keystone and this cluster to a file, for `Cluster.kubectl(kubeconfig=…)`."""
    path = cluster.folder / f"{secrets.token_hex(4)}.user.kubeconfig"
    path.touch(0o600)
    path.write_text(
        kubeconfig(
            credential,
            keystone_url=keystone.url,
            keystone_ca=keystone.ca,
            server=cluster.server,
            server_ca=cluster.ca,
            namespace=namespace,
        )
    )
    return path
