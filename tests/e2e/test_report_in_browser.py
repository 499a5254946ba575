"""The report in a real browser: on a phone and on a desk, by day and by night, on paper and by keyboard."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsers import CONTRASTS, DESK, NEEDS_BROWSER, PHONE, asked_for, fits, look, started_browser
from newsdesk.prediction.explanation import WordWeight
from newsdesk.reports import parts as gathering
from newsdesk.reports.page import write_report
from report_runs import build_run

pytestmark = NEEDS_BROWSER

LONG = "Donaudampfschifffahrtsgesellschaftskapitaensmuetzenabzeichenpolitur"
NAMES = ("World", "Sports & Games", LONG, "</section><script>document.title = 'broken'</script>")


def report_of(folder: Path, name: str, names: tuple[str, ...], texts: list[str]) -> str:
    """The address of a full report: errors quoted with the words that decided."""
    made = build_run(folder / name, names=names, texts=texts)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(gathering, "explain", lambda _classifier, text, target: Explained(text))
    try:
        report = write_report(
            made.run,
            "test",
            texts=made.rows.texts,
            classifier=lambda: None,  # type: ignore[arg-type, return-value]
            out=folder / "report.html",
            plots=None,
            quote=True,
        )
    finally:
        monkeypatch.undo()
    return report.path.as_uri()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with long names, one text a single word of 900 letters."""
    folder = tmp_path_factory.mktemp("report")
    return report_of(folder, "a-run-with-a-name-of-some-length", NAMES, ["w" * 900] * 40)


@pytest.fixture(scope="module")
def right_to_left(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report on Arabic and Hebrew texts of classes that are named in these languages."""
    texts = [
        "أعلن الرئيس (اليوم) عن خطة بقيمة 12.5 مليار دولار",
        "ראש הממשלה הודיע היום, 3.5, על תוכנית חדשה!",
    ]
    return report_of(tmp_path_factory.mktemp("report"), "rtl", ("سياسة", "ספורט 2"), texts * 200)


class Explained:
    """What stands in for an explanation: the first word spoke for the class, the second against it."""

    def __init__(self, text: str) -> None:
        found = list(re.finditer(r"\S+", text))[:2]
        weights = (1.0, -0.5)
        self.words = tuple(
            WordWeight(word[0], word.start(), word.end(), weight)
            for word, weight in zip(found, weights, strict=False)
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser that keeps what its console says and what it asks of any network."""
    with started_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_opens_without_an_error_or_a_request_and_fits_the_screen(browser, page, width):
    browser.get_log("performance")
    look(browser, page, width)
    assert set(asked_for(browser)) == {page}
    assert browser.get_log("browser") == []
    assert browser.title == "a-run-with-a-name-of-some-length on test: newsdesk report"
    assert fits(browser)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('section, figure svg, .quote, .matrix')]"
        ".map(e => e.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    assert len(shown) > 8 + 6 + 10
    assert all(wide > 100 and high > 40 for wide, high in shown)


def test_the_type_of_charts_can_be_read_on_a_phone(browser, page):
    look(browser, page, PHONE)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height)"
    )
    assert len(heights) > 50
    assert min(heights) > 8


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_both_themes_can_be_read(browser, page, theme, dark):
    look(browser, page, DESK, theme)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert (brightness < 60) if dark else (brightness > 200)
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 300
    assert contrasts[0][0] >= 4.5, contrasts[0]  # WCAG 2.2, 1.4.3


def test_the_keyboard_reaches_every_part(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    look(browser, page, DESK)
    seen = []
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        seen.append(
            browser.execute_script(
                "const e = document.activeElement, style = getComputedStyle(e);"
                "return [e.tagName, e.getAttribute('href') || e.getAttribute('aria-labelledby')"
                "        || e.textContent, style.outlineStyle, parseFloat(style.outlineWidth)]"
            )
        )
    assert seen[0][:2] == ["A", "#content"]
    assert [name for tag, name, *_ in seen[1:9]] == [
        *("#figures", "#classes", "#confidence", "#errors"),
        *("#labels", "#training", "#origin", "#repeat"),
    ]
    assert {"by-class", "confused", "The numbers", "data"} <= {name for _, name, *_ in seen}
    ends = next(number for number, (tag, *_) in enumerate(seen) if tag == "PRE")
    assert all(style == "solid" and width >= 2 for _, _, style, width in seen[: ends + 1])


def test_the_numbers_behind_a_chart_open_by_the_space_bar(browser, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    look(browser, page, PHONE)
    details = browser.find_element(By.CSS_SELECTOR, "figure details")
    details.find_element(By.TAG_NAME, "summary").send_keys(Keys.SPACE)
    assert details.find_element(By.TAG_NAME, "table").is_displayed()
    assert fits(browser)


def test_it_prints_on_light_pages_with_no_chart_cut(browser, page):
    look(browser, page, DESK, "dark")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    pdf = base64.b64decode(printed)
    assert pdf.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    kept_whole = browser.execute_script(
        "return [...document.querySelectorAll('figure, .quote, .tile')]"
        ".map(e => getComputedStyle(e).breakInside)"
    )
    assert set(kept_whole) == {"avoid"}
    headings = browser.execute_script(
        "return [...document.querySelectorAll('h2, h3')].map(e => getComputedStyle(e).breakAfter)"
    )
    assert set(headings) == {"avoid"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


ORDER = """
const box = node => {
  const range = document.createRange(); range.selectNodeContents(node); return range.getBoundingClientRect();
};
return [...document.querySelectorAll('.verdict span')].filter(s => s.querySelector('bdi')).map(s => {
  const label = box(s.querySelector('bdi')), number = box(s.lastChild);
  return [label.right, number.left, label.top, number.top];
});
"""


def test_right_to_left_texts_and_labels_are_laid_out_in_their_direction(browser, right_to_left):
    look(browser, right_to_left, DESK)
    directions = browser.execute_script(
        "return [...document.querySelectorAll('blockquote')]"
        ".map(q => [getComputedStyle(q).direction, getComputedStyle(q).textAlign, q.lang])"
    )
    assert len(directions) >= 10
    assert {tuple(one) for one in directions} == {("rtl", "start", "ar"), ("rtl", "start", "he")}
    placed = browser.execute_script(ORDER)
    assert len(placed) >= 20
    # The probability stands to the right of its label, as in the rest of the English line.
    assert all(number >= label - 1 for label, number, *lines in placed if abs(lines[0] - lines[1]) < 5)
    assert fits(browser)
    assert browser.get_log("browser") == []


def test_the_file_is_small(page):
    assert Path(page.removeprefix("file://")).stat().st_size < 2_000_000
