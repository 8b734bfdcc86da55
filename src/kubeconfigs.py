"""Kubeconfigs for users, without any secret: how the API server is reached from outside, and a context a project.

How a flavour logs in is not known here: that lies in files that the plug-in's package has (`Places.logins`), for the
plug-in writes kubeconfigs of the same flavours with the user's own credential in them.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pydantic
import requests
import yaml

import apiserver
import files
import reach
from actions import Words
from config import CharmConfig, is_loopback
from errors import Blocked, ConfigError
from files import Places

MOST_BYTES = 120_000
"""Of a result: Linux takes no longer argument than 128 KiB (MAX_ARG_STRLEN), and that is how Juju is given it."""
SECONDS = 10.0


class Wanted(pydantic.BaseModel, frozen=True):
    """The parameters of get-kubeconfig."""

    flavour: Literal["plugin", "curl", "powershell", "openstack"] = "plugin"
    projects: Words = []
    namespace: str = ""
    context: str = "keystone"
    cluster: str = "kubernetes"
    cloud: str = "openstack"


@dataclass(frozen=True)
class Login:
    """How a flavour logs in; see flavours.yaml beside the scripts."""

    command: str
    arguments: tuple[str, ...]
    script: str
    interactive: str
    hint: str
    reads: tuple[str, ...]

    @classmethod
    def load(cls, places: Places, flavour: str) -> Login:
        """Read it from what the charm ships."""
        entry: dict[str, Any] = yaml.safe_load((places.logins / "flavours.yaml").read_text(encoding="utf-8"))[flavour]
        script = (places.logins / entry["script"]).read_text(encoding="utf-8") if "script" in entry else ""
        hint = entry.get("installHint", "")
        return cls(
            entry["command"], tuple(entry["args"]), script, entry["interactiveMode"], hint, tuple(entry["reads"])
        )


@dataclass(frozen=True)
class Server:
    """The API server as users reach it.

    Args:
        url: it.
        ca: PEM of what signs its certificate; empty for what their systems trust.
        source: where the URL was found.
        problem: why it could not be tried from this machine; empty if it answered.
    """

    url: str
    ca: str
    source: str
    problem: str = ""

    def told(self) -> dict[str, str]:
        """Give the results of an action that are about it."""
        results = {"server": self.url, "found": self.source}
        if self.problem:
            results["warning"] = f"from this machine {self.problem}; users may reach it all the same"
        return results


def make(places: Places, layout: apiserver.Layout | None, config: CharmConfig, wanted: Wanted) -> dict[str, str]:
    """Write a kubeconfig for users.

    Args:
        places: where templates and scripts are.
        layout: the API server of this machine; None where there is none that is known.
        config: the options.
        wanted: the action's parameters.

    Raises:
        Blocked: a parameter, or an option that is missing; or the result would be too long for Juju.
    """
    server = find_server(layout, config)
    login = Login.load(places, wanted.flavour)
    environment = {"OS_AUTH_URL": config.keystone_url, "KEYSTONE_CA": config.keystone_ca, "OS_CLOUD": wanted.cloud}
    reads = {name: environment[name] for name in login.reads if environment.get(name)}
    values = {
        "flavour": wanted.flavour,
        "server": server.url,
        "ca": base64.b64encode(server.ca.encode()).decode(),
        "cluster": wanted.cluster,
        "cloud": wanted.cloud,
        "login": login,
        "environment": reads,
        "contexts": _contexts(config, wanted, login),
    }
    results = {"kubeconfig": files.render(places.templates, "user-kubeconfig.yaml", values), **server.told()}
    if wanted.flavour == "openstack":
        cloud = {"cloud": wanted.cloud, "keystone_url": config.keystone_url, "keystone_ca": config.keystone_ca}
        results["clouds"] = files.render(places.templates, "clouds.yaml", cloud)
        if config.keystone_ca:
            results["keystone-ca"] = config.keystone_ca
    return bounded(
        results,
        "kubeconfig",
        "ask for fewer projects at once, or set kubernetes-ca and keystone-ca to the one CA certificate that is needed",
    )


def bounded(results: dict[str, str], what: str, way_out: str) -> dict[str, str]:
    """Give an action's results as they are.

    Raises:
        Blocked: one of them is longer than Juju takes.
    """
    size = max(len(text.encode()) for text in results.values())
    if size > MOST_BYTES:
        raise Blocked(f"the {what} would have {size} bytes, and an action's result may have {MOST_BYTES}: {way_out}")
    return results


def _contexts(config: CharmConfig, wanted: Wanted, login: Login) -> list[dict[str, Any]]:
    """Give what the template needs of each context: one a project, or one if no project is named."""
    for parameter, text in (("context", wanted.context), ("cluster", wanted.cluster), ("cloud", wanted.cloud)):
        if not text or not text.isprintable():
            raise Blocked(f"{parameter}: {text!r} cannot be a name in a kubeconfig")
    contexts = []
    for project in wanted.projects or [""]:
        if not project.isprintable():
            raise Blocked(f"projects: {project!r} cannot be a project's name")
        arguments = list(login.arguments)
        if wanted.flavour == "plugin":
            arguments.append(f"--keystone-url={config.keystone_url}")
            arguments += ["--insecure"] if config.keystone_in_clear else []
            arguments += [f"--project-{'id' if is_id(project) else 'name'}={project}"] if project else []
        contexts.append(
            {
                "name": f"{wanted.context}-{project}" if project else wanted.context,
                "project": project,
                "namespace": namespace(wanted.namespace, project),
                "arguments": arguments,
            }
        )
    return contexts


def is_id(project: str) -> bool:
    """Tell whether a project was named by its ID, as a policy tells it: 32 or 64 hexadecimal digits."""
    return re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", project) is not None


def namespace(form: str, project: str) -> str:
    """Give the namespace of a project: a name, or the sync configuration's format with %i and %n in it.

    A name of more than 63 characters becomes the ID alone, as it does in the synchronization.

    Raises:
        Blocked: it is no namespace's name, or the format needs what the project was not named by.
    """
    made = form.strip()
    for sign, known, what in (("%i", is_id(project), "ID"), ("%n", bool(project) and not is_id(project), "name")):
        if sign in made:
            if not known:
                raise Blocked(f"namespace: {sign} stands for a project's {what}: name projects by it (projects=…)")
            made = made.replace(sign, project)
    if len(made) > 63 and is_id(project):
        made = project
    if made and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", made):
        raise Blocked(f"namespace: {made!r} is not a namespace's name (small letters, digits, -; at most 63)")
    return made


# --- the API server, as users reach it


def find_server(layout: apiserver.Layout | None, config: CharmConfig) -> Server:
    """Say where users reach the API server, and what signs its certificate: as the options say, else as it is found.

    What is found has to answer with a certificate for that very address, tried from this machine. What an option says
    is taken: this machine need not reach the balancer that users do.

    Raises:
        ConfigError: it cannot be found.
    """
    found: Sequence[tuple[str, str]] = ()
    ca, why = "", "no API server is found on this machine"
    if layout is not None:
        try:
            address = apiserver.address(layout)
            found, ca = address.candidates, address.ca.decode()
        except (apiserver.WiringError, UnicodeError) as error:
            why = str(error)
    if config.kubernetes_url:
        ca = config.kubernetes_ca or ca
        problem = _problem(config.kubernetes_url, ca)
        if problem and not config.kubernetes_ca and not _problem(config.kubernetes_url, ""):
            ca, problem = "", ""  # a balancer with a certificate that everybody knows
        return Server(config.kubernetes_url, ca, "kubernetes-url", problem)
    ca = config.kubernetes_ca or ca
    useless = []
    for url, source in found:
        if is_loopback(url):
            useless.append(f"{source} says {url}, which nobody but this machine reaches")
        elif problem := _problem(url, ca):
            useless.append(f"{source} says {url}, but {problem}")
        else:
            return Server(url, ca, source)
    raise ConfigError(
        "kubernetes-url",
        f"is not set, and where users reach the API server cannot be found: {'; '.join(useless) or why}."
        " Set it: juju config kubernetes-keystone kubernetes-url=https://HOST:6443",
    )


def _problem(url: str, ca: str) -> str:
    """Say why an API server does not answer there with a certificate of this CA; empty if it does."""
    with requests.Session() as session, tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:
        session.trust_env = False
        pem.write(ca)
        pem.flush()
        try:
            # Whoever asks without a token is told the version, or is refused; both are an API server's answers.
            answer = session.get(
                f"{url}/version",
                timeout=SECONDS,
                allow_redirects=False,
                verify=pem.name if ca else reach.system_ca(),
            )
        except requests.exceptions.SSLError:
            return "its certificate is not for that address, or not signed by the CA that is known"
        except (requests.RequestException, OSError) as error:
            return f"it does not answer there ({type(error).__name__})"
    return "" if answer.status_code in (200, 401, 403) else f"it answers {answer.status_code} there"
