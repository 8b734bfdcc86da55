"""What an operator is told in the unit's status: a line about what is in force, and what is wrong beside it.

Not here: what it is that is wrong (the modules that find out say it in their errors), and which status it makes
(charm.py).
"""

from __future__ import annotations

import logging

import certificates
import upstream
import webhook
from authenticator import Policy, Status
from config import CharmConfig
from files import Places

logger = logging.getLogger(__name__)
MOST_TOLD = 1000
PRINTS = "The action show-webhook-config prints the commands"


def summary(places: Places, config: CharmConfig, found: list[str], policy: Policy | None, status: Status) -> str:
    """Say in a line what is in force, and what an operator should not forget."""
    parts = [*found]
    if config.authorization_service:
        parts.append("access reviews go to authz-server-url")
    elif policy or not config.policy_configmap:
        parts.append(f"policy {policy.rules} rules" if policy else "no policy, RBAC alone decides")
    if config.keystone_overridden:
        parts.append("keystone-url wins over keystone-credentials")
    if config.names_upstream_way:
        parts.append("upstream-compatible names")
    program = upstream.in_force(places) if config.own_program else None
    if program is not None:
        attached = " (resource)" if config.resource else ""
        parts.append(f"k8s-keystone-auth{attached} sha256 {program.record.sha256}")
    if config.keystone_in_clear:
        parts.append("INSECURE: tokens go to Keystone over http")
    # No faults of this unit's, so that it is active; but nobody new gets in. The journal has the same words.
    if status.keystone.outage is not None:
        parts.append(_wrong(f"no answers about Keystone's tokens: {status.keystone.outage}"))
    if status.chained.outage is not None:
        parts.append(_wrong(status.chained.outage))
    return "ready: " + ", ".join(parts)


def of_cluster(status: Status) -> list[str]:
    """Say what is in force of what lies in the cluster, and what is wrong with it."""
    parts = []
    configmap = status.policy.configmap
    if configmap is not None:
        wrong = configmap.error or (status.policy.error if configmap.state == "present" else None)
        if wrong:
            parts.append(_wrong(f"policy-configmap: the policy stays as it was: {wrong[:200]}"))
        elif status.policy.source == "configmap":
            parts.append(f"the policy in force is {configmap.name}'s, {status.policy.rules} rules")
        else:
            parts.append(f"policy-configmap {configmap.name} is {configmap.state}")
    if status.sync is not None:
        wrong = status.sync.error or status.sync.passes.error
        well = "sync" if status.sync.passes.set else "sync at logins alone, see sync-credentials"
        parts.append(_wrong(f"sync: {wrong[:200]}") if wrong else well)
    return parts


def of_tls(offer: certificates.Offer, tls: webhook.Tls) -> list[str]:
    """Say what is not as it should be about the endpoint's certificate."""
    parts = [_wrong(f"{certificates.RELATION}: {offer.problem}")] if offer.problem else []
    if webhook.waits(tls):
        parts.append(_wrong(f"the endpoint's next certificate waits until the API server knows its CA. {PRINTS}"))
    return parts


def _wrong(text: str) -> str:
    """Have Juju's log say what is wrong as well, where the unit is active all the same."""
    logger.warning("%s", text)
    return text


def shown(error: Exception | str) -> str:
    """Give an error's text as a status can hold it: it is an argument of a command, which the system bounds."""
    text = " ".join("".join(one if one.isprintable() else " " for one in str(error)).split())
    return text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]}…"
