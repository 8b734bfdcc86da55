"""What a status says: one line, of a length that a command's argument may have, and nothing that a terminal obeys."""

from __future__ import annotations

import told


def test_what_others_chose_moves_no_cursor_in_a_status():
    assert told.shown("who\x1b[2Jis \x00this\u202e?\nnext é") == "who [2Jis this ? next é"


def test_a_long_error_is_cut_and_says_so():
    cut = told.shown("word " * 10_000)
    assert len(cut) == told.MOST_TOLD + 1
    assert cut.endswith("…")
