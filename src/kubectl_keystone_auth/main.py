"""The front door: with a token at hand it answers kubectl; everything else is loaded when it is needed.

Without a command it is an exec credential plug-in, with one (`login`, `whoami`, …) a plug-in of kubectl's command line.
"""

from __future__ import annotations

import os
import sys
import time

from kubectl_keystone_auth.cache import Cache, Entry, folder
from kubectl_keystone_auth.errors import PluginError, printable
from kubectl_keystone_auth.options import GROUP, Question, question, read

NAME = "kubectl-keystone-auth"


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit code (`errors` says which is which)."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given and (given[0][:1] != "-" or given[0] in ("-h", "--help", "--version")):
            from kubectl_keystone_auth.commands import run

            return run(given)
        return _credential(given)
    except PluginError as error:
        _complain(str(error))
        return error.code
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if any(word[:2] == "-v" or word == "--verbose" for word in given):
            _trace(error)
        # Without its text, which may hold anything.
        _complain(f"a fault of this plug-in, please report it with what -v shows: {type(error).__name__}")
        return 1


def _credential(arguments: list[str]) -> int:
    began = time.time()
    options = read(arguments, os.environ)
    asked = question(os.environ)
    cache = Cache(folder(), options.login()) if options.cacheable() else None
    entry = cache.entry() if cache else None
    if cache is None or entry is None or options.verbose or not entry.fresh() or cache.refused(entry):
        from kubectl_keystone_auth.fresh import entry_for

        entry = entry_for(options, asked, cache, began)
    _answer(asked, entry)
    if cache is not None:
        cache.handed()
    return 0


def _answer(asked: Question | None, entry: Entry) -> None:
    # Who asks without saying in which version is an old kubectl, or a person: they get what upstream's plug-in gives.
    version = asked.version if asked else "v1beta1"
    # It is to ask again when the token is to be renewed; where it could not be, when it ends.
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.renew if entry.fresh() else entry.expires))
    # A token that `cache.usable` let pass needs no escaping.
    sys.stdout.write(
        f'{{"apiVersion":"{GROUP}{version}","kind":"ExecCredential",'
        f'"status":{{"token":"{entry.token}","expirationTimestamp":"{end}"}}}}\n'
    )
    sys.stdout.flush()


def _complain(message: str) -> None:
    sys.stderr.write(f"{NAME}: {printable(' '.join(message.split()))}\n")


def _trace(error: BaseException) -> None:
    """Say where it happened, without any text or value that may be a secret."""
    import traceback

    for frame in traceback.extract_tb(error.__traceback__):
        sys.stderr.write(f"{frame.filename}:{frame.lineno} {frame.name}\n")


if __name__ == "__main__":
    sys.exit(main())
