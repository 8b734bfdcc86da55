"""What an option or a parameter names and must not hold itself: a Juju secret, or a file of root's on the unit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ops

import files
import which_juju
from errors import ConfigError

MOST_BYTES = 64 * 1024


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
    path = Path(value)
    try:
        found = private(option, path)
        if not path.is_file() or found.st_size > MOST_BYTES:
            raise ConfigError(option, f"{path} is no file of less than {MOST_BYTES // 1024} KiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(option, f"{path}: {error.strerror}; the file has to be on every unit") from None
    except UnicodeDecodeError:
        raise ConfigError(option, f"{path} is not a text in UTF-8") from None


def private(option: str, path: Path) -> os.stat_result:
    """Look at a file that an option names.

    Raises:
        ConfigError: others than root may have read or written it.
        OSError: it is not there.
    """
    found = path.stat()
    if not files.is_private(found):
        raise ConfigError(option, f"{path} must be root's alone: chown root, chmod 600")
    return found


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
