"""How others change a file of flags that is not theirs alone, each in a few lines that do what the real one does.

Only what becomes of the text; who calls it when is the machines' affair (`testbed.canonical`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from testbed.cache import TestbedError


def canonical_charm(text: str, extra: Mapping[str, str] | None = None) -> str:
    """Give what the `k8s` charm writes: of each flag the last line, its own over it, sorted by name and quoted."""
    flags: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("--"):
            name, value = line.split("=", 1)
            flags[name] = value.strip('"').strip("'")
    flags |= {f"--{name}": value for name, value in (extra or {}).items()}
    return "".join(f'{name}="{value}"\n' for name, value in sorted(flags.items()))


def canonical_daemon(text: str, update: Mapping[str, str] | None = None, delete: Iterable[str] = ()) -> str:
    """Give what the `k8s` snap's daemon writes: its own values in each line of their names, all lines sorted."""
    wanted, gone = {f"--{name}": value for name, value in (update or {}).items()}, {f"--{name}" for name in delete}
    lines, seen = [], set()
    for line in filter(None, map(str.strip, text.splitlines())):
        name = line.split("=", 1)[0]
        seen.add(name)
        if name in wanted:
            lines.append(f"{name}={wanted[name]}")
        elif name not in gone:
            lines.append(line)
    lines += [f"{name}={value}" for name, value in wanted.items() if name not in seen]
    return "".join(f"{line}\n" for line in sorted(lines))


def microk8s_tools(text: str, name: str, value: str) -> str:
    """Give what MicroK8s' own tools write to set a flag: the value in every line of its name, or a new first line."""
    lines = text.split("\n")
    if not any(line.startswith(f"--{name}=") for line in lines):
        return f"--{name}={value}\n{text}"
    return "\n".join(f"--{name}={value}" if line.startswith(f"--{name}=") else line for line in lines)


def kubeadm(
    version: str, address: str, flags: Mapping[str, str], mounts: Mapping[str, tuple[str, str]], port: int = 6443
) -> str:
    """Give the manifest that kubeadm writes at `init` and at each `upgrade`: keys and flags sorted, nothing kept.

    Args:
        version: of Kubernetes, such as `v1.36.3`.
        address: of the machine.
        flags: the API server's.
        mounts: the volumes: name to the machine's path and the pod's.
        port: the API server's.

    """
    minor = int(version.split(".")[1])
    probes = "probe-port" if minor >= 34 else port

    def probe(path: str, failures: int, **more: int) -> dict[str, Any]:
        get = {"host": address, "path": path, "port": probes, "scheme": "HTTPS"}
        return {"failureThreshold": failures, "httpGet": get, "timeoutSeconds": 15, **more}

    container = {
        "command": ["kube-apiserver", *(f"--{name}={value}" for name, value in sorted(flags.items()))],
        "image": f"registry.k8s.io/kube-apiserver:{version}",
        "imagePullPolicy": "IfNotPresent",
        "livenessProbe": probe("/livez", 8, initialDelaySeconds=10, periodSeconds=10),
        "name": "kube-apiserver",
        "readinessProbe": probe("/readyz", 3, periodSeconds=1),
        "resources": {"requests": {"cpu": "250m"}},
        "startupProbe": probe("/livez", 24, initialDelaySeconds=10, periodSeconds=10),
        "volumeMounts": [{"mountPath": there, "name": name, "readOnly": True} for name, (_, there) in mounts.items()],
    }
    if minor >= 34:
        container["ports"] = [{"containerPort": port, "name": "probe-port", "protocol": "TCP"}]
    metadata: dict[str, Any] = {
        "annotations": {"kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint": f"{address}:{port}"},
        "labels": {"component": "kube-apiserver", "tier": "control-plane"},
        "name": "kube-apiserver",
        "namespace": "kube-system",
    }
    if minor < 34:
        metadata["creationTimestamp"] = None
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "containers": [container],
            "hostNetwork": True,
            "priority": 2000001000,
            "priorityClassName": "system-node-critical",
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [
                {"hostPath": {"path": here, "type": "DirectoryOrCreate"}, "name": name}
                for name, (here, _) in mounts.items()
            ],
        },
        "status": {},
    }
    return yaml.safe_dump(pod, width=1000)


def extra_arguments(option: str) -> dict[str, str]:
    """Give the flags of a charm's option for further ones, `NAME=VALUE …`; a bare name means `true`."""
    return {name: value or "true" for name, _, value in (word.partition("=") for word in option.split())}


def known_alone(options: Mapping[str, str], *known: str) -> None:
    """Refuse an option of a control plane's charm that nothing here plays."""
    if unknown := sorted(set(options) - set(known)):
        raise TestbedError(f"the option {unknown[0]} is played by nothing here; known are {', '.join(known)}")
