"""Ours in upstream-compatible mode, the real k8s-keystone-auth, and that one behind ours: the answers must be the same.

Policies and reviews are generated, by the seed `DIFFERENTIAL_SEED` (1) and as many rounds as `DIFFERENTIAL_ROUNDS` (1)
says. Where the answers differ on purpose, docs/upstream.md says which and why, and `DIFFERENCES` here has the case.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import random
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import authenticator
from benchmarks import servers
from config import CharmConfig
from errors import ConfigError
from files import Places
from testbed.cache import TestbedError
from testbed.keystone import Domain, Keystone
from testbed.processes import free_port
from tests.functional.conftest import Starter
from tests.unit.authenticator.support import (
    EXTRA,
    Authority,
    Service,
    access_review,
    eventually,
    fernet_token,
    replace,
    serving,
    token_review,
)

pytestmark = pytest.mark.functional

SEED = os.environ.get("DIFFERENTIAL_SEED", "1")
ROUNDS = int(os.environ.get("DIFFERENTIAL_ROUNDS", "1"))
DOCUMENT = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text()

Json = dict[str, Any]
DROPPED = "the connection is dropped"


class Upstream:
    """The real program, running with a policy."""

    def __init__(self, files: servers.Files, port: int) -> None:
        context = ssl.create_default_context(cafile=files.path("ca.pem"))
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)

    def post(self, review: Any) -> tuple[int, bytes] | str:
        """The HTTP status and the body, or that there was no answer."""
        try:
            self._connection.request("POST", "/webhook", json.dumps(review), {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            return response.status, response.read()
        except (http.client.HTTPException, ConnectionError):
            self._connection.close()
            return DROPPED

    def allows(self, review: Json) -> bool:
        answer = self.post(review)
        assert isinstance(answer, tuple), (answer, review)
        assert answer[0] == 200, (answer, review)
        return json.loads(answer[1])["status"]["allowed"]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory, keystone: Keystone) -> Callable[..., Any]:
    """Start upstream's program with this policy: it reads a policy file once."""
    files = servers.Files(tmp_path_factory.mktemp("upstream"))

    @contextlib.contextmanager
    def begin(policy: Any) -> Iterator[Upstream]:
        path = Path(files.path("policy.json"))
        path.write_text(policy if isinstance(policy, str) else json.dumps(policy))
        with servers.upstream(files, keystone, path) as server:
            yield Upstream(files, server.port)

    return begin


class Ours:
    """Our program in upstream-compatible mode, which follows its policy file."""

    def __init__(self, start: Starter, folder: Path) -> None:
        self._policy = folder / "policy.json"
        replace(self._policy, "[]")
        self.service: Service = start(policy=str(self._policy), upstream_compatible=True)
        self._connection = self.service.connect()

    def takes(self, policy: Any) -> bool:
        """Put a policy in force; whether that went well."""
        content = (policy if isinstance(policy, str) else json.dumps(policy)).encode()
        replace(self._policy, content)
        wanted = hashlib.sha256(content).hexdigest()

        def seen() -> Json | None:
            status = self.service.status["policy"]
            return status if status["hash"] == wanted or status["error"] else None

        return eventually(seen, 30)["hash"] == wanted

    def load(self, policy: Any) -> None:
        assert self.takes(policy)

    def allows(self, review: Json) -> bool:
        code, body = self.service.post(review, connection=self._connection)
        assert code == 200, (body, review)
        return json.loads(body)["status"]["allowed"]


@pytest.fixture
def ours(start: Starter, tmp_path: Path) -> Ours:
    return Ours(start, tmp_path)


class Behind:
    """Our program with upstream's behind it, as the charm sets the two up."""

    def __init__(self, service: Service, files: servers.Files, keystone: Keystone, port: int) -> None:
        self.service, self._files, self._keystone, self._port = service, files, keystone, port
        self._connection = service.connect()

    @contextlib.contextmanager
    def deciding(self, policy: Any) -> Iterator[Behind]:
        """With a policy, through the charm's own check: upstream's program gets what that makes of it.

        Raises:
            ConfigError: the charm refuses it.
        """
        text = policy if isinstance(policy, str) else json.dumps(policy)
        options = CharmConfig(keystone_url=self._keystone.url, policy=text, upstream_compatible=True)
        path = Path(self._files.path("behind.json"))
        path.write_bytes(authenticator.validate_policy(Places(), options).content)
        with servers.upstream(self._files, self._keystone, path, self._port):
            yield self

    def post(self, review: Any) -> tuple[int, bytes]:
        return self.service.post(review, connection=self._connection)

    def allows(self, review: Json) -> bool:
        code, body = self.post(review)
        assert code == 200, (body, review)
        return json.loads(body)["status"]["allowed"]


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, authority: Authority, keystone: Keystone) -> Iterator[Behind]:
    files, port = servers.Files(tmp_path_factory.mktemp("behind")), free_port()
    backend = {"url": f"https://127.0.0.1:{port}/webhook", "ca": files.path("ca.pem")}
    settings = {
        "keystone": {"url": keystone.url, "ca": str(keystone.ca)},
        "upstream_compatible": True,
        "authentication_backend": backend,
        "authorization_backend": backend,
    }
    with serving(files.folder, authority, **settings) as service:
        yield Behind(service, files, keystone, port)


# -- generated policies and reviews

ID, OTHER_ID = "5f3e1d9c7b8a46d2a1c0e9f8d7b6a594", "aaaabbbbccccddddeeeeffff00001111"
HALVES = [
    *("*", "pods", "default", "a", "PODS", "Default", " pods ", "\u2003default\t", "!pods", "!a", "!default", "! pods"),
    *("['a', 'default']", "['pods','nodes']", "!['a']", "!['pods', 'secrets']", "['*']", "!['*', 'a']", "!*", "!"),
    *("", " ", "[]", "![]", "[a]", "['a'", "'a']", "!['a'", "!a[b", "a[b", "[null]", "![null]", "[1]", "!!a", "p*"),
    *('["pods"]', "['PODS']", "[ 'pods' ]", "['pods',]", "['pods']x", "x['pods']", "['a']b']", "**", "\u0130ngress"),
    *("ΠΟΔΣ", "[['pods']]", "['po\\u0064s']", "{}", "pods.v1", "\u200bpods", "\x1cpods", "!['pods'] ", "!['']", "['']"),
]
KEYS = ["pods", "", "/", "a/pods/exec", "*/pods/exec", "a/b/c/d", "*/*", "*/pods", "default/pods", "*/!secrets"]
VERBS = ["get", "list", "*", "GET", "watch", "create", "", " get", "delete", "**"]
ROLES = ["member", "reader", "Member", "admin", "", "*", ID]
PROJECTS = ["demo1", "demo2", "Demo1", ID, OTHER_ID, "*", f"demo1@{OTHER_ID}"]
USERS = ["alice", "bob", "Alice", "*", "system:masters", "alice@default"]
GROUPS = ["ops", "devs", ID, "*", "", "system:authenticated"]
PATHS = ["/healthz", "/api", "/api/*", "/api/**", "/api*", "*", "**", "", "/", "/a*/b", "/Healthz", "/healthz/", "api"]
RESOURCES = ["pods", "*", "pods/*", "pods/exec", "PODS", "", "*/exec", "nodes", "pods/", "/exec", "deployments"]


def some(rng: random.Random, values: Sequence[Any], most: int = 3) -> list[Any]:
    return [rng.choice(values) for _ in range(0 if rng.random() < 0.08 else rng.randint(1, most))]


def resource_key(rng: random.Random) -> str:
    return rng.choice(KEYS) if rng.random() < 0.2 else f"{rng.choice(HALVES)}/{rng.choice(HALVES)}"


def item(rng: random.Random, tag: str | None) -> Json:
    """One item, in either format or both; with a tag it means nobody without that role."""
    made: Json = {}
    while not {"resource_permissions", "nonresource_permissions", "resource", "nonresource"} & set(made):
        if rng.random() < 0.5:
            keys = some(rng, [resource_key(rng) for _ in range(4)])
            made["resource_permissions"] = {key: some(rng, VERBS) for key in keys}
        if rng.random() < 0.25:
            made["nonresource_permissions"] = {path: some(rng, VERBS) for path in some(rng, PATHS)}
        if rng.random() < 0.4:
            made["resource"] = {
                "verbs": some(rng, VERBS),
                "resources": some(rng, RESOURCES),
                "version": rng.choice(["", "*", "apps", "v1"]),
                "namespace": rng.choice(["", "*", "default", "a", "Default"]),
            }
        if rng.random() < 0.25:
            made["nonresource"] = {"verbs": some(rng, VERBS), "path": rng.choice(PATHS)}
    if rng.random() < 0.7:
        users: Any = {}
        if rng.random() < 0.7:
            users["roles"] = rng.choice([some(rng, ROLES, 2), None])
        if rng.random() < 0.9:
            users["projects"] = rng.choice([some(rng, PROJECTS, 4), ["demo1"], None])
        made["users"] = rng.choice([users, users, users, None])
    if rng.random() < 0.6:
        pools = {"user": USERS, "group": GROUPS, "project": PROJECTS, "role": ROLES, "User": USERS, "colour": ["*"]}
        kinds = rng.choices([*pools], [4, 4, 4, 4, 1, 1], k=rng.randint(0, 2))
        made["match"] = rng.choice([[{"type": kind, "values": some(rng, pools[kind])} for kind in kinds], None])
    if tag is not None:
        made["users"] = {"projects": ["demo1", *PROJECTS[:2]], **(made.get("users") or {})}
        made["users"]["roles"] = [*(made["users"].get("roles") or ()), tag]
    return made


def review(rng: random.Random, tag: str | None) -> Json:
    """A review as an API server, or somebody who asks for one by hand, sends it."""
    roles = [*some(rng, ["member", "reader", "admin", ID]), *([tag] if tag else [])]
    about: Json = {}
    if rng.random() < 0.75:
        attributes = {
            "verb": rng.choice(["get", "list", "create", "*", "GET", "delete", ""]),
            "namespace": rng.choice(["default", "a", "kube-system", "", "Default"]),
            "group": rng.choice(["", "", "apps", "*", "v1"]),
            "version": rng.choice(["v1", "*"]),
            "resource": rng.choice(
                ["pods", "pods", "nodes", "secrets", "*", "pods/exec", "a[b", "ingress", "ποδσ", "PODS"]
            ),
            "subresource": rng.choice(["", "", "exec", "log", "*"]),
            "name": rng.choice(["", "web"]),
        }
        about["resourceAttributes"] = {
            key: value for key, value in attributes.items() if key == "resource" or rng.random() < 0.95
        }
    if not about or rng.random() < 0.1:
        about["nonResourceAttributes"] = {
            "verb": rng.choice(["get", "post", "GET", "*", "create"]),
            "path": rng.choice(["/healthz", "/api", "/api/v1", "/apis", "/", "", "/Healthz", "/ax/b", "/api/*", "*"]),
        }
    made = access_review(
        rng.choice(["alice", "bob", "Alice", "alice@default", "*"]),
        version="v1beta1",
        roles=tuple(roles),
        project=rng.choice([ID, OTHER_ID, "p1"]),
        project_name=rng.choice(["demo1", "demo2", OTHER_ID, "*"]),
        groups=tuple(some(rng, ["ops", "devs", ID, OTHER_ID, "*"])),
    )
    spec = made["spec"]
    spec.pop("resourceAttributes")
    if rng.random() < 0.1:
        del spec["extra"][f"{EXTRA}roles"]
    if rng.random() < 0.1:
        del spec["extra"][f"{EXTRA}project/name"]
    if rng.random() < 0.3:
        spec["extra"]["authentication.kubernetes.io/credential-id"] = ["x"]
    spec.update(about)
    return made


def aim(rng: random.Random, question: Json, at: Json) -> Json:
    """Make the review one that the item may well allow, in most of its parts."""

    def hit() -> bool:
        return rng.random() < 0.85

    spec = question["spec"]
    users = at.get("users") or {}
    roles = spec["extra"].setdefault(f"{EXTRA}roles", [])
    if hit():
        roles += users.get("roles") or []
    wanted = [*(users.get("projects") or ())]
    for entry in at.get("match") or ():
        if entry["values"] and hit():
            value = rng.choice(entry["values"])
            if entry["type"] == "role":
                roles.append(value)
            elif entry["type"] == "group":
                spec["group"].append(value)
            elif entry["type"] == "user" and not value.startswith("system:"):
                spec["user"] = value
            elif entry["type"] == "project":
                wanted.append(value)
    if wanted and hit():
        # `access_review` has the name; an ID goes to either place.
        spec["extra"][f"{EXTRA}project/{rng.choice(['name', 'name', 'id'])}"] = [rng.choice(wanted)]
    asked = spec.get("resourceAttributes")
    if asked is None:
        found = {**(at.get("nonresource_permissions") or {})}
        if "nonresource" in at and (not found or rng.random() < 0.2):
            found = {at["nonresource"]["path"]: at["nonresource"]["verbs"]}
        for path in rng.sample([*found], min(1, len(found))):
            target = spec["nonResourceAttributes"]
            target["path"] = path.replace("*", rng.choice(["", "x", "*", "/y"])) if hit() else target["path"]
            target["verb"] = rng.choice([*found[path], target["verb"]]) if hit() else target["verb"]
    elif "resource_permissions" in at:
        for key in rng.sample([*at["resource_permissions"]], min(1, len(at["resource_permissions"]))):
            for field, half in zip(("namespace", "resource"), key.split("/"), strict=False):
                names = re.findall(r"[^\s!\[\]',\"*]+", half.lower())
                if names and hit():
                    asked[field] = rng.choice(names)
            verbs = at["resource_permissions"][key]
            asked["verb"] = rng.choice(verbs).lower() if verbs and hit() else asked.get("verb", "")
    elif "resource" in at:
        named = at["resource"]
        for field, key in (("namespace", "namespace"), ("group", "version")):
            if named[key] != "*" and hit():
                asked[field] = named[key]
        if named["resources"] and hit():
            asked["resource"], _, asked["subresource"] = rng.choice(named["resources"]).partition("/")
        asked["verb"] = rng.choice(named["verbs"]) if named["verbs"] and hit() else asked.get("verb", "")
        asked["resource"] = asked["resource"] or "pods"
    return question


def compare(theirs: Upstream | Behind, ours: Ours, policy: list[Json], asked: Sequence[Json]) -> int:
    """How many of the reviews are allowed, by both."""
    allowed = 0
    for question in asked:
        verdict = theirs.allows(question)
        if ours.allows(question) is not verdict:
            told = json.dumps({"upstream": verdict, "review": question["spec"]}, ensure_ascii=False)
            roles = {role for role in question["spec"]["extra"].get(f"{EXTRA}roles", ()) if role.startswith("tag-")}
            near = [entry for entry in policy if not roles or roles & set((entry.get("users") or {}).get("roles", ()))]
            pytest.fail(f"{told}\n" + "\n".join(json.dumps(entry, ensure_ascii=False) for entry in near))
        allowed += verdict
    return allowed


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_policy_of_many_items_is_decided_as_upstream_decides_it(
    upstream: Callable[..., Any], ours: Ours, round_: int
) -> None:
    """Each item wants a role of its own, so that each review is about one of them."""
    rng = random.Random(f"tagged {SEED} {round_}")
    allowed = asked = 0
    for _ in range(12):
        policy = [item(rng, f"tag-{number}") for number in range(40)]
        ours.load(policy)
        questions = [
            aim(rng, review(rng, f"tag-{number}"), entry) for number, entry in enumerate(policy) for _ in range(20)
        ]
        with upstream(policy) as theirs:
            allowed += compare(theirs, ours, policy, questions)
        asked += len(questions)
    assert asked / 20 < allowed < asked / 2, "the questions do not tell policies apart"


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_policy_of_few_items_is_decided_as_upstream_decides_it(
    upstream: Callable[..., Any], ours: Ours, round_: int
) -> None:
    """What needs an item alone: no users, no match, several items that allow."""
    rng = random.Random(f"few {SEED} {round_}")
    allowed = asked = 0
    for _ in range(50):
        policy = [item(rng, None) for _ in range(rng.randint(0, 3))]
        ours.load(policy)
        questions = [aim(rng, review(rng, None), rng.choice(policy or [{}])) for _ in range(40)]
        with upstream(policy) as theirs:
            allowed += compare(theirs, ours, policy, questions)
        asked += len(questions)
    assert asked / 20 < allowed < asked / 2, "the questions do not tell policies apart"


def test_upstream_behind_ours_decides_as_ours_alone(behind: Behind, ours: Ours) -> None:
    rng = random.Random(f"behind {SEED}")
    allowed = asked = 0
    for _ in range(4):
        policy = [item(rng, f"tag-{number}") for number in range(40)]
        ours.load(policy)
        questions = [aim(rng, review(rng, None), entry) for entry in policy for _ in range(20)]
        for question in questions:
            # As an API server asks: about a user who was told to it before.
            question["spec"]["extra"].update(
                access_review("x", version="v1beta1")["spec"]["extra"] | question["spec"]["extra"]
            )
        with behind.deciding(policy) as program:
            allowed += compare(program, ours, policy, questions)
        asked += len(questions)
    assert asked / 20 < allowed < asked / 2, "the questions do not tell policies apart"


# -- what differs on purpose

GOOD: Json = {"resource_permissions": {"*/pods": ["get"]}}
ANYBODY: Json = {"resource": {"verbs": ["get"], "resources": ["pods"], "version": "", "namespace": "*"}, "match": []}


def matching(kind: str, *values: str) -> Json:
    return {**ANYBODY, "match": [{"type": kind, "values": list(values)}]}


def asked(user: str = "alice", **changes: Any) -> Json:
    """A review, with changes to its spec (None: not there)."""
    made = access_review(user, version=changes.pop("version", "v1beta1"))
    made["spec"].update(changes)
    made["spec"] = {key: value for key, value in made["spec"].items() if value is not None}
    return made


def extra(**changes: list[str]) -> Json:
    found = asked()["spec"]["extra"]
    return {**found, **{f"{EXTRA}{key.replace('_', '/')}": values for key, values in changes.items()}}


PODS = {"verb": "get", "resource": "pods", "namespace": "default"}
# name in the document -> policy (as a text where JSON's parser would not give it), review
DIFFERENCES: dict[str, tuple[Any, Any]] = {
    "a user named `system:…`": ([GOOD], asked("system:masters")),
    "a user named `kubeadm:…`": ([GOOD], asked("kubeadm:cluster-admins")),
    "a user named `keystone:…`": ([GOOD], asked("keystone:alice")),
    "a user who is not Keystone's": ([GOOD], asked("bot", extra={"authentication.kubernetes.io/credential-id": ["x"]})),
    "a user without a UID": ([GOOD], asked(uid=None)),
    "a user of two projects": ([GOOD], asked(extra=extra(project_id=["p1", "p2"]))),
    "a user ID in a match": ([matching("user", "id-of-alice")], asked()),
    "an empty user name in a match": ([matching("user", "")], asked()),
    "an empty project name in a policy": ([matching("project", "")], asked(extra=extra(project_name=[""]))),
    "a resource without a name": (
        [{"resource_permissions": {"*/nodes": ["get"]}}],
        asked(resourceAttributes={"verb": "get"}),
    ),
    "a review without groups": ([GOOD], asked(group=None)),
    "a review in v1": ([GOOD], asked(version="v1")),
    "a review without attributes": ([GOOD], asked(resourceAttributes=None)),
    "attributes that are null": ([GOOD], {**asked(), "spec": {**asked()["spec"], "resourceAttributes": None}}),
    "an attribute that is no text": ([GOOD], asked(resourceAttributes={**PODS, "verb": 1})),
    "a body that is no review": ([GOOD], {}),
    "an unknown key in an item": ([{**GOOD, "user": {"roles": ["admin"]}}], asked()),
    "a key in another case": ('[{"RESOURCE_permissions": {"*/pods": ["get"]}}]', asked()),
    "a key twice": (
        '[{"resource_permissions": {"*/pods": ["get"]}, "resource_permissions": {"*/nodes": ["get"]}}]',
        asked(),
    ),
    "null in the place of verbs": ([{"resource_permissions": {"*/pods": None}}], asked()),
    "null in the place of an item": ([None, GOOD], asked()),
    "version 2 without a namespace": ([{"resource": {"verbs": ["*"], "resources": ["*"], "version": "*"}}], asked()),
    "version 2 without a path": ([{"nonresource": {"verbs": ["get"]}}], asked()),
    "an item that grants nothing": ([{"match": []}], asked()),
    "text after the policy": (json.dumps([GOOD]) + " and more", asked()),
    "a policy in YAML": ("- resource_permissions:\n    '*/pods': [get]\n", asked()),
}


def documented(heading: str) -> dict[str, tuple[str, str, str]]:
    """The table under a heading: what each program does, by case; upstream's alone, it behind ours, and ours."""
    lines = DOCUMENT.partition(f"### {heading}\n")[2].partition("\n#")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return {name: (theirs, both, own) for name, theirs, both, own, _ in rows[2:]}


def test_every_difference_in_verdicts_is_documented_and_tried() -> None:
    assert [*documented("Policies and access reviews")] == [*DIFFERENCES]


def outcome(answer: tuple[int, bytes] | str) -> str:
    if isinstance(answer, str):
        return "dropped"
    code, body = answer
    if code != 200:
        return str(code)
    return "allowed" if json.loads(body)["status"]["allowed"] else "not allowed"


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_verdict_differs_on_purpose_as_documented(
    name: str, upstream: Callable[..., Any], behind: Behind, ours: Ours
) -> None:
    policy, question = DIFFERENCES[name]
    theirs, both, own = documented("Policies and access reviews")[name]
    if theirs == "refused":
        with pytest.raises(TestbedError, match="does not start"), upstream(policy):
            pass
    else:
        with upstream(policy) as program:
            assert outcome(program.post(question)) == theirs
    try:
        with behind.deciding(policy) as program:
            assert outcome(program.post(question)) == both
    except ConfigError:
        assert both == "refused"
    if ours.takes(policy):
        assert outcome(ours.service.post(question)) == own
    else:
        assert own == "refused"


# -- tokens


def test_a_token_is_whose_upstream_says_it_is(
    keystone: Keystone, upstream: Callable[..., Any], behind: Behind, ours: Ours
) -> None:
    rng = random.Random(f"tokens {SEED}")
    domains = ["default", keystone.domain("here").id, keystone.domain("there").id]
    projects = [keystone.project(name, domain) for domain in domains for name in ("p", f"p-{domain}")]
    groups = [keystone.group(name, domain=domain) for domain in domains for name in ("crew", "Crew", "ä b", domain)]
    tokens: list[str] = []
    for name, domain in itertools.product(("alan", "ALAN", "alan@here", "ünï cøde", "x" * 200), domains):
        user = keystone.user(name, domain)
        for group in rng.sample(groups, rng.randint(0, 4)):
            keystone.join(group, user)
        for project in (projects[0], rng.choice(projects[1:])):
            for role in rng.sample(["member", "reader", "admin", "manager"], rng.randint(1, 3)):
                keystone.grant(role, user, project)
            tokens.append(keystone.token(user, project))
        credential = keystone.application_credential(user, projects[0], unrestricted=rng.random() < 0.5)
        tokens.append(keystone.credential_token(credential))
        tokens.append(keystone.token(user, "unscoped"))
    first, second = keystone.member("first", projects[0]), keystone.user("second", domains[1])
    tokens += [
        keystone.trust_token(first, second, projects[0], ["member"], impersonation=posing) for posing in (True, False)
    ]
    keystone.grant("member", first, Domain(domains[1], "here"))
    keystone.grant("reader", first, None)
    tokens += [keystone.token(first, Domain(domains[1], "here")), keystone.token(first, "system")]
    for service in ("kubernetes", "compute"):
        rules = [{"service": service, "path": "/**", "method": "GET"}]
        tokens.append(
            keystone.credential_token(keystone.application_credential(first, projects[0], access_rules=rules))
        )
    tokens += [fernet_token(), "garbage", tokens[0][:-1], tokens[0] + "A"]
    yes, alone = 0, {}
    with upstream([]) as program:
        for token in tokens:
            answer = program.post(token_review(token, "v1beta1"))
            assert isinstance(answer, tuple)
            theirs = json.loads(answer[1])["status"]
            own = ours.service.review(token_review(token, "v1beta1"))
            assert own["authenticated"] is theirs["authenticated"], token
            if own["authenticated"]:
                yes += 1
                alone[token] = theirs["user"]
                assert known(own["user"]) == known(theirs["user"])
    assert yes == 15 * 3 + 1
    with behind.deciding([]) as program:
        for token in tokens:
            own = ours.service.review(token_review(token))
            both = program.service.review(token_review(token))
            assert both["authenticated"] is own["authenticated"], token
            if own["authenticated"]:
                assert known(both["user"]) == known(own["user"])
                assert len(both["user"]["extra"]) == 5
                assert sorted(both["user"]["groups"]) == sorted(alone[token]["groups"])


def known(user: Json) -> Json:
    """A user without what is documented to differ: the order, and extra of our own."""
    more = ("project/domain/id", "application-credential/id")
    return {
        **user,
        "groups": sorted(set(user["groups"])),
        "extra": {key: sorted(values) for key, values in user["extra"].items() if key.removeprefix(EXTRA) not in more},
    }


def test_a_reserved_group_is_left_out_and_a_reserved_user_refused(
    keystone: Keystone, upstream: Callable[..., Any], behind: Behind, ours: Ours
) -> None:
    evil = keystone.domain("reserved")
    project = keystone.project("p", evil)
    reserved = ["system:masters", "kubeadm:cluster-admins", "keystone:group:ops", "SYSTEM:masters", " system:x"]
    user = keystone.member("mallory", project, domain=evil)
    for name in [*reserved, "plain"]:
        keystone.group(name, user, domain=evil)
    token = keystone.token(user, project)
    forgeries = [keystone.token(keystone.member(name, project, domain=evil), project) for name in reserved]
    with upstream([]) as program:
        answer = program.post(token_review(token, "v1beta1"))
        assert isinstance(answer, tuple)
        groups = json.loads(answer[1])["status"]["user"]["groups"]
        assert set(groups) >= {"system:masters", "kubeadm:cluster-admins", "plain"}
        assert ours.service.review(token_review(token))["user"]["groups"] == ["plain", project.id]
        for forged in forgeries:
            answer = program.post(token_review(forged, "v1beta1"))
            assert isinstance(answer, tuple)
            assert json.loads(answer[1])["status"]["authenticated"] is True
            assert ours.service.review(token_review(forged)) == {"authenticated": False}
    with behind.deciding([]) as program:
        assert program.service.review(token_review(token))["user"]["groups"] == ["plain", project.id]
        for forged in forgeries:
            assert program.service.review(token_review(forged)) == {"authenticated": False}
