"""A real browser without a screen: Chromium, driven by Playwright, for what people do in one.

It reaches this machine's loopback and nothing else, has a profile of its own, and ends with the context. Certificates
are taken as they are: the test bed's authorities are nobody's to trust.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from playwright.sync_api import BrowserContext, Page, sync_playwright

from testbed import setup
from testbed.cache import Run

DEADLINE = 60_000.0  # milliseconds that a page or an element is waited for; a busy machine takes several seconds
FLAGS = (
    # Whatever it would like to fetch besides: nothing leaves the machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
    "--no-proxy-server",
)


@contextlib.contextmanager
def browser() -> Iterator[BrowserContext]:
    """A browser with an empty profile; all its pages share cookies.

    Playwright's synchronous interface keeps an event loop in this thread: no asynchronous test can run meanwhile.
    """
    run = Run("browser")
    try:
        with sync_playwright() as playwright:
            started = playwright.chromium.launch(
                executable_path=setup.chromium(),
                args=list(FLAGS),
                chromium_sandbox=False,  # it cannot have one where it runs as root
                env={"HOME": str(run.folder), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                downloads_path=run.folder,
            )
            try:
                context = started.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 800})
                context.set_default_timeout(DEADLINE)
                yield context
                context.close()
            finally:
                started.close()
    finally:
        run.remove()


@contextlib.contextmanager
def page() -> Iterator[Page]:
    """One page of a browser of its own: `goto`, `fill`, `click`, `screenshot(path=…)`.

    A file that a click gives: `with page.expect_download() as found: page.click(…)`, then `found.value.save_as(…)`.
    """
    with browser() as opened:
        yield opened.new_page()
