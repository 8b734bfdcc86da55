"""What can go wrong, told apart by exit codes. Each message is one line: what, where, what to do."""


class PluginError(Exception):
    """The call ends with this message and code. The message holds no secret."""

    code = 1


class BadInput(PluginError):
    """Something is missing or cannot be used as it was given."""

    code = 2


class Refused(PluginError):
    """Keystone knows the login no good: name, secret, or what became of them."""

    code = 3


class NoProject(PluginError):
    """The login is good, but not for this project."""

    code = 4


class Unreachable(PluginError):
    """There was no verdict of Keystone's: it is away, or something else answers there."""

    code = 5


class Untrusted(PluginError):
    """Keystone's certificate is not trusted; nothing was sent."""

    code = 6


class ClockOff(PluginError):
    """This machine's clock is so wrong that nothing can be verified by it."""

    code = 7


def printable(text: str) -> str:
    """Give a text in one line that cannot move a terminal's cursor: there are names in it that others chose."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
