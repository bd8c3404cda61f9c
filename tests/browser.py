"""A real browser for the tests: Debian's Chromium."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

PATIENCE_MS = 300_000  # no test depends on how fast the machine is


@contextmanager
def chromium(*names: str, options: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser without any network but loopback, which it also finds under these names.

    Args:
        options: of Chromium's command line.
    """
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "the tests need chromium"
    ours = "".join(f"MAP {name} 127.0.0.1, " for name in names)
    rules = f"--host-resolver-rules={ours}MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", rules, *options])
        yield browser
        browser.close()


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """A context whose pages have patience. The options are Playwright's."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    return context


def look_away(page: Page) -> None:
    """Leaves what a page shows: Prefect's pages ask and draw all the time, a third of a core while tests wait."""
    page.goto("about:blank")
