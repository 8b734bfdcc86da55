"""What the actions do; each gives its results, or raises with a message for the operator.

Not here: parameters' descriptions (actions.yaml). Results are handed to Juju as arguments of a command, which every
process list shows and which are bounded in length: no key or token is among them, and long lists are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic

import apiserver
import authenticator
import files
import flags
import upstream
import webhook
from authenticator import WorkloadError
from config import CharmConfig
from errors import Blocked, ConfigError
from files import Places

LINES_SHOWN = 50


def _words(value: object) -> object:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Words = Annotated[list[str], pydantic.BeforeValidator(_words)]


class AccessRule(pydantic.BaseModel, frozen=True):
    """One of Keystone's access rules; it may have an ID as well."""

    service: str
    method: str
    path: str


class Access(pydantic.BaseModel, frozen=True):
    """The parameters of check-access."""

    user: str
    user_id: str | None = None
    domain: str | None = None
    project: str | None = None
    project_name: str | None = None
    project_domain: str | None = None
    roles: Words = []
    groups: Words = []
    verb: str = "get"
    resource: str = ""
    namespace: str = ""
    api_group: str = ""
    api_version: str = ""
    name: str = ""
    path: str = ""
    access_rules: str = ""


def reload_policy(places: Places, config: CharmConfig) -> dict[str, str | int]:
    """Check the policy option, write it, and wait until the running service has it.

    Raises:
        ConfigError: there is none, or it is not valid; nothing was changed.
        Blocked: the service decides by no policy at present.
        WorkloadError: the service does not take it; the one before is back in place.
    """
    if not config.policy.strip():
        raise ConfigError("policy", "is empty, so RBAC alone decides and there is nothing to reload")
    policy = authenticator.validate_policy(places, config)
    if not authenticator.in_force(places).policy:
        raise Blocked("no policy is in force on this unit yet; its status says why")
    before = places.policy.read_bytes()
    files.write(places.policy, policy.content, 0o640, authenticator.group())
    try:
        status = authenticator.wait_until_in_force(places)
        if config.k8s_keystone_auth_url:
            # It reads its policy at its start alone.
            upstream.start(places, config, webhook.tls(places), upstream.ensure(places, config), with_policy=True)
    except (WorkloadError, ConfigError):
        files.write(places.policy, before, 0o640, authenticator.group())
        raise
    results: dict[str, str | int] = {"hash": str(status.policy.hash), "rules": status.policy.rules}
    results["loaded"] = str(status.policy.loaded)
    return results | _listed("warnings", policy.warnings)


def shortened(lines: Sequence[str]) -> list[str]:
    """So many lines as people read, and how many more there are."""
    more = [f"and {len(lines) - LINES_SHOWN} more"] if len(lines) > LINES_SHOWN else []
    return [*lines[:LINES_SHOWN], *more]


def _listed(name: str, lines: Sequence[str]) -> dict[str, str | int]:
    """A result of several lines; none if there are none."""
    return {name: "\n".join(shortened(lines))} if lines else {}


def check_access(places: Places, access: Access) -> dict[str, str | int]:
    """Say which item of the policy in force decides a request, and why the others do not."""
    if bool(access.resource) == bool(access.path):
        raise Blocked("give either resource= (such as pods) or path= (such as /healthz)")
    resource, _, subresource = access.resource.partition("/")
    who = {"user", "user_id", "domain", "project", "project_name", "project_domain", "roles", "groups", "verb"}
    request = access.model_dump(include=who)
    if access.access_rules.strip():
        try:
            rules = pydantic.TypeAdapter(list[AccessRule]).validate_json(access.access_rules)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["access-rules", *map(str, first["loc"])])
            example = '[{"service": "kubernetes", "method": "GET", "path": "/**"}]'
            raise Blocked(f"{where}: {first['msg']}; expected JSON such as {example}") from None
        request["access_rules"] = [rule.model_dump() for rule in rules]
    if access.path:
        request["path"] = access.path
    else:
        request |= {"resource": resource, "subresource": subresource, "api_group": access.api_group}
        request |= {"namespace": access.namespace, "name": access.name, "api_version": access.api_version}
    verdict = authenticator.explain(places, request)
    results: dict[str, str | int] = {"allowed": str(verdict.allowed).lower(), "reason": verdict.reason}
    if verdict.item is not None:
        results["item"] = verdict.item
    return results | _listed("misses", [f"item {miss.item}: {miss.reason}" for miss in verdict.misses])


def layout_at_hand(place: apiserver.Place, config: CharmConfig) -> apiserver.Layout | None:
    """Give the API server of this machine to be read, whoever sets its flags; None if it cannot be told which it is."""
    try:
        return apiserver.detect("auto" if config.api_server == "manual" else config.api_server, place)
    except (apiserver.NotFound, apiserver.Ambiguous):
        return None


def show_webhook_config(places: Places, place: apiserver.Place, config: CharmConfig) -> dict[str, str | int]:
    """Show kubeconfig and flags; for an API server that is set by hand, the commands as well."""
    if not places.settings.exists():
        raise Blocked("nothing is installed on this unit yet; its status says why")
    tls = webhook.tls(places)
    if not webhook.has_authority(places) or not tls.client.certificate.exists() or not tls.client.key.exists():
        raise Blocked("the certificates are missing or over; the next hook makes them anew, its status says more")
    by_hand = config.api_server == "manual"
    layout = None if by_hand else apiserver.detect(config.api_server, place)
    # By hand it passes through Juju's configuration, where no private key belongs.
    kubeconfig = webhook.kubeconfig(places, tls, config.listen, with_client=not by_hand)
    folder = places.etc if layout is None else layout.config_folder
    shown = webhook.without_key(kubeconfig.decode())
    results: dict[str, str | int] = {
        "endpoint": config.listen.url,
        "kubeconfig": shown,
        "flags": flags.as_text(flags.wanted(folder, kubeconfig, flags.missing(layout, config))),
    }
    if layout is None:
        results["commands"] = flags.commands(config.listen, shown, authorization=config.authorization)
    else:
        results["layout"] = f"{layout.name}, {apiserver.evidence(layout)}"
        results["state"] = apiserver.state(layout).kind.value
    return results
