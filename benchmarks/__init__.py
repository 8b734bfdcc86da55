"""Ours and upstream's authenticator side by side on this machine: `python3 -m benchmarks`.

`servers` starts what is measured, `work` makes the reviews with what their answers must say, `client/` (Go) sends them,
`measure` takes the figures in interleaved slices, `inside` takes those that need no server, `report` prints them.
Programs of their own, about ours alone: `soak` (a day in ten minutes), `start`, `sizing`.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
sys.path.insert(0, str(SOURCE))  # the authenticator is not installed in the development environment
