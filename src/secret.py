"""What an option or a parameter names and must not hold itself: a Juju secret, or a file of root's on the unit."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import ops

import files
import which_juju
from errors import ConfigError

MOST_BYTES = 2**20


def read(model: ops.Model, option: str, value: str) -> str:
    """Give the content: a file's as it is, a Juju secret's keys and values as JSON.

    Args:
        model: whose secrets.
        option: the option, for messages.
        value: `secret:<ID>`, or the absolute path of a file.

    Raises:
        ConfigError: it cannot be read; nothing of it is in the text.
    """
    if value.startswith("secret:"):
        return json.dumps(granted(model, option, value))
    try:
        return of_file(option, value).decode()
    except UnicodeDecodeError:
        raise ConfigError(option, f"{value} is not a text in UTF-8") from None


def of_file(option: str, name: str, root: Path = Path("/")) -> bytes:
    """Read a file of root's that an option or a parameter names. What is judged is what is read: it is opened once.

    Args:
        option: that, for messages.
        name: its absolute path.
        root: the machine's root folder.

    Raises:
        ConfigError: it is not there, a link leads to it, it is too large, or others than root may have read or written
            it.
    """
    if not name.startswith("/"):
        raise ConfigError(option, f"{name!r} does not begin at the root: give a whole path, on the unit's machine")
    try:
        with files.open_plain(root, Path(name)) as stream:
            found = os.fstat(stream.fileno())
            # Whoever runs this is root, but in tests.
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise ConfigError(
                    option,
                    f"{name} is not root's alone (its mode is {stat.S_IMODE(found.st_mode):04o}): others may have read"
                    " it. Have what it holds changed, and write it anew with: install -m 600 /dev/stdin FILE",
                )
            content = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(option, f"{name} is not on this unit's machine") from None
    except OSError as error:
        raise ConfigError(option, f"{name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(option, f"{name!r} can be no file's name") from None
    except files.NotPlain as error:
        raise ConfigError(option, f"{error}; only a file that no link leads to is taken") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(option, f"{name} has more than {MOST_BYTES // 1024} KiB")
    return content


def granted(model: ops.Model, what: str, name: str) -> dict[str, str]:
    """Give the newest content of a secret that an operator has granted.

    Args:
        model: whose secrets.
        what: the option or parameter that names it, for messages.
        name: `secret:<ID>`.

    Raises:
        ConfigError: this Juju has no secrets, or this one may not be read.
    """
    if not which_juju.current().has_operators_secrets:
        raise ConfigError(what, "this Juju has no secrets (3.3 has): name a file of root's on the unit instead")
    try:
        return model.get_secret(id=name).get_content(refresh=True)
    except (ops.SecretNotFoundError, ops.ModelError) as error:
        why = str(error) or "not found, or not granted"
        raise ConfigError(what, f"{name} cannot be read: juju grant-secret {name} {model.app.name} ({why})") from None
