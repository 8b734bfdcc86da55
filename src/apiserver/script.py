"""The script before each start of the API server, and the units around it. (To come.)"""

from __future__ import annotations

from pathlib import Path

from apiserver.model import Layout


def drop_in_path(layout: Layout) -> Path:
    """Where the drop-in lies that has systemd run the script."""
    return layout.place.unit_folder / f"{layout.service}.d/kubernetes-keystone.conf"
