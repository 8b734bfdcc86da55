"""A token that is not at hand, or not good any more: one login, whoever else asks for it at the same time."""

from __future__ import annotations

import sys
import time

from kubectl_keystone_auth import terminal
from kubectl_keystone_auth.cache import Cache, Entry
from kubectl_keystone_auth.conversation import Conversation
from kubectl_keystone_auth.errors import BadInput, NoProject, PluginError, Refused, Unreachable
from kubectl_keystone_auth.options import WEBSSO, Options, Question
from kubectl_keystone_auth.store import Store, private
from kubectl_keystone_auth.tokens import Token


class Repeated(PluginError):
    """A failure that kubectl was told a moment ago, or that the login had which this call waited for."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def entry_for(options: Options, asked: Question | None, cache: Cache | None, began: float) -> Entry:
    """Give a token for kubectl.

    Args:
        options: the login.
        asked: what kubectl said.
        cache: where this login's token is kept; None where it is not.
        began: when this call began.

    Raises:
        PluginError: there is none; its kind says why.

    """
    conversation = Conversation(options.verbose, options.secrets())
    interactive = asked.interactive if asked else terminal.present()
    if cache is None:
        return log_in(options, interactive, conversation).entry()
    store = Store(cache.place, cache.login)
    known = store.entry()
    with store.lock():
        entry = store.entry()
        twice = entry is not None and store.refused(entry)
        if entry and entry.fresh() and ((known and entry.token != known.token) or not twice):
            conversation.say("* a token is at hand; --no-cache logs in anew")
            return entry
        try:
            # A person who tries again means it. Whoever has a token need not wait for Keystone where others just did.
            if failure := store.failure(began if asked else None, Unreachable.code if entry else None):
                raise Repeated(*failure)
            if options.auth_type == WEBSSO and asked:
                # Not by itself: kubectl asks several times, and programs run it that nobody looks at.
                raise BadInput(
                    "nobody is logged in: `kubectl keystone-auth login` opens the browser (--browser for long)"
                )
            fresh = log_in(options, interactive, conversation).entry()
        except PluginError as error:
            verdict = error.code in (Refused.code, NoProject.code)
            if not isinstance(error, Repeated):
                if verdict:
                    store.drop()
                store.fail(error.code, str(error))
            if entry and entry.alive() and (error.code == Unreachable.code or not (verdict or twice)):
                # It is only to be renewed, or Keystone is away: the API server can say better than we can whether it is
                # still good.
                conversation.say(f"* {error}; the token at hand has not ended")
                return entry
            raise
        store.put(fresh)
    if not private(store.place):
        conversation.say(f"* the token is not kept: {store.place} is not this user's alone, or cannot be made")
    return fresh


def log_in(options: Options, interactive: bool, conversation: Conversation) -> Token:
    """Log in by the way that was asked for; asks the user for what is missing where that is possible.

    Raises:
        PluginError: its kind says what is wrong.

    """
    try:
        terminal.complete(options, interactive)
        for secret in options.secrets():
            conversation.hide(secret)
        if options.simple:
            from kubectl_keystone_auth.keystone import Keystone

            token = Keystone(options, conversation).login()
        elif options.auth_type == WEBSSO:
            from kubectl_keystone_auth.websso import login

            token = login(options, interactive, conversation)
        else:
            from kubectl_keystone_auth.others import login

            token = login(options, interactive, conversation)
    except PluginError as error:
        raise type(error)(conversation.masked(str(error))) from None
    if not token.project_id:
        raise NoProject(
            "the token is not for a project, so that no cluster would take it: give --project-name or --project-id"
        )
    if abs(token.skew) > 300:
        way = "ahead of" if token.skew > 0 else "behind"
        minutes = abs(token.skew) / 60
        sys.stderr.write(
            f"kubectl-keystone-auth: this machine's clock is {minutes:.0f} minutes {way} Keystone's: set it\n"
        )
    if token.entry().expires <= time.time():
        raise Unreachable("Keystone gave a token that has ended already")
    return token
