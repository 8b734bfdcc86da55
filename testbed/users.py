"""What a researcher has in hands: a kubeconfig that turns an application credential into a Keystone token at each call.

No plug-in is installed for it: kubectl runs `sh` with curl and sed. The credential's secret stands in the environment
and the request's body on standard input, never in arguments, which every user of a system can read.
"""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

import yaml

from testbed.cluster import Cluster
from testbed.keystone import ApplicationCredential, Keystone

# `sh` may be bash with xtrace in SHELLOPTS, which would print the secret; curl obeys ~/.curlrc unless -q comes first.
# Keystone lets users choose secrets with any characters, so what goes into JSON is escaped.
LOGIN = r"""
{ set +x; } 2>/dev/null
json() {
    printf '%s\n' "$1" |
        sed -e ':join' -e '$!{' -e N -e 'b join' -e '}' -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e "s/$(printf '\t')/\\\\t/g" \
            -e "s/$(printf '\r')/\\\\r/g" -e 's/\n/\\n/g'
}
id=$(json "$OS_APPLICATION_CREDENTIAL_ID") secret=$(json "$OS_APPLICATION_CREDENTIAL_SECRET")
answer=$(
    printf '{"auth":{"identity":{"methods":["%s"],"%s":{"id":"%s","secret":"%s"}}}}' \
        application_credential application_credential "$id" "$secret" |
        curl -q --silent --show-error --max-time 30 --proto =https --cacert "$OS_CACERT" --dump-header - \
            --header 'Content-Type: application/json' --data-binary @- "$OS_AUTH_URL/auth/tokens"
) || exit
token=$(printf '%s\n' "$answer" | sed -n 's/^[Xx]-[Ss]ubject-[Tt]oken: *\([A-Za-z0-9_.=-]*\).*/\1/p')
if [ -z "$token" ]; then
    printf 'Keystone gives no token: %s\n' "$(printf '%s\n' "$answer" | sed -n '$p')" >&2
    exit 1
fi
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}\n' "$token"
"""


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
        "OS_CACERT": str(keystone_ca),
        "OS_APPLICATION_CREDENTIAL_ID": credential.id,
        "OS_APPLICATION_CREDENTIAL_SECRET": credential.secret,
    }
    login = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "interactiveMode": "Never",
        "command": "/bin/sh",
        "args": ["-c", LOGIN.lstrip("\n")],
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
