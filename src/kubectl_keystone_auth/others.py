"""Every other way to log in that keystoneauth1 knows, and the clouds of clouds.yaml. Loaded only when asked for."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import requests
from keystoneauth1 import exceptions, loading
from keystoneauth1.session import Session

from kubectl_keystone_auth import terminal
from kubectl_keystone_auth.cache import usable
from kubectl_keystone_auth.conversation import Conversation
from kubectl_keystone_auth.errors import BadInput, PluginError, Refused, Unreachable, Untrusted
from kubectl_keystone_auth.keystone import DEADLINE, check_url, domain_of
from kubectl_keystone_auth.options import Options, secret
from kubectl_keystone_auth.tokens import Token


def login(options: Options, interactive: bool, conversation: Conversation) -> Token:
    """Log in.

    Raises:
        PluginError: its kind says what is wrong.

    """
    _let_tell(conversation)
    # Some ways print what the user is to do, and standard output is kubectl's.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            session = (
                _of_type(options, interactive) if options.auth_type else _of_cloud(options, interactive, conversation)
            )
            # A secret would go along with it.
            session.redirect = False
            plugin: Any = session.auth
            access = plugin.get_access(session)
            token = Token(
                access.auth_token,
                access.expires.timestamp(),
                user=access.username or "",
                user_id=access.user_id or "",
                user_domain=access.user_domain_name or "",
                project=access.project_name or "",
                project_id=access.project_id or "",
                project_domain=access.project_domain_name or "",
                project_domain_id=access.project_domain_id or "",
                roles=tuple(access.role_names),
            )
        except PluginError:
            raise
        except Exception as error:
            raise _told(error, options, conversation) from None
    if not usable(token.value):
        raise Unreachable("Keystone gave no token that can be used")
    return token


# --- an auth type, by options


def _of_type(options: Options, interactive: bool) -> Session:
    try:
        loader: Any = loading.get_plugin_loader(options.auth_type)
    except exceptions.NoMatchingPlugin:
        raise BadInput(f"{options.auth_type!r} is no way to log in (OS_AUTH_TYPE, --os-auth-type)") from None
    except Exception:
        # keystoneauth1 5.18 without lxml raises an AttributeError for SAML.
        raise _lacks(options.auth_type) from None
    if not loader.available:
        raise _lacks(options.auth_type)
    known = loader.get_options()
    _complete_domains(options)
    if url := options.get("auth_url"):
        check_url(url, options.insecure)

    def value(option: Any) -> str | None:
        names = [name.replace("-", "_") for name in (option.name, *(old.name for old in option.deprecated))]
        names += [option.dest]
        return options.get(*names) or None

    # What has a prompt is what a person is asked for by OpenStack's own clients: passwords and passcodes.
    missing = [option for option in known if (option.required or option.prompt) and value(option) is None]
    for option in missing if interactive and terminal.present() else ():
        name = option.name.replace("-", "_")
        options.given[name] = terminal.ask((option.prompt or name).rstrip(": "), hidden=secret(name))
    if missing := [option for option in missing if value(option) is None]:
        raise _missing(options.auth_type, missing)
    try:
        plugin = loader.load_from_options_getter(value)
    except exceptions.MissingRequiredOptions as error:
        raise _missing(options.auth_type, error.options) from None
    verify: bool | str = not options.insecure and (os.path.expanduser(options.get("cacert")) or True)  # noqa: PTH111
    if verify is True and options.get("ca_data"):
        verify = _as_file(options.get("ca_data"))
    certificate: Any = options.get("cert") or None
    if certificate and options.get("key"):
        certificate = (certificate, options.get("key"))
    return Session(auth=plugin, verify=verify, cert=certificate, timeout=DEADLINE)


def _as_file(text: str) -> str:
    """Put a CA where requests takes it from, until this call ends."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False) as file:
        file.write(text)
    atexit.register(os.unlink, file.name)
    return file.name


def _complete_domains(options: Options) -> None:
    """Say the domains of user and project, as for a password; to keystoneauth1 `domain_name` alone is a scope."""
    for whose, name in (("user", "username"), ("project", "project_name")):
        if options.get(name) and not options.get(f"{whose}_domain_id", f"{whose}_domain_name"):
            for kind, value in domain_of(options, whose).items():
                options.given[f"{whose}_domain_{kind}"] = value
    if options.get("project_id", "project_name"):
        for kind in ("id", "name"):
            options.given.pop(f"domain_{kind}", None)


# --- a cloud of clouds.yaml


def _of_cloud(options: Options, interactive: bool, conversation: Conversation) -> Session:
    from openstack.config import OpenStackConfig
    from openstack.exceptions import ConfigException

    name = options.get("cloud")

    def ask(prompt: str | None = None) -> str:
        # The options that openstacksdk asks for are passwords and passcodes.
        if not prompt or not (interactive and terminal.present()):
            return ""
        return terminal.ask(prompt.rstrip(": "), hidden=True)

    # What flags say beside the cloud's name counts more than what the file says.
    ours = ("cloud", "insecure")
    given: Any = {option: value for option, value in options.given.items() if option not in ours}
    if options.insecure:
        given["verify"] = False
    try:
        region = OpenStackConfig(pw_func=ask).get_one(cloud=name, **given)
        for option, value in (region.config.get("auth") or {}).items():
            if secret(str(option)) and isinstance(value, str):
                conversation.hide(value)
        url = (region.config.get("auth") or {}).get("auth_url")
        if isinstance(url, str) and url:
            check_url(url, options.insecure or region.config.get("verify") is False)
            options.found = {"auth_url": url}
            for name in ("application_credential_id", "application_credential_secret"):
                options.found[name] = str(region.config["auth"].get(name) or "")
            for name in ("cacert", "cert", "key"):
                options.found[name] = str(region.config.get(name) or "")
            options.found["insecure"] = str(region.config.get("verify") is False)
        session = region.get_session()
    except ConfigException as error:
        raise BadInput(f"the cloud {name!r} of clouds.yaml: {error}") from None
    session.timeout = DEADLINE
    return session


# --- what went wrong


def _told(error: Exception, options: Options, conversation: Conversation) -> PluginError:
    """Tell what an exception of keystoneauth1's means."""
    how = f"the cloud {options.get('cloud')!r}" if not options.auth_type else options.auth_type
    words = conversation.masked(str(getattr(error, "message", "") or error)).partition("\n")[0]
    words = re.sub(r" \((HTTP \d+|Request-ID: [^)]*)\)", "", words)
    if isinstance(error, exceptions.SSLError):
        reason = re.search(r"certificate verify failed: ([^('\]]+)", words)
        told = reason[1].strip() if reason else words[:200]
        return Untrusted(f"the certificate is not trusted ({told}); OS_CACERT or cacert in clouds.yaml names the CA")
    words = words.partition(": HTTP")[0][:300]
    if isinstance(error, (exceptions.Unauthorized, exceptions.NotFound, exceptions.Forbidden)):
        return Refused(f"Keystone refuses the login ({how}): {words}")
    if isinstance(error, exceptions.MissingRequiredOptions):
        return _missing(how, error.options)
    if isinstance(error, (exceptions.OptionError, exceptions.BadRequest, exceptions.AuthPluginException)):
        return BadInput(f"the login is not understood ({how}): {words}")
    if isinstance(error, (exceptions.ClientException, requests.RequestException, OSError)):
        return Unreachable(f"no answer that could be used ({how}): {words}")
    if isinstance(error, ImportError):
        return _lacks(how)
    return Unreachable(f"the login failed ({how}): {type(error).__name__}")


def _missing(how: str, options: Iterable[Any]) -> BadInput:
    names = ", ".join(f"OS_{option.name.replace('-', '_').upper()}" for option in options)
    return BadInput(f"missing for {how}: {names} (in the environment, or the same as a flag: --os-...)")


def _lacks(how: str) -> BadInput:
    extras = {"saml": "saml", "adfs": "saml", "kerberos": "kerberos"}
    name = next((extras[word] for word in extras if word in how), "")
    install = f": pip install 'kubectl-keystone-auth[{name}]' brings it" if name else ""
    return BadInput(f"{how} needs a Python package that is not installed{install}")


class _Masked(logging.Handler):
    """Shows what a library logs, without secrets."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__()
        self._conversation = conversation

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, if the conversation is to be shown."""
        self._conversation.say(f"* {record.getMessage()}")


def _let_tell(conversation: Conversation) -> None:
    """Let the libraries tell of their requests through the mask, and nowhere else."""
    for name in ("keystoneauth", "openstack", "urllib3", "stevedore"):
        logger = logging.getLogger(name)
        logger.handlers = [_Masked(conversation)]
        logger.propagate = False
        if name == "keystoneauth" and conversation.verbose:
            logger.setLevel(logging.DEBUG)
