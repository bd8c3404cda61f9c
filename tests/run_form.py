"""A deployment's form in Prefect's UI, as a person fills it in Debian's Chromium."""

import re
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.browser import look_away

SCREEN = {"width": 1440, "height": 900}


class RunForm:
    """The form of a custom run.

    Args:
        url: of the Prefect UI.
        deployment: its id.
    """

    def __init__(self, page: Page, url: str, deployment: str) -> None:
        self.page = page
        page.goto(f"{url}/deployments/deployment/{deployment}/run")
        expect(self.submit).to_be_visible()

    @property
    def submit(self) -> Locator:
        return self.page.get_by_role("button", name="Submit")

    def field(self, title: str) -> Locator:
        label = self.page.locator(
            ".schema-form-property__label", has_text=re.compile(rf"^{re.escape(title)}( \(Opt.*)?$")
        )
        return self.page.locator(".schema-form-properties > .schema-form-property").filter(has=label)

    def titles(self) -> list[str]:
        """Of the fields, in their order."""
        return [
            text.removesuffix(" (Optional)")
            for text in self.page.locator(".schema-form-property__label").all_inner_texts()
        ]

    def fill(self, title: str, value: object) -> "RunForm":
        """Types a value; into a list as one more item."""
        field = self.field(title)
        add = field.get_by_role("button", name="Add item")
        if add.count():
            add.click()
        field.locator("input:not([type=checkbox]), textarea").last.fill(str(value))
        return self

    def choose_on_record(self, title: str, value: str) -> list[str]:
        """As `choose`, in a field that takes any text, too, and shows the choice as such."""
        self.field(title).get_by_role("button", name="On record").click()
        offered = self._chosen(title, value)
        expect(self.field(title).locator("textarea")).to_have_value(value)
        return offered

    def choose(self, title: str, value: str) -> list[str]:
        """Chooses from a drop-down and gives what there was to choose from."""
        offered = self._chosen(title, value)
        expect(self.field(title)).to_contain_text(value)
        return offered

    def _chosen(self, title: str, value: str) -> list[str]:
        control = self.field(title).locator(".p-select-button__control")
        control.evaluate("element => element.scrollIntoView({block: 'center'})")  # it closes where it has no room
        control.press("ArrowDown")
        options = self.page.locator(".p-select-option")
        expect(options.first).to_be_visible()
        offered = options.all_inner_texts()
        options.get_by_text(value, exact=True).click()
        return offered

    def start(self) -> dict[str, Any]:
        """Submits, again while the server says that it is busy, looks away and gives the run that it made."""
        for _ in range(10):
            with self.page.expect_response(lambda answer: answer.url.endswith("/create_flow_run")) as answer:
                self.submit.click()
            if answer.value.status != 503:
                break
        assert answer.value.status == 201, answer.value.text()
        run = answer.value.json()
        look_away(self.page)
        return run


def failure_on_screen(page: Page, url: str, run: str) -> tuple[str, str]:
    """What a run's page shows of its failure without scrolling: its log down to the first traceback, its details."""
    page.goto(f"{url}/runs/flow-run/{run}")
    first = page.locator(".log-level-label--error").first
    expect(first).to_be_visible()
    log = _in_view(page, ".log-row__content")
    page.locator("#details").first.click()
    expect(page.get_by_text("State Message")).to_be_visible()
    details = _in_view(page, ".p-key-value")
    look_away(page)
    return log.partition("Traceback")[0], details


def _in_view(page: Page, selector: str) -> str:
    """Text of the elements that begin on the screen."""
    inside = []
    for element in page.locator(selector).all():
        box = element.bounding_box()
        if box and 0 <= box["y"] < SCREEN["height"] - 30:
            inside.append(element.inner_text())
    return "\n".join(inside)
