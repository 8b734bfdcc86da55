"""The test bed's browser does what a person would see and keep, and reaches nothing but this machine."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Error

from testbed.browser import page


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web site on loopback."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "index.html").write_text("<h1>Old</h1><script>document.querySelector('h1').textContent = 'New'</script>")
    (folder / "file.yaml").write_text("kind: Config\n")
    (folder / "link.html").write_text('<a download href="file.yaml">Take it</a>')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_pages_run_their_scripts_files_are_taken_and_nothing_else_is_reached(site: str, tmp_path: Path) -> None:
    with page() as seen:
        seen.goto(site)
        assert seen.inner_text("h1") == "New"
        seen.screenshot(path=tmp_path / "seen.png")
        seen.goto(f"{site}/link.html")
        with seen.expect_download() as found:
            seen.click("text=Take it")
        found.value.save_as(tmp_path / "taken.yaml")
        with pytest.raises(Error, match="ERR_NAME_NOT_RESOLVED"):
            seen.goto("http://site.example/")
    assert (tmp_path / "seen.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "taken.yaml").read_text() == "kind: Config\n"
