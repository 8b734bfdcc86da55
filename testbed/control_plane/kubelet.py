"""Plays the kubelet, of which only the static pods are here: runs what is in its folder of manifests.

As the real one: it looks at the folder twice a second (that is told of each change, and looks every 20 s), passes over
names that begin with a dot and runs every other file, whatever it is called; a pod whose file changes is ended, in 30 s
at the most, and begun anew; a container that ends waits 10 s for its next start, then twice as long each time, up to
5 minutes; a probe that fails too often ends it. A container sees its volumes and nothing else of the machine's files,
and its output goes to /var/log/pods in the format that all runtimes write. systemd plays the container runtime.
"""

import datetime
import pathlib
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.request

sys.path.insert(0, "/opt/kubelet")
import yaml

MANIFESTS = pathlib.Path("/etc/kubernetes/manifests")
GRACE, BACKOFF, LONGEST, SOUND = 30, 10, 300, 600  # seconds
CONTAINER = """
root=/run/containers/$1; user=$2; shift 2
mkdir -p "$root" && mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir -p "$root/usr/local/bin" "$root/proc" "$root/dev" "$root/tmp" "$root/etc"
touch "$root/usr/local/bin/kube-apiserver"
mount --bind /snap/kubernetes/x1/kube-apiserver "$root/usr/local/bin/kube-apiserver"
mount --rbind /proc "$root/proc"; mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
    mkdir -p "$1" "$root$2" && mount --bind "$1" "$root$2" && mount -o "remount,bind,$3" "$root$2"; shift 3
done
shift; cd /
exec chroot --userspec="$user" "$root" "$@"
"""


def say(text):
    """Log a line."""
    print(text, file=sys.stderr, flush=True)


class Pod:
    """One pod: what its file says, and the container that runs."""

    def __init__(self, name, spec):
        self.name, self.spec = name, spec
        self.container = spec["spec"]["containers"][0]
        self.unit = f"{self.container['name']}.service"
        self.runs, self.process, self.again, self.wait = -1, None, 0.0, BACKOFF
        self.logs = pathlib.Path(f"/var/log/pods/kube-system_{name}_{id(self):x}/{self.container['name']}")
        self.logs.mkdir(parents=True)

    def look(self):
        """Start what does not run and may; end what does not answer."""
        if self.process is not None and self.process.poll() is not None:
            if time.monotonic() - self.began > SOUND:
                self.wait = BACKOFF
            say(f"{self.name} ended with {self.process.returncode}; again in {self.wait} s")
            self.process, self.again, self.wait = None, time.monotonic() + self.wait, min(LONGEST, self.wait * 2)
        if self.process is None and time.monotonic() >= self.again:
            self.start()
        elif self.process is not None:
            self.probe()

    def start(self):
        """Begin a container, with its volumes."""
        spec, container = self.spec["spec"], self.container
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        sources = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
        mounts = []
        for mount in sorted(container["volumeMounts"], key=lambda mount: mount["mountPath"]):
            mounts += [sources[mount["name"]], mount["mountPath"], "ro" if mount.get("readOnly") else "rw"]
        words = [*container["command"], *container.get("args", [])]
        self.runs, self.began, self.answered, self.failures, self.asked = self.runs + 1, time.monotonic(), False, 0, 0.0
        self.process = subprocess.Popen(
            ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--unit={self.unit}",
             f"--description=container {self.name}", f"--property=TimeoutStopSec={GRACE}", "--",
             "unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", CONTAINER, "sh", self.name,
             f"{context.get('runAsUser', 0)}:{context.get('runAsGroup', 0)}", *mounts, "--", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        threading.Thread(target=self.log, args=(self.process.stdout, self.logs / f"{self.runs}.log")).start()

    def log(self, output, path):
        """Write down what it says."""
        with path.open("w") as file:
            for line in output:
                now = datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")
                file.write(f"{now} stderr F {line.decode(errors='replace').rstrip()}\n")
                file.flush()

    def probe(self):
        """Ask it, and end it where it has not answered too often."""
        probe = self.container["livenessProbe" if self.answered else "startupProbe"]
        now = time.monotonic()
        if now - max(self.asked, self.began + probe["initialDelaySeconds"]) < probe["periodSeconds"]:
            return
        self.asked = now
        get, ports = probe["httpGet"], {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}
        url = f"https://{get['host']}:{ports.get(get['port'], get['port'])}{get['path']}"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            urllib.request.urlopen(url, timeout=min(5, probe["timeoutSeconds"]), context=context).close()
            self.answered, self.failures = True, 0
        except OSError as error:
            self.failures += 1
            if self.failures >= probe["failureThreshold"]:
                say(f"{self.name} does not answer ({error}): ended")
                self.end()

    def end(self):
        """End it, and wait until it has."""
        subprocess.run(["systemctl", "stop", self.unit], check=False)
        if self.process is not None:
            self.process.wait()


pods = {}
while True:
    found = {}
    for path in MANIFESTS.iterdir():
        if path.name.startswith("."):
            continue
        try:
            found[path.name] = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            say(f"{path} cannot be read: {error}")
            if path.name in pods:
                found[path.name] = pods[path.name].spec
    for name in list(pods):
        if pods[name].spec != found.get(name):
            pod = pods.pop(name)
            pod.end()
            shutil.rmtree(pod.logs.parent, ignore_errors=True)
    for name, spec in found.items():
        if name not in pods:
            say(f"a pod from {name}")
            pods[name] = Pod(spec["metadata"]["name"], spec)
        pods[name].look()
    time.sleep(0.5)
