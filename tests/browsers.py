"""A real browser, headless: started, sized, lit by day or night, and asked what it shows and requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMEDRIVER = shutil.which("chromedriver")
_LACKS = (
    "selenium drives the browser: pip install newsdesk[dev]"
    if find_spec("selenium") is None
    else "no chromium here: apt-get install chromium chromium-driver"
    if CHROMEDRIVER is None
    else ""
)
NEEDS_BROWSER = pytest.mark.skipif(bool(_LACKS), reason=_LACKS)

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PHONE, DESK = 360, 1440
"""Widths, in pixels."""


@contextmanager
def started_browser(profile: Path, *, downloads: Path | None = None) -> Iterator[Any]:
    """A browser that keeps what its console says and what it asks of any network."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    if downloads is not None:
        allowed = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    try:
        yield driver
    finally:
        driver.quit()


def look(browser: Any, page: str, width: int, theme: str = "light", *, height: int = 900) -> None:
    """Open the page so wide, in that theme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page)


def asked_for(browser: Any) -> list[str]:
    """The addresses of all that was requested since this, or the log, was last asked."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def fits(browser: Any) -> bool:
    """Whether the page needs no scrolling sideways."""
    return bool(
        browser.execute_script("const e = document.documentElement; return e.scrollWidth <= e.clientWidth")
    )


CONTRASTS = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgb = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const over = (top, below) => {
  const a = top[3] / 255; return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a)).concat(255);
};
const ground = e => {
  const layers = [];
  for (; e; e = e.parentElement) layers.unshift(rgb(getComputedStyle(e).backgroundColor));
  return layers.reduce((below, top) => over(top, below), [255, 255, 255, 255]);
};
const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = colour => colour.slice(0, 3).map(v => linear(v / 255))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !e.getClientRects().length) continue;
  if (e.closest('.skip, title, desc')) continue;
  const style = getComputedStyle(e);
  const ink = light(rgb(e.closest('svg') ? style.fill : style.color)), paper = light(ground(e));
  const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  found.push([ratio, e.className.baseVal ?? e.className, walker.currentNode.data.slice(0, 30)]);
}
return found.sort((a, b) => a[0] - b[0]);
"""
"""[contrast with its ground, class of its element, its beginning] of every text shown, least first."""
