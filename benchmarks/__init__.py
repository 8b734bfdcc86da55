"""Ours and upstream's authenticator side by side on this machine: `python3 -m benchmarks`.

`servers` starts what is measured, `work` makes the reviews with what their answers must say, `client/` (Go) sends them,
`measure` takes the figures in interleaved slices, `inside` takes those that need no server, `report` prints them.
Programs of their own, about ours alone: `soak` (a day in ten minutes), `start`, `sizing`, `sync`.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from testbed.cache import TestbedError

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
sys.path.insert(0, str(SOURCE))  # the authenticator is not installed in the development environment


def program(main: Callable[[], int]) -> NoReturn:
    """Run a benchmark as a program: an order to end it ends all that it started, and what goes wrong is one line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except TestbedError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
