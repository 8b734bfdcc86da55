"""Takes the figures: slices of a second or two, the servers by turns, three passes; medians, and ratios pass by pass.

Ratios are made of slices that lie next to each other in time: a machine that is busy otherwise spoils them less.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import HERE, servers, work
from benchmarks.report import Row, number, spread
from benchmarks.servers import Files, Server
from benchmarks.work import EMPTY, OURS, SIDES, UPSTREAM, Side
from testbed import setup
from testbed.apiserver import ApiServer
from testbed.cache import TestbedError, call, say
from testbed.keystone import Keystone
from testbed.processes import free_port

PASSES = 3
SECONDS = {"ours": 1.0, "empty": 1.0, "upstream": 2.0}  # upstream answers so few that it needs longer
MINTED = 24_000
THROUGH = 12_000  # tokens that are used by turns, so that none comes back within the API server's 10 s

SHARED = "the two processors are shared by client and server, and the limit is near"
GO = "the empty webhook does not even look at the token; ours answers from its cache, in Python"
POOL = (
    "Go's client keeps 25 idle connections to a webhook: with 32 in use it closes and opens some all the time, and a "
    "handshake with client certificates costs OpenSSL 3.0 half as much again as Go (see 24 at a time: none is closed)"
)
PYTHON = (
    "one process in Python against both processors in Go: 6 µs a review are our own code (reading it 3, whose it is 1, "
    "policy 1, HTTP 1), the rest is TLS and the event loop, as the limit shows"
)
HALF_WAY = (
    "upstream stops at the item that allows, half-way on average, which two in three of these questions have; and a "
    "server of one process loses more to whatever else wants the processors"
)


@dataclass(frozen=True)
class Slice:
    """What the client saw: reviews/s, milliseconds, and counts (`total` has those that warmed the connections up)."""

    rate: float
    p50: float
    p99: float
    seconds: float
    total: int
    refused: int
    wrong: int
    failed: int
    calls: int
    processor: float


@dataclass
class Bench:
    """What all measurements share."""

    files: Files
    keystone: Keystone
    client: Path
    accounts: list[Any]
    tokens: list[str]
    unused: int = work.USERS  # the first of `tokens` that no server has seen
    seen: dict[str, list[Slice]] = field(default_factory=lambda: {side.name: [] for side in SIDES})

    def items(self, name: str, items: list[dict[str, Any]]) -> Path:
        """Write items for the client."""
        return work.save(self.files.folder / name, items)

    def slice(
        self,
        side: Side,
        server: Server,
        items: Path,
        connections: int,
        *,
        seconds: float | None = None,
        count: int | None = None,
        fresh: bool = False,
    ) -> Slice:
        """Let the client work on a server for that long, or that many reviews; `fresh`: with tokens never used yet."""
        command = client_command(self.client, self.files, server, items, connections)
        if seconds or not count:
            command.append(f"-duration={(seconds or SECONDS[side.name]) * 1000:.0f}ms")
        if count:
            command.append(f"-count={count}")
        if fresh:
            command += ["-once", f"-first={self.unused}"]
        self.keystone.forget_calls()
        before = server.processor()
        told = json.loads(call(command, "see what the client says"))
        calls = len(self.keystone.calls())
        found = Slice(**told, calls=calls, processor=server.processor() - before)
        self.unused += found.total if fresh else 0
        self.seen[side.name].append(found)
        return found


def client_to(client: Path, files: Files, server: Server) -> list[str]:
    """Give the client's command, the same for all but for the client certificate; what it asks is to be added."""
    command = [str(client), f"-address=127.0.0.1:{server.port}", f"-ca={files.path('ca.pem')}"]
    if server.mutual:
        command += [f"-certificate={files.path('client.pem')}", f"-key={files.path('client.key')}"]
    return command


def client_command(client: Path, files: Files, server: Server, items: Path, connections: int) -> list[str]:
    """Give the client's command with what it asks, and how often at once."""
    return [*client_to(client, files, server), f"-work={items}", f"-connections={connections}"]


def turns(number: int) -> Sequence[Side]:
    """Give the servers, each pass in another order."""
    return SIDES[number % 3 :] + SIDES[: number % 3]


def ratios(over: Sequence[float], under: Sequence[float]) -> float:
    """Give the median of the ratios, pass by pass."""
    return median(a / b if b else float("inf") for a, b in zip(over, under, strict=True))


def times(value: float) -> str:
    """Write a ratio."""
    return f"{number(value)}x"


def compare(
    what: str, taken: dict[str, list[Slice]], rate_target: float | None, p99_target: float | None, why: str
) -> list[Row]:
    """Make the two rows of a measurement, rate and p99; `p99_target` is the most that ours may be of theirs."""
    rate = {name: [one.rate for one in taken[name]] for name in taken}
    p50, p99 = ({name: [getattr(one, key) for one in taken[name]] for name in taken} for key in ("p50", "p99"))
    gain, share = ratios(rate["ours"], rate["upstream"]), ratios(p99["ours"], p99["upstream"])
    cost = {name: f"{_processor(taken[name]):.0f} µs of processor each" for name in taken}
    saved = _processor(taken["upstream"]) / _processor(taken["ours"])
    limits = ("one call to Keystone a token, where upstream needs two", "")
    if "empty" in taken:
        limits = (
            f"{times(ratios(rate['empty'], rate['upstream']))}: {number(median(rate['empty']))}; {cost['empty']}",
            f"{ratios(p99['empty'], p99['upstream']):.2g}x: {number(median(p99['empty']))}",
        )
    return [
        Row(
            f"{what}: reviews/s",
            f"{spread(rate['ours'])}; {cost['ours']}",
            f"{spread(rate['upstream'])}; {cost['upstream']}",
            f"{times(gain)}; processor: {times(saved)}",
            f"≥ {number(rate_target)}x" if rate_target else "",
            limits[0],
            gain >= rate_target if rate_target else None,
            why,
        ),
        Row(
            f"{what}: p50, p99 in ms",
            f"{number(median(p50['ours']))}, {spread(p99['ours'])}",
            f"{number(median(p50['upstream']))}, {spread(p99['upstream'])}",
            f"p99 {share:.2g}x",
            f"p99 ≤ {p99_target:.2g}x" if p99_target else "",
            limits[1],
            share <= p99_target if p99_target else None,
            why,
        ),
    ]


def _processor(taken: Sequence[Slice]) -> float:
    """Give the microseconds of processor time that the server used a review."""
    return sum(one.processor for one in taken) / sum(one.total for one in taken) * 1e6


# ------------------------------------------------------------------------------------------------------ token reviews


def tokens(bench: Bench, policy: Path) -> list[Row]:
    """Measure all that concerns tokens, on one set of servers."""
    answer = work.empty_answer(bench.accounts[0])
    with (
        servers.ours(bench.files, bench.keystone, policy) as ours,
        servers.upstream(bench.files, bench.keystone, policy) as upstream,
        servers.empty(bench.files, answer) as empty,
    ):
        running = {"ours": ours, "upstream": upstream, "empty": empty}
        rows = warm(bench, running)
        rows += flood(bench, running)
        rows += unknown(bench, running)
        rows += cold(bench, running)
        resident = ours.memory()
        rows.append(
            Row(
                f"resident memory after these runs, {work.USERS} users, MB",
                number(resident),
                number(upstream.memory()),
                times(resident / upstream.memory()),
                "≤ 100 MB",
                f"{number(empty.memory())}",
                resident <= 100,
                "aiohttp, uvloop and the interpreter take 45 MB; the rest are the tokens of the cold runs in the cache",
            )
        )
    return rows


def warm(bench: Bench, running: dict[str, Server]) -> list[Row]:
    """Known tokens."""
    known = bench.tokens[: work.USERS]
    items = {
        side.name: bench.items(f"warm-{side.name}", work.token_items(side, known, bench.accounts)) for side in SIDES
    }
    rows: list[Row] = []
    calls = dict.fromkeys(running, 0)
    total = dict.fromkeys(running, 0)
    for connections, target in ((1, 100.0), (4, 150.0), (16, 200.0), (64, 200.0)):
        say(f"token reviews, warm, {connections} connections")
        taken: dict[str, list[Slice]] = {name: [] for name in running}
        for number_of_pass in range(PASSES):
            for side in turns(number_of_pass):
                server = running[side.name]
                if side is OURS:  # known is who was seen in the last minute; all are, when a slice begins
                    bench.slice(side, server, items["ours"], 4, count=work.USERS)
                found = bench.slice(side, server, items[side.name], connections)
                taken[side.name].append(found)
                calls[side.name] += found.calls
                total[side.name] += found.total
        p99 = 1 / 75 if connections == 64 else None
        rows += compare(f"token reviews, warm, {connections} at a time", taken, target, p99, SHARED)
    each = {name: calls[name] / total[name] for name in calls}
    rows.append(Row("Keystone calls a review, warm", f"{each['ours']:.5f}", f"{each['upstream']:.3g}"))
    return rows


def flood(bench: Bench, running: dict[str, Server]) -> list[Row]:
    """100,000 reviews of valid tokens, 64 at a time; upstream gets through as many as it can in its slices."""
    say("100,000 reviews of valid tokens, 64 at a time")
    found = bench.slice(OURS, running["ours"], bench.files.folder / "warm-ours", 64, count=100_000)
    bench.slice(UPSTREAM, running["upstream"], bench.files.folder / "warm-upstream", 64, seconds=5)
    theirs = bench.seen["upstream"]
    rows = []
    targets = (
        ("refused", "valid tokens refused"),
        ("wrong", "wrong identities"),
        ("failed", "reviews without an answer"),
    )
    for key, what in targets:
        bad, total = sum(getattr(one, key) for one in theirs), sum(one.total for one in theirs)
        rows.append(
            Row(
                f"{what} (ours: 64 at a time; upstream: all slices above)",
                f"{getattr(found, key)} of {found.total:,}",
                f"{bad} of {total:,}",
                target="0",
                met=getattr(found, key) == 0,
                why="see the authenticator's log: Keystone may have been too slow",
            )
        )
    rows.append(Row("Keystone calls for these reviews", f"{found.calls}", f"{sum(one.calls for one in theirs)}"))
    return rows


def judged(bench: Bench) -> list[Row]:
    """Say how many answers were not right, over all slices of all kinds."""
    told = {
        name: f"{sum(one.refused + one.wrong + one.failed for one in seen)} of {sum(one.total for one in seen):,}"
        for name, seen in bench.seen.items()
    }
    right = told["ours"].startswith("0 ")
    what = "refused, wrong or missing answers in all slices of all kinds"
    return [Row(what, told["ours"], told["upstream"], "", "0", told["empty"], right, "see the authenticator's log")]


def unknown(bench: Bench, running: dict[str, Server]) -> list[Row]:
    """Tokens of the cluster's own kind that nobody issued."""
    say("invalid cluster tokens")
    invalid = work.service_account_tokens(10_000)
    made = {
        side.name: bench.items(f"invalid-{side.name}", work.token_items(side, invalid, ())) for side in (OURS, UPSTREAM)
    }
    ours = bench.slice(OURS, running["ours"], made["ours"], 16, count=10_000 - 16)
    upstream = bench.slice(UPSTREAM, running["upstream"], made["upstream"], 16)
    return [
        Row(
            "Keystone calls for invalid cluster tokens",
            f"{ours.calls} for {ours.total:,}",
            f"{upstream.calls} for {upstream.total:,}",
            target="0",
            met=ours.calls == 0,
        )
    ]


def cold(bench: Bench, running: dict[str, Server]) -> list[Row]:
    """Each token new; of people who have been seen."""
    items = {
        side.name: bench.items(f"cold-{side.name}", work.token_items(side, bench.tokens, bench.accounts))
        for side in (OURS, UPSTREAM)
    }
    rows: list[Row] = []
    calls = {"ours": [0, 0], "upstream": [0, 0]}
    for connections, target in ((4, 1.5), (16, 1.8)):
        say(f"token reviews, cold, {connections} connections")
        taken: dict[str, list[Slice]] = {"ours": [], "upstream": []}
        for number_of_pass in range(PASSES):
            for side in (OURS, UPSTREAM) if number_of_pass % 2 else (UPSTREAM, OURS):
                found = bench.slice(side, running[side.name], items[side.name], connections, seconds=2, fresh=True)
                taken[side.name].append(found)
                calls[side.name][0] += found.calls
                calls[side.name][1] += found.total
        why = "Keystone itself takes nearly all of the time, and one of the two processors"
        rows += compare(f"token reviews, cold, {connections} at a time", taken, target, None, why)
    each = {name: count / total for name, (count, total) in calls.items()}
    share = each["ours"] / each["upstream"]
    rows.append(
        Row(
            "Keystone calls a review, cold",
            f"{each['ours']:.3f}",
            f"{each['upstream']:.3f}",
            f"{share:.3f}x",
            "≤ 0.51x",
            "0.5x",
            share <= 0.51,
            "each user's groups are asked for once a minute, which weighs more in so short a run",
        )
    )
    return rows


# ----------------------------------------------------------------------------------------------------- access reviews


def access(bench: Bench) -> list[Row]:
    """Measure varied access reviews with policies of three sizes."""
    rows: list[Row] = []
    for size, target, why in ((1, 1.3, PYTHON), (1_000, 12.0, f"{PYTHON}; {HALF_WAY}"), (10_000, 100.0, HALF_WAY)):
        name = "the example policy" if size == 1 else f"{size:,} items"
        policy = bench.files.folder / f"policy-{size}.json"
        policy.write_text(json.dumps(work.policy(size)))
        asked = work.questions(size, 5_000)
        items = {side.name: bench.items(f"access-{side.name}", work.access_items(side, asked)) for side in SIDES}
        answer = b'{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","status":{"allowed":false}}'
        with (
            servers.ours(bench.files, bench.keystone, policy) as ours,
            servers.upstream(bench.files, bench.keystone, policy) as upstream,
            servers.empty(bench.files, answer) as empty,
        ):
            running = {"ours": ours, "upstream": upstream, "empty": empty}
            for connections in (16, 64):
                say(f"access reviews, {name}, {connections} connections")
                taken: dict[str, list[Slice]] = {side: [] for side in running}
                for number_of_pass in range(PASSES):
                    for side in turns(number_of_pass):
                        seconds = 1.5 if side is UPSTREAM else 1.0
                        found = bench.slice(side, running[side.name], items[side.name], connections, seconds=seconds)
                        taken[side.name].append(found)
                what = f"access reviews, {name}, {connections} at a time"
                rows += compare(what, taken, target, 0.8 if size == 1 else None, why)
    return rows


# --------------------------------------------------------------------------------- through a real kube-apiserver


@dataclass
class Through:
    """An API server that asks one of the webhooks, and tokens that it has forgotten by their next turn."""

    server: ApiServer
    webhook: Server
    items: Path
    next: int = 0

    def slice(self, bench: Bench, connections: int, seconds: float) -> Slice:
        """Ask with tokens by turns, each once; a third of them at most, as a token is to rest for 10 s."""
        command = [str(bench.client), f"-address=127.0.0.1:{self.server.port}", f"-ca={self.server.ca}"]
        command += [f"-work={self.items}", f"-connections={connections}", f"-first={self.next}"]
        command += [f"-duration={seconds * 1000:.0f}ms", f"-count={THROUGH // 6}"]
        before = self.webhook.processor()
        told = json.loads(call(command, "see what the client says"))
        self.next = (self.next + told["total"]) % THROUGH
        return Slice(**told, calls=0, processor=self.webhook.processor() - before)


def through(bench: Bench, policy: Path) -> list[Row]:
    """Measure what a user of kubectl feels: requests to API servers that ask about every token, each time."""
    say(f"{THROUGH:,} tokens become known, and three API servers start")
    first = (len(bench.tokens) - THROUGH) // work.USERS * work.USERS  # where it is the first user's turn
    tokens = bench.tokens[first : first + THROUGH]
    answer = work.empty_answer(bench.accounts[0])
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        ours = enter(servers.ours(bench.files, bench.keystone, policy, ttl=3600))
        made = bench.items("through-known", work.token_items(OURS, tokens, bench.accounts))
        bench.slice(OURS, ours, made, 16, count=THROUGH - 16)
        webhooks = {
            OURS: ours,
            EMPTY: enter(servers.empty_in_go(bench.files, answer)),
            UPSTREAM: enter(servers.upstream(bench.files, bench.keystone, policy)),
        }
        doors = {
            side.name: Through(
                enter(servers.api_server(bench.files, webhook, "v1beta1" if side is UPSTREAM else "v1")),
                webhook,
                bench.items(f"through-{side.name}", work.whoami_items(side, tokens, bench.accounts)),
            )
            for side, webhook in webhooks.items()
        }
        server = doors["ours"].server
        static = work.whoami(server.admin_token, {"user": "admin", "uid": "admin"})
        doors["static"] = Through(server, ours, bench.items("through-static", [static]))
        before = servers.reviews_of(bench.files, ours)
        taken: dict[int, dict[str, list[Slice]]] = {}
        for connections in (1, 24, 32):
            say(f"through a kube-apiserver, {connections} connections")
            taken[connections] = {name: [] for name in doors}
            for number_of_pass in range(PASSES + 1):
                for name in list(doors)[number_of_pass % 4 :] + list(doors)[: number_of_pass % 4]:
                    found = doors[name].slice(bench, connections, 1.5)
                    if number_of_pass:  # the first one warms all of them up
                        taken[connections][name].append(found)
                        bench.seen.setdefault(name, []).append(found)
        asked = servers.reviews_of(bench.files, ours) - before
    sent = sum(one.total for of in taken.values() for one in of["ours"])
    if asked < sent:
        raise TestbedError(f"the API server asked {asked} times for {sent} requests: it remembered tokens")
    return [*_alone(taken[1]), *_together(24, taken[24]), *_together(32, taken[32])]


def _alone(taken: dict[str, list[Slice]]) -> list[Row]:
    p50 = {name: [one.p50 for one in slices] for name, slices in taken.items()}
    added = {name: [a - b for a, b in zip(p50[name], p50["static"], strict=True)] for name in p50}
    mine, least = median(added["ours"]), median(added["empty"])
    what = "through a kube-apiserver, 1 at a time: median of a request"
    return [
        Row(
            f"{what} beyond a static token's, ms",
            spread(added["ours"]),
            spread(added["upstream"]),
            f"{mine / median(added['upstream']):.2g}x",
            "≤ 1.2 ms",
            f"{spread(added['empty'])}: an empty webhook in Go",
            mine <= 1.2,
            "what a review costs, and a wake-up of each process on the way",
        ),
        Row(
            f"{what}, ms; a static token's: {spread(p50['static'])}",
            spread(p50["ours"]),
            spread(p50["upstream"]),
            f"{ratios(p50['ours'], p50['empty']):.3g}x of the empty webhook's",
            "≤ 1x of it",
            spread(p50["empty"]),
            mine <= least,
            GO,
        ),
    ]


def _together(connections: int, taken: dict[str, list[Slice]]) -> list[Row]:
    rate = {name: [one.rate for one in slices] for name, slices in taken.items()}
    cost = {name: f"{_processor(slices):.0f} µs of the webhook's processor each" for name, slices in taken.items()}
    over = {name: ratios(rate["ours"], rate[name]) for name in rate}
    gain = ratios(rate["empty"], rate["upstream"])
    what = f"through a kube-apiserver, {connections} at a time"
    judged = connections == 32
    return [
        Row(
            f"{what}: requests/s",
            f"{spread(rate['ours'])}; {cost['ours']}",
            f"{spread(rate['upstream'])}; {cost['upstream']}",
            times(over["upstream"]),
            "≥ 15x" if judged else "",
            f"{times(gain)}: {spread(rate['empty'])}; {cost['empty']}: an empty webhook in Go",
            over["upstream"] >= 15 if judged else None,
            "the API server's own work",
        ),
        Row(
            f"{what}: share of a static token's rate, {spread(rate['static'])}",
            f"{over['static']:.2f}",
            f"{ratios(rate['upstream'], rate['static']):.2f}",
            "",
            "≥ 0.5" if judged else "",
            f"{ratios(rate['empty'], rate['static']):.2f}",
            over["static"] >= 0.5 if judged else None,
            "client, API server and webhook share two processors, and the empty webhook shows what a call costs",
        ),
        Row(
            f"{what}: share of the empty webhook's rate",
            f"{over['empty']:.2f}",
            f"{ratios(rate['upstream'], rate['empty']):.2f}",
            "",
            "≥ 1" if judged else "",
            "1",
            over["empty"] >= 1 if judged else None,
            POOL,
        ),
    ]


# -------------------------------------------------------------------------------------------------- without a server


def inside(what: str, *arguments: str | Path) -> dict[str, Any]:
    """Run `benchmarks.inside` in a process of its own."""
    say(f"{what}, without Keystone")
    command = [sys.executable, "-m", "benchmarks.inside", what, *arguments]
    return json.loads(call(command, "see what it says", cwd=HERE.parent, env=servers.ENVIRONMENT))


def decisions() -> list[Row]:
    """Say what a decision costs by the policy's size, and how long a policy takes to compile."""
    found = inside("decisions")
    rows = []
    for kind, most in (("varied", 1.3), ("one role", 2.0)):
        for different, which in (("few", "100 different ones"), ("many", "5,000 different ones")):
            cost = {size: found[f"{kind} {size}"][different] for size in (10, 1_000, 10_000)}
            growth = cost[10_000] / cost[10]
            rows.append(
                Row(
                    f"a decision with 10, 1,000, 10,000 items ({kind}), {which}, µs",
                    ", ".join(number(value) for value in cost.values()),
                    ratio=f"{growth:.2f}x (10,000 to 10)",
                    target=f"≤ {most}x",
                    met=growth <= most,
                    why="as many steps (see 100 different ones), but what 5,000 ask for does not stay in the caches"
                    if different == "many"
                    else "more steps",
                )
            )
    for kind in ("varied", "one role"):
        seconds = found[f"{kind} 10000"]["compile"]
        rows.append(
            Row(
                f"10,000 items ({kind}) read, checked and compiled, s",
                number(seconds),
                target="< 0.5",
                met=seconds < 0.5,
                why="checking and compiling each key of each item in Python",
            )
        )
    return rows


def million(bench: Bench) -> list[Row]:
    """Say what a million tokens cost in memory, and in speed."""
    port = free_port()
    path = servers.settings(bench.files, bench.keystone, None, port)
    found = inside("million", path, *client_to(bench.client, bench.files, Server(0, port, True, 0)))
    what = f"{found['tokens']:,} tokens of 10,000 identities (Keystone's answers made at the HTTP client)"
    few, many = found["rates"]["few"], found["rates"]["many"]
    share = ratios(many, few)
    return [
        Row(
            f"{what}, resident MB",
            f"{number(found['resident'])}; before: {number(found['before'])}; "
            f"{found['still known']:.0%} of the tokens still known",
            target="≤ 350",
            met=found["resident"] <= 350 and found["tokens"] == 1_000_000,
            why="too slow for the time limit" if found["tokens"] < 1_000_000 else "what an entry of the cache takes",
        ),
        Row(
            f"{what}, 16 at a time, about any of them: reviews/s",
            f"{spread(many)}; about 26 of them: {spread(few)}",
            ratio=f"{share:.2f}x",
            target="≥ 0.8x",
            met=share >= 0.8,
            why="each look-up is in memory that the processor's caches do not hold",
        ),
    ]


def versions() -> list[str]:
    """Name what was measured."""
    commit = call(["git", "-C", str(HERE), "describe", "--always", "--dirty"], "run it in a checkout").strip()
    return [
        f"ours: {commit}, Python {sys.version.split()[0]}; upstream: k8s-keystone-auth {setup.UPSTREAM_VERSION}",
        f"{PASSES} passes; figures are medians, with the least and the most of the passes in brackets",
    ]


def everything(bench: Bench) -> Iterator[Row]:
    """Take all figures, in the order of their importance."""
    policy = bench.files.folder / "policy-1.json"
    policy.write_text(json.dumps(work.policy(1)))
    for take in (
        lambda: tokens(bench, policy),
        lambda: access(bench),
        lambda: through(bench, policy),
        lambda: judged(bench),
        decisions,
        lambda: million(bench),
    ):
        yield from take()
