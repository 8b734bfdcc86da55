"""A token's whole way: Keystone, our endpoint, the cluster's own webhook, the API server, and what it opens there.

Each step tells what it found; the first that the token does not get past is where the way ends, with the reason and
what to do. The token itself is nowhere in what comes out, and in no program's arguments.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import pydantic
import requests

import actions
import apiserver
import authenticator
import flags
import reach
import secret
import webhook
from apiserver import verify
from config import CharmConfig
from errors import Blocked
from files import Places
from printable import printable

LONGEST = 64 * 1024
MOST_TOLD = 30_000
"""Letters of a result, which Juju is given as an argument of a command: 128 KiB at most."""
SECONDS = 10.0
GROUP = "/apis/authorization.k8s.io/v1"
IDENTITY = "/apis/authentication.k8s.io/v1"
QUESTIONS = (
    ("list", "", "pods", ""),
    ("create", "", "pods", ""),
    ("delete", "", "pods", ""),
    ("create", "", "pods", "exec"),
    ("get", "", "pods", "log"),
    ("get", "", "secrets", ""),
    ("create", "apps", "deployments", ""),
    ("*", "*", "*", ""),
)
"""What is asked for one namespace: verb, API group, resource, sub-resource."""


class Asked(pydantic.BaseModel, frozen=True):
    """The parameters of check-authentication."""

    token_secret: str = ""
    token_file: str = ""
    namespace: str = "default"


Texts = Annotated[list[str], pydantic.BeforeValidator(lambda value: [] if value is None else value)]
A = TypeVar("A", bound=pydantic.BaseModel)


class _User(pydantic.BaseModel, frozen=True):
    username: str = ""
    groups: Texts = []


class _WhoStatus(pydantic.BaseModel, frozen=True):
    user: _User = pydantic.Field(alias="userInfo")


class _Who(pydantic.BaseModel, frozen=True):
    """What is read of a SelfSubjectReview."""

    status: _WhoStatus


class _AccessStatus(pydantic.BaseModel, frozen=True):
    allowed: bool = False
    error: str = pydantic.Field("", alias="evaluationError")


class _Access(pydantic.BaseModel, frozen=True):
    """What is read of a SelfSubjectAccessReview."""

    status: _AccessStatus


class _Rule(pydantic.BaseModel, frozen=True):
    verbs: Texts = []
    resources: Texts = []
    names: Texts = pydantic.Field([], alias="resourceNames")


class _RulesStatus(pydantic.BaseModel, frozen=True):
    rules: list[_Rule] | None = pydantic.Field(None, alias="resourceRules")


class _Rules(pydantic.BaseModel, frozen=True):
    """What is read of a SelfSubjectRulesReview."""

    status: _RulesStatus


class Stopped(Exception):
    """A token gets no further than this step; the text is the reason and what to do."""


@dataclass
class Report:
    """What the steps said, by name and in order; `stopped` is the name of the last one if that is where it ends."""

    results: dict[str, str] = field(default_factory=dict)
    stopped: str = ""

    def take(self, name: str, step: Callable[[], str]) -> bool:
        """Take a step; tells whether the token got past it."""
        try:
            self.results[name] = f"ok: {step()}"
        except Stopped as reason:
            self.results[name], self.stopped = str(reason), name
        return not self.stopped

    @property
    def failure(self) -> str:
        """Say in a line where the way ended; empty if it did not."""
        return f"stopped at {self.stopped}: {self.results[self.stopped]}" if self.stopped else ""


# --- the token


def clean(token: str, source: str) -> str:
    """Take a token as it was stored, with a line break at its end perhaps.

    Raises:
        Blocked: it can be none.
    """
    token = token.strip()
    if not token or len(token) > LONGEST or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise Blocked(f"{source}: holds no token: one word of ASCII, and nothing else, is expected")
    return token


def of_file(name: str) -> str:
    """Read a token from a file that nobody but root can read.

    Raises:
        Blocked: it is not there, or others could have read or written it.
    """
    return clean(secret.of_file("token-file", name).decode("ascii", "replace"), "token-file")


# --- its way


def check(places: Places, place: apiserver.Place, config: CharmConfig, token: str, namespace: str) -> Report:
    """Take a token through all steps.

    Args:
        places: of the workload.
        place: of the wiring.
        config: the options.
        token: it.
        namespace: where to ask what it may do.
    """
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", namespace):
        raise Blocked(f"namespace: {namespace!r} is not a namespace's name")
    way = _Way(places, place, config, token, namespace)
    report = Report()
    for name, step in (
        ("keystone", way.keystone),
        ("identity", way.identity),
        ("chain", way.chain),
        ("api-server", way.api_server),
        ("access", way.access),
    ):
        if not report.take(name, step):
            break
    report.results |= way.found
    # Nothing above puts it there; what others answer is not ours to vouch for.
    report.results = {name: text.replace(token, "…")[:MOST_TOLD] for name, text in report.results.items()}
    return report


@dataclass
class _Way:
    places: Places
    place: apiserver.Place
    config: CharmConfig
    token: str
    namespace: str
    found: dict[str, str] = field(default_factory=dict)
    said: authenticator.Identification | None = None
    ours: dict[str, Any] = field(default_factory=dict)

    @property
    def is_keystones(self) -> bool:
        return self.said is not None and self.said.verdict != "not-keystones"

    def keystone(self) -> str:
        """Ask Keystone itself, past all caches, if it is a token that it may be asked about."""
        try:
            self.said = said = authenticator.identify(self.places, self.token)
        except authenticator.WorkloadError as error:
            raise Stopped(str(error)) from None
        if said.verdict == "not-keystones":
            return "not asked: the token does not have the shape of Keystone's, so it never leaves the cluster"
        if said.verdict == "elsewhere":
            return f"not asked: {said.reason} stands in Keystone's place"
        if said.verdict == "refused":
            raise Stopped(f"Keystone, or what counts of its answer, says no: {said.reason}. {_refused(said.reason)}")
        if said.verdict == "cannot-tell":
            raise Stopped(
                f"Keystone at {self.config.keystone_url} gives no verdict: {said.reason}. Look at keystone-url,"
                " keystone-ca and the way there; tokens known before stay good for outage-grace"
            )
        credential = f" by the application credential {said.credential}" if said.credential else ""
        return (
            f"{printable(said.user)} (domain {printable(said.domain)}){credential} in the project"
            f" {printable(said.project)}, roles {', '.join(map(printable, said.roles))},"
            f" until {said.expires or 'for ever'}"
        )

    def identity(self) -> str:
        """Ask our endpoint as the API server does, with its client certificate."""
        tls = webhook.tls(self.places)
        if not webhook.is_complete(self.places):
            raise Stopped("the certificates are missing or over; the next hook makes them anew, the status says more")
        kubeconfig = webhook.kubeconfig(self.places, tls, self.config.listen, with_client=True)
        try:
            self.ours = webhook.ask(kubeconfig, self.token)
        except webhook.NoAnswer as error:
            raise Stopped(
                f"the authenticator does not answer at {self.config.listen.url}: {error}. See systemctl status"
                f" {authenticator.SERVICE} and its log, journalctl -u {authenticator.SERVICE}"
            ) from None
        if self.ours.get("authenticated"):
            user = self.ours.get("user") or {}
            return f"the endpoint takes its holder for {printable(user.get('username', ''))}"
        error = str(self.ours.get("error") or "")
        if not self.is_keystones:
            return f"the endpoint has nobody for it{f' ({printable(error)})' if error else ''}, see the next step"
        if error:
            raise Stopped(
                f"the authenticator cannot tell: {printable(error)}. See journalctl -u {authenticator.SERVICE}"
            )
        raise Stopped(
            "the authenticator says no. A refusal is kept for ten seconds: try again, and then see"
            f" journalctl -u {authenticator.SERVICE}, which has the reason"
        )

    def chain(self) -> str:
        """Tell what the webhook that our flag displaced has to do with it."""
        if self.is_keystones:
            return "not needed: the token is Keystone's"
        try:
            state = authenticator.status().chained.state
        except authenticator.WorkloadError as error:
            raise Stopped(str(error)) from None
        if self.ours.get("authenticated"):
            return "the cluster's own token webhook, behind ours, knows it"
        if state == "ready" and self.ours.get("error"):
            raise Stopped(
                f"the cluster's own token webhook gives no verdict: {printable(str(self.ours['error']))}."
                " Look at that webhook"
            )
        if state == "ready":
            return "the cluster's own token webhook, behind ours, does not know it; the API server itself may"
        return "there is no token webhook of the cluster's behind ours; the API server itself may know it"

    def api_server(self) -> str:
        """Ask the API server who it takes the holder for."""
        with self._as_holder() as (session, url):
            user = self._who(session, url)
        name = user.username
        self.found["user"] = printable(name)
        if groups := [printable(group) for group in user.groups]:
            self.found["groups"] = "\n".join(actions.shortened(groups))
        told = (self.ours.get("user") or {}).get("username")
        if told and told != name:
            ours = printable(told)
            return f"{printable(name)}, and not {ours}: it is not our endpoint that it believes about this token"
        return printable(name)

    def access(self) -> str:
        """Ask what the holder may do, in one namespace."""
        where = f"in the namespace {self.namespace}"
        with self._as_holder() as (session, url):
            may = [
                f"{verb} {'/'.join(filter(None, what))}: {self._may(session, url, verb, group, *what)}"
                for verb, group, *what in QUESTIONS
            ]
            review = {"kind": "SelfSubjectRulesReview", "spec": {"namespace": self.namespace}}
            answer = self._post(session, f"{url}{GROUP}/selfsubjectrulesreviews", review, _Rules)
        self.found["may"] = "\n".join(may)
        if rules := _lines(answer.status.rules or []):
            self.found["rbac-rules"] = "\n".join(actions.shortened(rules))
        if any(line.endswith(": yes") for line in may):
            return f"see what it may do {where}"
        return (
            f"nothing of what was asked {where}: bind its user or a group to a role, or write a policy (check-access)"
        )

    # --- the API server

    @contextlib.contextmanager
    def _as_holder(self) -> Iterator[tuple[requests.Session, str]]:
        """Give a session with the token, to this machine's API server, else to where users reach it."""
        layout = self._layout
        try:
            if layout is not None:
                with verify.as_bearer(layout, self.token) as (session, url):
                    yield session, url
            elif self.config.kubernetes_url:
                with self._from_outside() as session:
                    yield session, self.config.kubernetes_url
            else:
                raise Stopped(
                    "no API server is found on this machine: juju config kubernetes-keystone kubernetes-url=… says"
                    " where one is (and kubernetes-ca what signs its certificate)"
                )
        except verify.Unverified as error:
            raise Stopped(f"{error}. See the API server's own log") from None
        except requests.RequestException as error:
            raise Stopped(
                f"the API server at {self.config.kubernetes_url} does not answer: {type(error).__name__}"
            ) from None

    @property
    def _layout(self) -> apiserver.Layout | None:
        try:
            return actions.layout_at_hand(self.place, self.config)
        except apiserver.WiringError as error:
            raise Stopped(str(error)) from None

    @contextlib.contextmanager
    def _from_outside(self) -> Iterator[requests.Session]:
        with requests.Session() as session, tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {self.token}"
            pem.write(self.config.kubernetes_ca)
            pem.flush()
            session.verify = pem.name if self.config.kubernetes_ca else reach.system_ca()
            yield session

    def _who(self, session: requests.Session, url: str) -> _User:
        for version in ("v1", "v1beta1"):  # the second is Kubernetes 1.27's
            body = {"apiVersion": f"authentication.k8s.io/{version}", "kind": "SelfSubjectReview"}
            path = f"{url}{IDENTITY.removesuffix('v1')}{version}/selfsubjectreviews"
            answer = session.post(path, json=body, timeout=SECONDS, allow_redirects=False)
            if answer.status_code != 404:
                break
        if answer.status_code == 401:
            raise Stopped(f"the API server does not know the token (401). {self._why_unknown()}")
        if answer.status_code != 201:
            raise Stopped(f"the API server knows the token, but answers {answer.status_code} when asked whose it is")
        return _understood(_Who, answer, "SelfSubjectReview").status.user

    def _why_unknown(self) -> str:
        """Say why an API server may not know a token that our endpoint knows."""
        layout = self._layout
        if layout is None or self.config.api_server == "manual":
            return "Is it told to ask our endpoint? The action show-webhook-config prints what to set"
        if not self.ours.get("authenticated"):
            return "Nobody knows it: it is over, was revoked, or never was one"
        try:
            asked_by_theirs = not flags.missing(layout, self.config).authentication
            state = apiserver.state(layout)
        except (apiserver.WiringError, OSError) as error:
            return f"Whether it asks our endpoint cannot be told: {error}"
        if asked_by_theirs:
            return (
                "It asks us by way of the cluster's own token webhook, which keeps a refusal for some time: try again"
                " in two minutes, and look at that webhook"
            )
        if state.kind is apiserver.Kind.IN_FORCE:
            return "It asks our endpoint, and keeps a refusal for ten seconds: try again in a while"
        reason = f": {state.reason}" if state.reason else ""
        return f"It does not ask our endpoint ({state.kind.value}{reason}); the unit's status says what is to be done"

    def _may(self, session: requests.Session, url: str, verb: str, group: str, resource: str, subresource: str) -> str:
        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        attributes |= {"subresource": subresource} if subresource else {}
        review = {"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
        found = self._post(session, f"{url}{GROUP}/selfsubjectaccessreviews", review, _Access).status
        if found.allowed:
            return "yes"
        return f"no ({printable(found.error)})" if found.error else "no"

    def _post(self, session: requests.Session, path: str, review: dict[str, Any], kind: type[A]) -> A:
        body = {"apiVersion": "authorization.k8s.io/v1", **review}
        answer = session.post(path, json=body, timeout=SECONDS, allow_redirects=False)
        if answer.status_code == 401:
            raise Stopped("the API server knew the token a moment ago and does not any more (401): try again")
        if answer.status_code != 201:
            raise Stopped(
                f"the API server answers {answer.status_code} to a {review['kind']}, which system:basic-user allows"
                " everybody who is logged in: is that binding still there?"
            )
        return _understood(kind, answer, review["kind"])


def _understood(kind: type[A], answer: requests.Response, what: str) -> A:
    try:
        return kind.model_validate_json(answer.content)
    except pydantic.ValidationError:
        raise Stopped(f"the API server's answer to a {what} is not understood: is it one?") from None


def _refused(reason: str) -> str:
    """Say what to do about a refusal."""
    if "project scope" in reason or "as if it were a project" in reason:
        return "Take a token for a project"
    if "any more" in reason:
        return "Give the user a role in that project"
    if "access rule" in reason:
        return "See docs/access-rules.md for what such a credential needs"
    return "It is over, was revoked, or its user or credential is gone: take a new one"


def _lines(rules: Sequence[_Rule]) -> list[str]:
    """Give RBAC's rules as lines, without those about oneself that everybody has."""
    lines = []
    for rule in rules:
        resources = [one for one in rule.resources if not one.startswith("selfsubject")]
        if resources:
            names = f" named {', '.join(rule.names)}" if rule.names else ""
            lines.append(printable(f"{', '.join(rule.verbs)}: {', '.join(resources)}{names}"))
    return lines
