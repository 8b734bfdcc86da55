"""The machine's users and services, as far as no machine is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[3] / "src"


def test_python_without_distutils_is_enough():
    """3.12 has none, and an environment for development may have one of setuptools' making."""
    program = "import sys; sys.modules['distutils'] = None; import host; assert sys.modules['distutils'] is None"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=SOURCE, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
