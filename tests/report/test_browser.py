"""The page in a real browser: it asks for nothing, complains of nothing, and nothing overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llfc_core.report.compare import write_comparison
from llfc_core.report.page import write_page
from tests.report.browser import PROGRAM, Browser
from tests.report.planted import changed, results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no chromium (apt install chromium)"),
]

WIDTHS = (400, 1600)
OPEN = 'document.querySelectorAll("details").forEach(d => d.open = true)'

# Boxes of text and drawings that lie over each other, and what sticks out of the window; what
# scrolls in a container of its own is looked at within it.
OVERLAPS = """(() => {
  const seen = e => e.checkVisibility() && !e.closest(".hidden, .skip");
  const chosen = "h1,h2,h3,h4,p,table,figure,svg.drawing,summary,dt,dd,nav li,.legend li";
  const boxes = [...document.querySelectorAll(chosen)].filter(seen)
    .map(e => [e, e.getBoundingClientRect()]).filter(([e, r]) => r.width && r.height);
  const told = e =>
    e.tagName + "." + e.getAttribute("class") + ": " + e.textContent.trim().slice(0, 50);
  const found = [];
  for (const [e, r] of boxes) {
    if (!e.closest(".scroll, .canvas") && (r.left < -0.5 || r.right > innerWidth + 0.5))
      found.push("sticks out: " + told(e));
  }
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, ra] = boxes[i], [b, rb] = boxes[j];
    if (a.contains(b) || b.contains(a)) continue;
    const frame = e => (e.closest(".scroll, .canvas") || e).getBoundingClientRect();
    const fa = frame(a), fb = frame(b);
    const x = Math.min(fa.right, fb.right) - Math.max(fa.left, fb.left);
    const y = Math.min(fa.bottom, fb.bottom) - Math.max(fa.top, fb.top);
    if (x > 1 && y > 1 && a.closest(".scroll, .canvas") !== b.closest(".scroll, .canvas"))
      found.push(told(a) + " | " + told(b));
    else if (!a.closest(".scroll, .canvas") && !b.closest(".scroll, .canvas") && x > 1 && y > 1)
      found.push(told(a) + " | " + told(b));
  }
  return found;
})()"""

# Labels of one drawing that lie over each other.
LABELS = """(() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg.drawing")) {
    const boxes = [...svg.querySelectorAll("text")]
      .map(e => [e.textContent, e.getBoundingClientRect()]);
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
      const [a, ra] = boxes[i], [b, rb] = boxes[j];
      const x = Math.min(ra.right, rb.right) - Math.max(ra.left, rb.left);
      const y = Math.min(ra.bottom, rb.bottom) - Math.max(ra.top, rb.top);
      if (x > 2 && y > 3) found.push(svg.getAttribute("aria-labelledby") + ": " + a + " | " + b);
    }
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return write_page(results(folder, "mlp-mnist-spawn", "mlp-mnist-weight"), folder)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as browser:
        yield browser


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_loads_alone_and_without_complaint(
    browser: Browser, page: Path, dark: bool
) -> None:
    browser.open(page.as_uri(), 1600, dark=dark)
    assert browser.requests == [page.as_uri()]
    assert browser.problems == []
    assert browser.run("document.title") == "LLFC, phenomena as tests: quick scale"
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") != dark
    ink = "getComputedStyle(document.querySelector('svg.drawing text')).fill"
    assert browser.run(ink) != colour


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_or_overlaps(browser: Browser, page: Path, width: int) -> None:
    browser.open(page.as_uri(), width)
    browser.run(OPEN)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(OVERLAPS) == []
    assert browser.run(LABELS) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_two_results_compared(browser: Browser, tmp_path: Path, width: int) -> None:
    a = results(tmp_path, "mlp")
    other = changed(a, status="rejected", value=3.0) | {"scale": "paper"}
    comparison = write_comparison(a, other, ("a", "b"), tmp_path)
    browser.open(comparison.as_uri(), width)
    assert browser.requests == [comparison.as_uri()]
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(OVERLAPS) == []


def test_everything_is_open_in_print_and_colours_are_light(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri(), 794, dark=True)
    browser.run('document.querySelectorAll("details").forEach(d => d.open = false)')
    browser.call("Emulation.setEmulatedMedia", media="print")
    hidden = 'document.querySelector("details.setting:last-of-type svg.drawing").checkVisibility'
    seen = browser.run(f"{hidden}({{contentVisibilityAuto: true}})")
    assert seen
    body = "getComputedStyle(document.body)"
    assert browser.run(f"{body}.color") == "rgb(31, 36, 48)"
    assert browser.run("document.documentElement.scrollWidth") <= 794


def test_buttons_and_links_open_settings(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri(), 1600)
    closed = "document.querySelectorAll('details.setting:not([open])').length"
    browser.run('document.querySelector(`button[data-open=""]`).click()')
    assert browser.run(closed) == 2
    browser.run('document.querySelector(`button[data-open="1"]`).click()')
    assert browser.run(closed) == 0
    browser.run('document.querySelector(`button[data-open=""]`).click()')
    browser.open("about:blank", 1600)
    browser.open(f"{page.as_uri()}#setting-2", 1600)
    assert browser.run("document.getElementById('setting-2').open")
    # Followed on the page itself.
    browser.run('document.querySelector(`button[data-open=""]`).click()')
    assert browser.run(closed) == 2
    browser.run("document.querySelector('a[href=\"#setting-1\"]').click()")
    opened = "document.getElementById('setting-1').open"
    browser.call(  # the event comes after the script
        "Runtime.evaluate",
        expression=f"""new Promise(done => {{
            const look = () => {opened} ? done(true) : setTimeout(look, 10);
            look();
        }})""",
        awaitPromise=True,
    )
    assert browser.run(opened)
