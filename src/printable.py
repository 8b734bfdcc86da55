"""Texts that others chose, fit for a line of a status, a log or a table: they cannot move a terminal's cursor there."""

from __future__ import annotations


def printable(text: str) -> str:
    """Give the text in one line, as it is or, where something in it is not to be printed, as Python writes it."""
    return text if text.isprintable() else ascii(text)
