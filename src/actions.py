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
import bindings
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
        who = f"the ConfigMap {config.policy_configmap}, which is watched," if config.policy_configmap else "RBAC alone"
        raise ConfigError("policy", f"is empty, so {who} decides and there is nothing to reload")
    policy = authenticator.validate_policy(places, config)
    if not authenticator.in_force(places).policy:
        raise Blocked("no policy is in force on this unit yet; its status says why")
    before = places.policy.read_bytes()
    files.write(places.policy, policy.content, 0o640, authenticator.group())
    try:
        status = authenticator.wait_until_in_force(places)
        program = upstream.asked(places)
        if program is not None:
            # It reads its policy at its start alone.
            behind = upstream.start(places, config, webhook.tls(places), program, with_policy=True)
            authenticator.turn_to(places, upstream.urls(), behind)
            authenticator.wait_until_in_force(places)
            upstream.settle(places, program)
    except (WorkloadError, ConfigError):
        files.write(places.policy, before, 0o640, authenticator.group())
        raise
    results: dict[str, str | int] = {"hash": str(status.policy.hash), "rules": status.policy.rules}
    results["loaded"] = str(status.policy.loaded)
    return results | _listed("warnings", policy.warnings)


class SyncParameters(pydantic.BaseModel, frozen=True):
    """The parameters of sync."""

    dry_run: bool = False


def sync(places: Places, config: CharmConfig, parameters: SyncParameters) -> dict[str, str | int]:
    """Bring the cluster in step with Keystone, or say what that would be.

    Raises:
        ConfigError: what it needs is not set.
        WorkloadError: it could not be done, or not to its end.
    """
    if not config.sync_config.strip():
        raise ConfigError("sync-config", "is empty, so there is nothing to keep in step")
    if not config.sync_credentials:
        raise ConfigError("sync-credentials", "is empty, and without it Keystone does not say who may do what")
    done = authenticator.sync(places, dry_run=parameters.dry_run)
    results: dict[str, str | int] = {
        "dry-run": str(done.dry_run).lower(),
        "found": f"{done.projects} projects, {done.users} users, {done.assignments} role assignments",
        "changes": "\n".join(f"{key}: {count}" for key, count in sorted(done.changes.items())) or "none",
        "problems": done.problems,
        "calls": f"{done.kubernetes_calls} to the API server, {done.keystone_calls} to Keystone, {done.seconds:g} s",
        "report": str(places.sync_report),
    }
    return results | _listed("first-problems", done.first_problems)


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


def _way_over(layout: apiserver.Layout, config: CharmConfig) -> dict[str, str | int]:
    """Tell how somebody's authorization webhook and ours go together: first theirs, in a file; then ours joins it."""
    over = apiserver.way_over(layout)
    if over is None:
        return {}
    entry = flags.authorizer(config.listen, b"", names_upstream_way=config.names_upstream_way)
    return {
        "commands": "\n".join(over.commands),
        "authorization-config": over.text,
        "authorizer": apiserver.entry_as_text(entry),
    }


def _reached_by_bare_names(layout: apiserver.Layout | None, config: CharmConfig) -> dict[str, str | int]:
    """List the bindings that users of Keystone's have by their bare names, where they go by those; and the way on."""
    if layout is None or not config.names_upstream_way:
        return {}
    try:
        reached = bindings.of_bare_names(layout)
    except apiserver.Unverified as error:
        return {"bindings": f"cannot be listed: {error}"}
    commands = list(reached.commands[:LINES_SHOWN])
    if len(reached.commands) > LINES_SHOWN:
        commands.append(f"# and {len(reached.commands) - LINES_SHOWN} more, which are shown when these have been run")
    if commands:
        commands.insert(
            0, "# leave out what is not meant for users of Keystone's; those of another domain end in @<its ID>"
        )
    return _listed("bindings", reached.told) | ({"native-names": "\n".join(commands)} if commands else {})


def show_webhook_config(
    places: Places, place: apiserver.Place, config: CharmConfig, principal: str
) -> dict[str, str | int]:
    """Show kubeconfig and flags; for an API server that is set by hand, the commands and what is missing as well.

    Where another authorization webhook keeps anything from being installed, the way over to both is all that is shown.
    """
    by_hand = config.api_server == "manual"
    layout = None if by_hand else apiserver.detect(config.api_server, place)
    missing = flags.missing(layout, config)
    way_over = _way_over(layout, config) if layout is not None and missing.authorization else {}
    if not places.settings.exists():
        if way_over:
            return way_over
        raise Blocked("nothing is installed on this unit yet; its status says why")
    tls = webhook.tls(places)
    if not webhook.is_complete(places):
        raise Blocked("the certificates are missing or over; the next hook makes them anew, its status says more")
    # By hand it may pass through Juju's configuration, where no private key belongs.
    kubeconfig = webhook.kubeconfig(places, tls, config.listen, with_client=not by_hand)
    shown = webhook.without_key(kubeconfig.decode())
    results: dict[str, str | int] = {"endpoint": config.listen.url, "kubeconfig": shown}
    if layout is None:
        endpoint = webhook.endpoint(tls, config.listen)
        found = apiserver.byhand.look(place, endpoint, config.authorization)
        hands = apiserver.byhand.hands(place, flags.by_hand(config, principal, places.by_hand, shown))
        names = [layout.name if layout else "unknown" for layout, _ in hands]
        results["flags"] = "\n".join(line for _, hand in hands for line in hand.lines)
        results["commands"] = apiserver.byhand.commands(hands)
        results["layout"] = ", ".join(names)
        results |= _reached_by_bare_names(layout_at_hand(place, config), config)
        return results | _listed("missing", [f"{server.name}: {one}" for server in found for one in server.missing])
    desired = flags.desired(layout, config, kubeconfig, missing)
    results["flags"] = flags.as_text(desired)
    results["layout"] = f"{layout.name}, {apiserver.evidence(layout)}"
    if desired.authorizer is not None:
        results["authorizer"] = apiserver.entry_as_text(desired.authorizer)
    results |= way_over
    results["state"] = apiserver.state(layout).kind.value
    results |= _reached_by_bare_names(layout, config)
    return results
