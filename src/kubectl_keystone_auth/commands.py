"""`kubectl keystone-auth …`: what a person runs, not kubectl."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kubectl_keystone_auth import __version__, terminal
from kubectl_keystone_auth.cache import Cache, folder
from kubectl_keystone_auth.conversation import Conversation
from kubectl_keystone_auth.errors import BadInput, PluginError, Refused, printable
from kubectl_keystone_auth.fresh import log_in
from kubectl_keystone_auth.options import CREDENTIAL, PASSWORD, WEBSSO, Options, read, secret
from kubectl_keystone_auth.store import Store, ours
from kubectl_keystone_auth.tokens import Token, from_answer

HELP = """\
kubectl-keystone-auth: log in to Kubernetes with an OpenStack account.

As an exec plug-in of kubectl it prints a token. As `kubectl keystone-auth COMMAND`:

  login               log in now and keep the token
  login --browser     single sign-on in the browser, an application credential of it, and a context that has that
      --identity-provider NAME --protocol NAME    as the cloud's operator says (OS_IDENTITY_PROVIDER, OS_PROTOCOL)
      --server URL --certificate-authority FILE   the cluster; else that of the context
      --context NAME, --output FILE               the context's name and file
      --role NAME (several), --expires 12h        the credential: with these roles alone; until then (30d, or `never`)
      --for kubernetes|everything                 what it is good for; else the cloud's catalogue says it
      --read-only, --namespace, --exec, --rule    what in Kubernetes, as for `credential create`
      --name NAME, --timeout SECONDS              the credential's name; how long the login may take (300)
      --os-redirect-port PORT                     where the token is taken: http://localhost:PORT/auth/websso/ (9990)
  logout              forget the token, and have Keystone revoke it; --all: all that are kept. What `login --browser`
                      made is deleted in Keystone, which takes a login in the browser (--timeout SECONDS)
  whoami              who the login is to Keystone, and to the cluster
  kubeconfig          write a context that logs in like this, or put it into the file that kubectl uses; Keystone and
                      the cluster are those of the current context where nothing else is said
      --server URL --certificate-authority FILE   the cluster; else that of the current context
      --context NAME, --namespace NAME, --use     its name, its namespace; make it the current one
      --output FILE                               a file of its own (- prints it)
      --flavour plugin|curl|powershell|openstack|token   what it logs in with; `curl` needs nothing but sh and curl
      --all-projects                              a context for each of your projects
  openrc              lines for the openstack client, of this credential; --output clouds: a clouds.yaml
  credential create NAME    make an application credential that is good for Kubernetes alone
      --read-only, --namespace NAME (several)     for reading; for these namespaces, not the whole cluster
      --exec                                      exec, attach and port-forward, too
      --rule "METHOD /path" (several)             rules of your own (docs/access-rules.md)
      --role NAME (several), --expires 30d        with these roles alone; until then
      --output json                               else lines for a shell

login, logout, whoami and openrc take the login of the current context (--context, --kubeconfig) where no flag names
one; kubeconfig and credential that of flags and the environment.

How to log in, by flags or, where there is no flag, by the environment:

  --keystone-url URL                  OS_AUTH_URL
  --application-credential-id ID      OS_APPLICATION_CREDENTIAL_ID
  --application-credential-name NAME  OS_APPLICATION_CREDENTIAL_NAME; then with a user as well
  --application-credential-secret ... OS_APPLICATION_CREDENTIAL_SECRET; better than the flag: process lists show flags
  --user-name NAME, --user-id ID      OS_USERNAME, OS_USER_ID
  --password ...                      OS_PASSWORD; better than the flag
  --project-name NAME, --project-id   OS_PROJECT_NAME, OS_PROJECT_ID
  --domain-name NAME, --domain-id     OS_DOMAIN_NAME, OS_DOMAIN_ID: of both; else the domain with the ID `default`
  --user-domain-name, --project-domain-name, ...-id   OS_USER_DOMAIN_NAME, ...
  --cacert FILE                       OS_CACERT
  --cert FILE, --key FILE             OS_CERT, OS_KEY: a client certificate for Keystone
  --insecure                          OS_INSECURE: check no certificate, allow http://
  --os-cloud NAME                     OS_CLOUD: a cloud of clouds.yaml
  --os-auth-type TYPE                 OS_AUTH_TYPE: any other way of keystoneauth1's; its options are --os-... or OS_...

  -v          show the conversation with Keystone, secrets masked
  --no-cache  log in anew, and keep no token
  --version

Exit codes: 2 input, 3 refused by Keystone, 4 project, 5 Keystone away, 6 certificate, 7 clock, 1 anything else.
"""
SWITCHES = ("insecure", "os-insecure", "no-cache", "verbose")
"""Flags of a login that take no value."""


class Words:
    """A command's words: its own flags, what names things, and what is left for the login."""

    def __init__(self, arguments: list[str], values: tuple[str, ...] = (), switches: tuple[str, ...] = ()) -> None:
        """Take a command's own flags out; `values` take one, `switches` none.

        Raises:
            BadInput: a flag without its value.

        """
        self.names: list[str] = []
        self.login: list[str] = []
        self._found: dict[str, list[str]] = {}
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            flag, equals, value = word.partition("=")
            name = flag.lstrip("-").replace("_", "-")
            if word[:1] != "-":
                self.names.append(word)
            elif name in values:
                if not equals and not rest:
                    raise BadInput(f"{flag} needs a value")
                self._found.setdefault(name, []).append(value if equals else rest.pop(0))
            elif name in switches:
                self._found[name] = ["true"]
            else:
                self.login.append(word)
                level = name == "v" and rest and rest[0].isdecimal()
                if level or (flag[:2] == "--" and not equals and name not in (*SWITCHES, "v") and rest):
                    self.login.append(rest.pop(0))

    def one(self, name: str) -> str:
        """Give a flag's value, the last if there are several; empty without."""
        return self._found.get(name, [""])[-1]

    def several(self, name: str) -> list[str]:
        """Give a flag's values."""
        return self._found.get(name, [])

    def has(self, name: str) -> bool:
        """Whether a switch was given."""
        return name in self._found

    def no_names(self) -> None:
        """Refuse words that are no flags.

        Raises:
            BadInput: there is one.

        """
        if self.names:
            raise BadInput("there is a word that is no flag; --help lists what there is")


def run(arguments: list[str]) -> int:
    """Run a command; returns the exit code.

    Raises:
        PluginError: it cannot be done.

    """
    first, rest = arguments[0], arguments[1:]
    if first in ("-h", "--help", "help") or "--help" in rest or "-h" in rest:
        print(HELP, end="")
        return 0
    if first in ("--version", "version"):
        print(__version__)
        return 0
    commands: dict[str, Callable[[list[str]], None]] = {
        "login": _login,
        "logout": _logout,
        "whoami": _whoami,
        "kubeconfig": _kubeconfig,
        "openrc": _openrc,
        "credential": _credential,
    }
    if first not in commands:
        raise BadInput("there is no such command; --help lists what there is")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may have letters that the terminal's encoding has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    commands[first](rest)
    return 0


# --- login, logout, whoami


def _of_context(words: Words, *, sourced: bool = False) -> Options:
    """Give the login that flags name, else that of the context, else the environment's (`sourced`: that before)."""
    from kubectl_keystone_auth import kubeconfig

    chosen = words.one("kubeconfig"), words.one("context")
    first = sourced and not any(chosen) and (os.environ.get("OS_AUTH_URL") or os.environ.get("OS_CLOUD"))
    if read(words.login, {}).given or first:
        return read(words.login, os.environ)
    try:
        login = kubeconfig.login_of(kubeconfig.current(*chosen))
    except PluginError:
        if any(chosen):
            raise
        login = None
    if login is not None:
        return read([*login.arguments, *words.login], {**os.environ, **login.environment})
    if any(chosen):
        raise BadInput("that context does not log in with this plug-in")
    return read(words.login, os.environ)


def _cache(options: Options) -> Cache | None:
    return Cache(folder(), options.login()) if options.cacheable() else None


def _login(arguments: list[str]) -> None:
    if "--browser" in arguments:
        from kubectl_keystone_auth import sign_on

        sign_on.login(Words(arguments, sign_on.VALUES, sign_on.SWITCHES))
        return
    words = Words(arguments, ("context", "kubeconfig"))
    words.no_names()
    options = _of_context(words)
    conversation = Conversation(options.verbose, options.secrets())
    cache = _cache(options)
    token = log_in(options, terminal.present(), conversation)
    if cache is not None:
        store = Store(cache.place, cache.login)
        with store.lock():
            store.put(token.entry())
    print(f"logged in as {who(token)}, until {shown_time(token.entry().expires)}")
    if cache is None or cache.entry() is None:
        print("the token is not kept")


def _logout(arguments: list[str]) -> None:
    words = Words(arguments, ("context", "kubeconfig", "timeout"), ("all",))
    words.no_names()
    if words.has("all"):
        with contextlib.suppress(OSError):
            for path in ours(folder()):
                path.unlink()
        print("all tokens are forgotten here; Keystone takes them until they end")
        return
    options = _of_context(words)
    cache = _cache(options)
    entry = cache.entry() if cache else None
    if identifier := options.get("application_credential_id"):
        from kubectl_keystone_auth import sign_on

        found = None
        with contextlib.suppress(PluginError):
            found = sign_on.origin(words.one("kubeconfig"), words.one("context"))
        if found is not None and found.credential == identifier:
            if cache is not None:
                Store(cache.place, cache.login).drop()
            sign_on.logout(found, words.one("kubeconfig"), words.login, words.one("timeout"))
            return
    if cache is None or entry is None:
        print("there is no token at hand for this login")
        return
    store = Store(cache.place, cache.login)
    with store.lock():
        store.drop()
    conversation = Conversation(options.verbose, [*options.secrets(), entry.token])
    if not options.get("auth_url"):
        print("the token is forgotten here; Keystone takes it on")
        return
    print(
        "logged out"
        if revoke(options, conversation, entry.token)
        else "the token is forgotten here; Keystone takes it on"
    )


def revoke(options: Options, conversation: Conversation, token: str) -> bool:
    """Have Keystone revoke a token; says whether it is good for nothing now."""
    from kubectl_keystone_auth.keystone import Keystone

    try:
        keystone = Keystone(options, conversation)
        if keystone.call("DELETE", "/auth/tokens", token=token, subject=token).status == 204:
            return True
        # It may have ended before. Or its access rules do not let it revoke itself: then it goes on.
        return keystone.call("GET", "/auth/tokens?nocatalog", token=token, subject=token).status in (401, 404)
    except PluginError:
        return False


def _whoami(arguments: list[str]) -> None:
    words = Words(arguments, ("context", "kubeconfig"))
    words.no_names()
    options = _of_context(words)
    conversation = Conversation(options.verbose, options.secrets())
    for name, value in _known(_token(options, conversation)):
        print(f"{name:<11} {value}")
    from kubectl_keystone_auth import kubeconfig

    chosen = words.one("kubeconfig"), words.one("context")
    try:
        login = kubeconfig.login_of(kubeconfig.current(*chosen))
        if login is None or read(list(login.arguments), {**os.environ, **login.environment}).login() != options.login():
            print("cluster     not asked: the current context does not log in like this")
            return
        review = json.loads(kubeconfig.kubectl("auth", "whoami", "-o", "json", kubeconfig=chosen[0], context=chosen[1]))
        user = review["status"]["userInfo"]
        print(f"cluster     {printable(user.get('username', ''))}")
        for group in user.get("groups") or []:
            print(f"            in {printable(group)}")
    except (PluginError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = printable(str(error)) if isinstance(error, PluginError) else "gave no answer that is one"
        print(f"cluster     {what}")


def _token(options: Options, conversation: Conversation) -> Token:
    """Give the token at hand or a new one, with what Keystone says of it now."""
    cache = _cache(options)
    entry = cache.entry() if cache else None
    if entry is None or not entry.fresh() or not (options.simple or options.auth_type == WEBSSO):
        token = log_in(options, terminal.present(), conversation)
        if cache is not None:
            Store(cache.place, cache.login).put(token.entry())
        return token
    from kubectl_keystone_auth.keystone import Keystone

    keystone = Keystone(options, conversation)
    answer = keystone.call("GET", "/auth/tokens?nocatalog", token=entry.token, subject=entry.token)
    if answer.status == 200 and (token := from_answer(entry.token, answer.json(), answer.skew)):
        return token
    if answer.status in (401, 404) and keystone.words(answer):
        # Revoked meanwhile.
        token = log_in(options, terminal.present(), conversation)
        assert cache is not None  # noqa: S101 - or there would be no entry
        Store(cache.place, cache.login).put(token.entry())
        return token
    if answer.status == 403:
        raise Refused(f"Keystone does not tell what the token is ({keystone.words(answer)})")
    raise keystone.no_keystone(answer)


def _known(token: Token) -> list[tuple[str, str]]:
    left = max(0, int(token.entry().expires - time.time()))
    known = [
        ("user", f"{printable(token.user)} ({token.user_id})"),
        ("domain", printable(token.user_domain)),
        ("project", f"{printable(token.project)} ({token.project_id}), domain {printable(token.project_domain)}"),
        ("roles", ", ".join(printable(role) for role in sorted(token.roles)) or "none"),
        ("until", f"{shown_time(token.entry().expires)}, {left // 60} minutes from now"),
    ]
    if token.credential:
        known.insert(1, ("credential", printable(token.credential)))
    return known


def who(token: Token) -> str:
    """Name whose token it is, and for what."""
    return f"{printable(token.user)} (domain {printable(token.user_domain)}) in the project {printable(token.project)}"


def shown_time(moment: float) -> str:
    """Write a time for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


# --- kubeconfig


def _kubeconfig(arguments: list[str]) -> None:
    from kubectl_keystone_auth import flavours, kubeconfig

    values = ("server", "certificate-authority", "context", "namespace", "output", "kubeconfig", "flavour")
    words = Words(arguments, values, ("use", "all-projects"))
    words.no_names()
    flavour = words.one("flavour") or flavours.PLUGIN
    if flavour not in flavours.FLAVOURS:
        raise BadInput(f"--flavour: there are {', '.join(flavours.FLAVOURS)}")
    options = read(words.login, os.environ)
    entry = cluster_of(words)
    if not options.get("auth_url", "cloud"):
        # The operators' file, without a credential, is the current context: Keystone is the one that it means.
        with contextlib.suppress(PluginError):
            users = kubeconfig.current(words.one("kubeconfig")).get("users") or [{}]
            options.given = {**flavours.keystone(users[0].get("user") or {}), **options.given}
    conversation = Conversation(options.verbose, options.secrets())
    # What is written has been tried.
    token = log_in(options, terminal.present(), conversation)
    logins = _projects(options, token, conversation, flavour) if words.has("all-projects") else [(options, token)]
    names = _names(words.one("context"), [token for _, token in logins], several=words.has("all-projects"))
    parts = []
    for name, (login, token) in zip(names, logins, strict=True):
        user = (
            kubeconfig.user_entry(as_login(login))
            if flavour == flavours.PLUGIN
            else flavours.user(flavour, login, token)
        )
        parts.append(kubeconfig.whole(name, entry, user, flavours.namespace(words.one("namespace"), token)))
    content = kubeconfig.joined(parts)
    if words.one("output") == "-":
        print(kubeconfig.text(content, plain=True), end="")
    else:
        path = Path(words.one("output")) if words.one("output") else kubeconfig.target(words.one("kubeconfig"))
        kubeconfig.merge(path, content, use=words.has("use"))
        for name, (_, token) in zip(names, logins, strict=True):
            print(f"{path}: the context {shlex.quote(name)} logs in as {who(token)}")
    if flavour == flavours.TOKEN:
        end = min(token.entry().expires for _, token in logins)
        left = max(0, int(end - time.time())) // 60
        print(
            f"good until {shown_time(end)}, {left} minutes from now, and until then whoever has the file is you",
            file=sys.stderr,
        )
    elif flavour == flavours.PLUGIN and words.one("output") != "-" and _asked_for(options):
        print("no secret is in it: kubectl asks for it, or takes it from the environment")


def _asked_for(options: Options) -> bool:
    """Whether the secret of a login is not stored with it."""
    return not options.get("application_credential_secret") and options.auth_type != ""


def _projects(options: Options, token: Token, conversation: Conversation, flavour: str) -> list[tuple[Options, Token]]:
    """Give a login for each project that the user has a role in.

    Raises:
        BadInput: the login is for one project alone.

    """
    from kubectl_keystone_auth.keystone import Keystone

    if options.auth_type != PASSWORD or flavour not in ("plugin", "token"):
        raise BadInput(
            "--all-projects takes a password, and the flavour plugin or token: a credential is for one project"
        )
    answer = Keystone(options, conversation).call("GET", "/auth/projects", token=token.value)
    found = answer.json().get("projects")
    if answer.status != 200 or not isinstance(found, list):
        raise PluginError(f"Keystone does not tell the projects of this user (it answers {answer.status})")
    logins = []
    for project in sorted(found, key=lambda one: str(one.get("name"))):
        if project.get("enabled") is False:
            continue
        given = {name: value for name, value in options.given.items() if not name.startswith("project_")}
        login = Options({**given, "project_id": str(project.get("id"))}, options.auth_type, verbose=options.verbose)
        logins.append((login, log_in(login, False, conversation)))
    if not logins:
        raise BadInput("this user has a role in no project")
    return logins


def _names(chosen: str, tokens: list[Token], *, several: bool) -> list[str]:
    """Name the contexts: after their projects, and where that is ambiguous after their IDs."""
    if not several:
        return [chosen or f"keystone-{tokens[0].project}"]
    plain = [token.project for token in tokens]
    return [
        f"{chosen or 'keystone'}-{token.project if plain.count(token.project) == 1 else token.project_id}"
        for token in tokens
    ]


# --- openrc


def _openrc(arguments: list[str]) -> None:
    from kubectl_keystone_auth import flavours, kubeconfig

    words = Words(arguments, ("context", "kubeconfig", "output", "cloud-name"))
    words.no_names()
    if words.one("output") not in ("", "clouds"):
        raise BadInput("--output: clouds for a clouds.yaml, or nothing for lines that a shell reads")
    options = _of_context(words)
    if options.get("cloud"):
        raise BadInput("this login is a cloud of clouds.yaml already: openstack --os-cloud")
    # The name of a credential is told by its ID only once it has logged in.
    token = log_in(options, terminal.present(), Conversation(options.verbose, options.secrets()))
    if words.one("output") == "clouds":
        print(
            kubeconfig.text(flavours.cloud(options, token, words.one("cloud-name") or "openstack"), plain=True), end=""
        )
        return
    for name, value in flavours.openrc(options, token).items():
        print(f"export {name}={shlex.quote(value)}")


def cluster_of(words: Words, context: str = "") -> dict[str, Any]:
    """Give the cluster that a command's words name, else that of a context, or of the current one.

    Raises:
        BadInput: there is none, or its words are no good.

    """
    from kubectl_keystone_auth import kubeconfig

    if words.one("server"):
        authority = words.one("certificate-authority")
        cluster = kubeconfig.Cluster(words.one("server"), kubeconfig.read_ca(authority) if authority else None)
        if not cluster.server.startswith("https://"):
            raise BadInput("--server: kubectl sends a token over https:// alone")
        return kubeconfig.cluster_entry(cluster)
    found = None
    with contextlib.suppress(PluginError):
        found = kubeconfig.cluster_of(kubeconfig.current(words.one("kubeconfig"), context, flat=True))
    if found is None:
        raise BadInput("missing: --server, the API server's URL (there is no current context to take it from)")
    return found


def as_login(options: Options) -> Any:
    """Give the login for a kubeconfig: flags, and the one secret that is made to be stored."""
    from kubectl_keystone_auth.kubeconfig import Login, words

    upstream = {"auth_url": "keystone-url", "username": "user-name"}
    files = ("cacert", "cert", "key")
    wanted = ("auth_url", *files, "insecure")
    if options.auth_type == CREDENTIAL:
        wanted += ("application_credential_id",) if options.get("application_credential_id") else ()
        if not options.get("application_credential_id"):
            wanted += ("application_credential_name", "username", "user_id", "user_domain_id", "user_domain_name")
    elif options.simple:
        wanted += ("username", "user_id", "project_name", "project_id", "domain_name", "domain_id", "default_domain")
        wanted += ("user_domain_id", "user_domain_name", "project_domain_id", "project_domain_name")
    else:
        dull = ("region_name", "interface", "identity_api_version", "endpoint_type", "volume_api_version")
        wanted = tuple(sorted(name for name in options.given if not secret(name) and name not in dull))
    flags = []
    for name in wanted:
        if value := options.get(name):
            plain = options.simple and name != "default_domain"
            flag = upstream.get(name) if plain and name in upstream else name.replace("_", "-")
            value = str(Path(value).expanduser().absolute()) if name in files else value
            flags.append((flag if plain else f"os-{name.replace('_', '-')}", value))
    environment: Mapping[str, str] = {}
    if options.auth_type == CREDENTIAL:
        environment = {"OS_APPLICATION_CREDENTIAL_SECRET": options.get("application_credential_secret")}
    if options.get("ca_data") and not options.get("cacert"):
        environment = {**environment, "KEYSTONE_CA": options.get("ca_data")}
    return Login(words(flags), environment)


# --- credential create


def _credential(arguments: list[str]) -> None:
    from kubectl_keystone_auth import credentials
    from kubectl_keystone_auth.keystone import Keystone

    values = ("namespace", "rule", "role", "expires", "output", "context", "kubeconfig")
    words = Words(arguments, values, ("read-only", "exec"))
    if words.names[:1] != ["create"] or len(words.names) != 2:
        raise BadInput("the command is: credential create NAME; --help lists its flags")
    if words.one("output") not in ("", "json"):
        raise BadInput("--output: json, or nothing for lines that a shell reads")
    wanted = credentials.rules(
        words.several("namespace"),
        read_only=words.has("read-only"),
        doors=words.has("exec"),
        more=words.several("rule"),
    )
    expires = credentials.expiry(words.one("expires"))
    options = _of_context(words, sourced=True)
    conversation = Conversation(options.verbose, options.secrets())
    token = log_in(options, terminal.present(), conversation)
    conversation.hide(token.value)
    keystone = Keystone(options, conversation)
    made = credentials.make(keystone, token, words.names[1], wanted, words.several("role"), expires)
    for rule in wanted:
        print(f"# {rule.method:<6} {rule.path}", file=sys.stderr)
    found = {
        "OS_AUTH_TYPE": CREDENTIAL,
        "OS_AUTH_URL": keystone.url,
        "OS_APPLICATION_CREDENTIAL_ID": made.id,
        "OS_APPLICATION_CREDENTIAL_SECRET": made.secret,
    }
    if words.one("output") == "json":
        print(json.dumps({**found, "name": made.name, "project_id": made.project_id, "expires_at": made.expires}))
        return
    for name, value in found.items():
        print(f"export {name}={shlex.quote(value)}")
