"""axe-core finds nothing serious in any tab, light or dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.demo.screens import PHONE, TABS, open_tab

pytestmark = pytest.mark.browser
_WIDTHS = {"wide": 1440, "phone": PHONE[0]}


def findings(page: Any) -> list[str]:
    """Return the serious and critical findings in what is visible, without Gradio's toast."""
    violations = Axe().run(page, context={"exclude": [[".toast-wrap"]]}).response["violations"]
    return [
        f"{violation['id']}: {node['target']} {node['html'][:120]}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def test_axe_finds_what_is_wrong(visit: Callable[..., Any], sample_url: str) -> None:
    page = visit(sample_url)
    page.wait_for_selector(".story-card")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: #bbb; background: "
                  "white\">faint</p><button></button>')")  # fmt: skip
    assert {finding.partition(":")[0] for finding in findings(page)} == {
        "color-contrast",
        "button-name",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theme", "width"),
    [("light", "wide"), ("dark", "phone"), pytest.param("dark", "wide", marks=pytest.mark.long)],
)
def test_no_tab_has_a_serious_finding(
    visit: Callable[..., Any], sample_url: str, theme: str, width: str
) -> None:
    page = visit(f"{sample_url}?__theme={theme}", width=_WIDTHS[width])
    page.wait_for_selector(".story-card")
    wrong: list[str] = []
    for tab in TABS:
        open_tab(page, tab)
        if tab == "Train":
            for accordion in ("#new-run", "#own-data"):
                page.locator(f"{accordion} button").first.click()
        page.wait_for_timeout(1500)
        wrong += [f"{tab}: {finding}" for finding in findings(page)]
    open_tab(page, "Compare")  # a refused question, with empty answers
    page.get_by_label("Own picture", exact=True).check()
    page.locator("#ask").click()
    page.wait_for_selector("#compare-note .note-warn")
    wrong += [f"refusal: {finding}" for finding in findings(page)]
    assert not wrong, "\n".join(wrong)
