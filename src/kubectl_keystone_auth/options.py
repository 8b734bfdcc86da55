"""What login is asked for: flags first, then the environment, under OpenStack's own option names.

Read by hand: argparse would cost half of what a call with a token at hand costs in all. Flags are those of upstream's
client-keystone-auth, the same beside them for what that does not know, and any option of keystoneauth1 as `--os-…`.
What kubectl says of the call is read here too.
"""

from __future__ import annotations

import os

from kubectl_keystone_auth.errors import BadInput

PASSWORD = "password"  # noqa: S105 - the name of a way to log in
CREDENTIAL = "v3applicationcredential"
WEBSSO = "v3websso"
"""Single sign-on in a browser, under the name and with the options of keystoneauth-websso."""

RENAMED = {
    "keystone_url": "auth_url",
    "user_name": "username",
    "tenant_name": "project_name",
    "tenant_id": "project_id",
}
"""Names that flags or older environments use, and what OpenStack calls the same today."""
PLAIN = frozenset(
    (
        "auth_url",
        *("username", "user_id", "user_domain_name", "user_domain_id", "password"),
        *("project_name", "project_id", "project_domain_name", "project_domain_id"),
        *("domain_name", "domain_id"),
        *("application_credential_id", "application_credential_name", "application_credential_secret"),
        *("cert", "key", "cacert", "insecure"),
    )
)
"""What goes without `--os-` as well."""
COMMON = frozenset(
    (
        *("auth_type", "cloud", "default_domain", "default_domain_id", "default_domain_name"),
        *("region_name", "interface", "endpoint_type", "identity_api_version", "project_name", "project_id"),
    )
)
"""What OpenStack's clients take with any login, as `--os-…`; some of it without effect here."""
IGNORED = ("vmodule", "log_flush_frequency")
"""Flags that every Go program of Kubernetes has; taken with their value, without effect."""
OTHER_DOMAINS = ("user_domain_name", "user_domain_id", "project_domain_name", "project_domain_id")
OUTDONE = {
    "username": ("user_id",),
    "user_id": ("username",),
    "project_name": ("project_id",),
    "project_id": ("project_name",),
    "user_domain_name": ("user_domain_id",),
    "user_domain_id": ("user_domain_name",),
    "project_domain_name": ("project_domain_id",),
    "project_domain_id": ("project_domain_name",),
    "domain_name": ("domain_id", *OTHER_DOMAINS),
    "domain_id": ("domain_name", *OTHER_DOMAINS),
    "application_credential_id": ("application_credential_name",),
    "application_credential_name": ("application_credential_id",),
}
"""What a flag says, the environment does not say otherwise under these names."""
CREDENTIAL_FLAGS = ("application_credential_id", "application_credential_name")
LOGIN_FLAGS = ("username", "user_id", "password", "application_credential_secret", *CREDENTIAL_FLAGS)
UNUSUAL = ("trust_id", "system_scope", "auth_methods", "passcode")
"""With one of these a password is not all that there is to a login, and keystoneauth1 is asked."""
SECRET_ALONE = frozenset(
    (
        *("token", "v3token", "v2token", "admin_token", "v3oidcaccesstoken", "v3oidcauthcode"),
        *("v3kerberos", "kerberos", "v3tokenlessauth", "http_basic", "noauth", "none"),
    )
)
"""Ways in which nothing but a secret, or what lies outside, says who logs in: their tokens are not kept."""


class Options:
    """What was asked for.

    `given` maps OpenStack's option names (`auth_url`, `project_name`, …) to texts, `found` the same to what a cloud's
    file said, once it was read. `auth_type` is how to log in; empty where a cloud of clouds.yaml says it. No dataclass:
    those cost as much as the interpreter itself.
    """

    __slots__ = ("auth_type", "found", "given", "keep", "verbose")

    def __init__(self, given: dict[str, str], auth_type: str, *, verbose: bool = False, keep: bool = True) -> None:
        self.given = given
        self.found: dict[str, str] = {}
        self.auth_type = auth_type
        self.verbose = verbose
        self.keep = keep

    def get(self, *names: str) -> str:
        """Give the first of these options that has a value, or an empty text."""
        for name in names:
            if value := self.given.get(name) or self.found.get(name):
                return value
        return ""

    @property
    def simple(self) -> bool:
        """Whether it is one of the two ways that need no keystoneauth1."""
        return self.auth_type in (PASSWORD, CREDENTIAL)

    @property
    def insecure(self) -> bool:
        """Whether an unencrypted or unverified connection to Keystone will do."""
        return truth(self.get("insecure"))

    def secrets(self) -> list[str]:
        """Give all the secrets that were given, for masking."""
        return [value for name, value in self.given.items() if secret(name) and value]

    def cacheable(self) -> bool:
        """Whether it can be told without a secret who logs in."""
        return self.keep and self.auth_type not in SECRET_ALONE

    def login(self) -> str:
        """Name the login, on one line of ASCII: where, how, who, for which project; never a secret."""
        if self.auth_type == CREDENTIAL:
            names = ("application_credential_id",)
            if not self.get("application_credential_id"):
                names = ("application_credential_name", "user_id", "username", *DOMAINS)
        elif self.auth_type == PASSWORD:
            names = ("user_id", "username", "project_id", "project_name", *DOMAINS)
        else:
            names = tuple(sorted(name for name in self.given if not secret(name)))
        where = base_url(self.get("auth_url")) if self.simple else ""
        told = [(name, self.given[name]) for name in names if self.given.get(name)]
        state = _clouds() if not self.auth_type else []
        return ascii((where, self.auth_type, told, state))


DOMAINS = (
    "user_domain_id",
    "user_domain_name",
    "domain_id",
    "domain_name",
    "project_domain_id",
    "project_domain_name",
    "default_domain_id",
    "default_domain_name",
    "default_domain",
)


def secret(name: str) -> bool:
    """Whether the value of an option of this name is a secret."""
    return (
        any(word in name for word in ("password", "secret", "passcode"))
        or name in ("token", "code")
        or name.endswith("_token")
    )


def truth(value: str) -> bool:
    """Read a switch as OpenStack's clients do."""
    return value.strip().lower() in ("1", "t", "true", "y", "yes", "on")


def base_url(url: str) -> str:
    """Give Keystone's URL with the version in it: `/v3` is added where there is none."""
    url = url.strip().rstrip("/")
    if url.endswith("/v2.0"):
        url = url[:-5]
    return url if not url or url.endswith("/v3") else f"{url}/v3"


def read(arguments: list[str], environment: os._Environ[str] | dict[str, str]) -> Options:
    """Read the flags and the environment.

    Raises:
        BadInput: a flag that nobody knows, or one without its value.

    """
    flags, verbose, keep = _flags(arguments)
    given = {name[3:].lower(): value for name, value in environment.items() if name[:3] == "OS_" and value}
    for old, name in RENAMED.items():
        if old in given:
            given.setdefault(name, given.pop(old))
    for name in flags:
        for outdone in OUTDONE.get(name, ()) if flags[name] else ():
            given.pop(outdone, None)
    login = any(flags.get(name) for name in LOGIN_FLAGS)
    # Whoever names a login by flags does not mean what some file has been sourced for.
    if login:
        given.pop("auth_type", None)
    if (login or flags.get("auth_type") or flags.get("auth_url")) and not flags.get("cloud"):
        given.pop("cloud", None)
    elif flags.get("cloud") or given.get("cloud"):
        # What a cloud of clouds.yaml lacks, the environment does not add: so do OpenStack's own clients.
        given = {"cloud": given.get("cloud", "")}
    given.update((name, value) for name, value in flags.items() if value)
    if (authority := environment.get("KEYSTONE_CA")) and not flags.get("cacert") and not given.get("cloud"):
        # The CA itself, in a kubeconfig that is to be whole; the shell's OS_CACERT may be another cloud's.
        given["ca_data"] = authority
        given.pop("cacert", None)
    options = Options(given, _auth_type(given, flags), verbose=verbose, keep=keep)
    if options.simple:
        for name in flags:
            if name not in PLAIN and name not in COMMON:
                raise BadInput(f"the flag '--os-{name.replace('_', '-')}' says nothing to this way of logging in")
    return options


def _auth_type(given: dict[str, str], flags: dict[str, str]) -> str:
    if given.get("cloud"):
        return ""
    if any(flags.get(name) for name in CREDENTIAL_FLAGS):
        guessed = CREDENTIAL
    elif flags.get("username") or flags.get("user_id"):
        guessed = PASSWORD
    else:
        guessed = CREDENTIAL if any(given.get(name) for name in CREDENTIAL_FLAGS) else PASSWORD
    wanted = given.get("auth_type") or guessed
    if wanted in (PASSWORD, "v3password"):
        return "v3password" if any(given.get(name) for name in UNUSUAL) else PASSWORD
    return wanted


def _flags(arguments: list[str]) -> tuple[dict[str, str], bool, bool]:
    """Read flags, as Go's do: `--name=value`, `--name value`, `_` for `-`."""
    found: dict[str, str] = {}
    verbose, keep = False, True
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        if flag in ("-v", "--v", "--verbose") or (flag[:2] == "-v" and flag[2:].isdecimal()):
            level = value or (flag[2:] if flag[:2] == "-v" else "")
            if not level and rest and rest[0].isdecimal():
                level = rest.pop(0)
            verbose = level != "0"
            continue
        if flag == "--no-cache":
            keep = False
            continue
        option = RENAMED.get(name, name)
        openstack = name[:3] == "os_"
        if openstack:
            option = RENAMED.get(name[3:], name[3:])
        if flag[:2] != "--" or not (openstack or option in PLAIN or name in IGNORED):
            # What is no flag may be the secret of someone who forgot the flag.
            what = f"the flag {flag!r}" if flag[:1] == "-" else "an argument that is no flag"
            raise BadInput(f"{what} is not known; --help lists what is")
        if option == "insecure":
            value = value or "true"
        elif not equals:
            if not rest:
                raise BadInput(f"{flag} needs a value")
            value = rest.pop(0)
        if name not in IGNORED:
            found[option] = value
    return found, verbose, keep


def _clouds() -> list[tuple[str, int, int]]:
    """Tell the state of the files that say what a cloud is, so that a change of them is another login."""
    home = os.path.expanduser("~")
    folders = ["", os.path.join(home, ".config", "openstack"), "/etc/openstack"]
    folders += [os.path.join(home, "Library", "Application Support", "openstack")]
    if os.environ.get("XDG_CONFIG_HOME"):
        folders.append(os.path.join(os.environ["XDG_CONFIG_HOME"], "openstack"))
    if os.environ.get("LOCALAPPDATA"):
        folders.append(os.path.join(os.environ["LOCALAPPDATA"], "OpenStack", "openstack"))
    names = [f"{name}.{kind}" for name in ("clouds", "secure") for kind in ("yaml", "yml", "json")]
    paths = [os.path.join(folder, name) for folder in folders for name in names]
    paths += [os.environ.get(name, "") for name in ("OS_CLIENT_CONFIG_FILE", "OS_CLIENT_SECURE_FILE")]
    found = []
    for path in paths:
        try:
            state = os.stat(path)
        except OSError:
            continue
        found.append((os.path.abspath(path), state.st_mtime_ns, state.st_size))
    return found


class Question:
    """What kubectl asks: the version to answer in, and whether it lends its terminal."""

    __slots__ = ("interactive", "version")

    def __init__(self, version: str, interactive: bool) -> None:
        self.version = version
        self.interactive = interactive


GROUP = "client.authentication.k8s.io/"
_USUAL = {
    f'{{"kind":"ExecCredential","apiVersion":"{GROUP}{version}","spec":{{"interactive":{word}}}}}': (version, value)
    for version in ("v1", "v1beta1")
    for word, value in (("false", False), ("true", True))
}
"""What kubectl says where the kubeconfig asks for nothing more: told without a JSON parser."""


def question(environment: os._Environ[str] | dict[str, str]) -> Question | None:
    """Read KUBERNETES_EXEC_INFO; None where there is none.

    Raises:
        BadInput: it is not what kubectl writes.

    """
    text = environment.get("KUBERNETES_EXEC_INFO", "").strip()
    if not text:
        return None
    if text in _USUAL:
        return Question(*_USUAL[text])
    import json

    try:
        info = json.loads(text)
        kind, api_version, spec = info["kind"], info["apiVersion"], info.get("spec") or {}
        interactive = spec.get("interactive", False) is True
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput("KUBERNETES_EXEC_INFO is not an ExecCredential, which kubectl writes there") from None
    if kind != "ExecCredential" or api_version not in (f"{GROUP}v1", f"{GROUP}v1beta1"):
        raise BadInput(
            f"KUBERNETES_EXEC_INFO asks for {kind!r} of {api_version!r}; "
            f"this answers ExecCredential of {GROUP}v1 and v1beta1 (apiVersion in the kubeconfig's exec section)"
        )
    return Question(api_version[len(GROUP) :], interactive)
