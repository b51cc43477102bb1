"""The page in a browser: every chart drawn, values on hover, nothing fetched.

python -m pytest -m slow tests/report/test_browser.py
"""

import json
import os
import pathlib
import shutil

import pytest
import report_runs

from simclr_jax.report import job

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


class Opened:
    """A page, what it complained about and what it asked for."""

    def __init__(self, browser, path: pathlib.Path, size: str) -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            has_touch=size == "phone",
            is_mobile=size == "phone",
        )
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", self._take)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn]", timeout=60_000)

    def _take(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def check_fetched_nothing(self, path: pathlib.Path) -> None:
        others = [
            url for url in self.requests if not url.startswith(("data:", "blob:"))
        ]
        assert others == [path.as_uri()]
        assert not self.complaints

    def hover(self, chart: str, x: float = 0.6) -> str:
        """What a chart shows under the pointer."""
        element = self.page.locator(f"#{chart} .nsewdrag").first
        element.scroll_into_view_if_needed()
        box = element.bounding_box()
        at = box["x"] + x * box["width"], box["y"] + box["height"] / 2
        if self.page.evaluate("matchMedia('(pointer: coarse)').matches"):
            self.page.touchscreen.tap(*at)
        self.page.mouse.move(at[0] - 5, at[1])
        self.page.mouse.move(*at)
        self.page.wait_for_selector(f"#{chart} .hoverlayer text", timeout=10_000)
        return self.page.locator(f"#{chart} .hoverlayer").text_content()


def drawn(page) -> dict[str, int]:
    """Curves that are drawn, by chart."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".chart")]
          .filter((chart) => !chart.closest("details:not([open])"))
          .map((chart) => [chart.id, [...chart.querySelectorAll(
            ".scatterlayer .trace path")].filter(
              (path) => (path.getAttribute("d") || "").length > 5).length]))"""
    )


@pytest.mark.parametrize("size", SIZES)
def test_one_run(browser, size, tmp_path):
    run = report_runs.write(tmp_path / "run", steps=200, total=200)
    job.write([str(run)], None, images=False)
    path = run / "report.html"
    opened = Opened(browser, path, size)
    curves = drawn(opened.page)
    assert len(curves) >= 11
    assert all(curves.values()), curves
    for chart in ("chart-loss", "chart-held-out", "chart-learning-rate"):
        shown = opened.hover(chart)
        assert any(character.isdecimal() for character in shown), shown
    assert "loss : 5.0" in opened.hover("chart-loss")
    # No part is wider than the screen.
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    assert width <= SIZES[size][0]
    # Metrics that few need are drawn when they are asked for.
    opened.page.locator("#other-metrics summary").click()
    opened.page.wait_for_selector(
        "#other-metrics .trace path", state="attached", timeout=10_000
    )
    assert len(drawn(opened.page)) > len(curves)
    assert all(drawn(opened.page).values())
    opened.check_fetched_nothing(path)


def test_axis_zoom_and_colours_can_change(browser, tmp_path):
    run = report_runs.write(tmp_path / "run", steps=200, total=200)
    job.write([str(run)], None, images=False)
    opened = Opened(browser, run / "report.html", "desktop")
    page = opened.page
    read = "(id) => document.getElementById(id).{}"
    title = read.format("layout.xaxis.title.text")
    assert page.evaluate(title, "chart-loss") == "steps"
    page.locator("input[value=hours]").check()
    assert page.evaluate(title, "chart-loss") == "training hours"
    xs = page.evaluate(read.format("data[0].x"), "chart-loss")
    # 256 images: 20 s for the first step, 2 s for the others.
    assert xs[-1] == pytest.approx((20 + 2 * 199) / 3600, rel=0.01)
    page.locator("input[value=steps]").check()
    page.evaluate(
        """() => Plotly.relayout("chart-loss",
           {"xaxis.range[0]": 50, "xaxis.range[1]": 90})"""
    )
    page.wait_for_function(
        """() => document.getElementById("chart-rank").layout.xaxis.range?.[0] == 50"""
    )
    font = read.format("layout.legend.font.color")
    light = page.evaluate(font, "chart-loss")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        f"(light) => ({font})('chart-loss') !== light", arg=light, timeout=10_000
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 23, 27)"
    )
    assert not opened.complaints


def test_restarts_keep_the_colour_of_their_run(browser, tmp_path):
    """Also over hours, where a run without rates is not drawn."""
    runs = [
        report_runs.write(tmp_path / name, steps=20, total=20) for name in ("a", "b")
    ]
    for run, rates in zip(runs, (False, True), strict=True):
        lines = [report_runs.line(step, first=step == 11) for step in range(1, 21)]
        for line in lines:
            if not rates:
                del line["images_per_sec"]
        report_runs.log(run).write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    job.write([*map(str, runs)], str(tmp_path / "page.html"), images=False)
    page = Opened(browser, tmp_path / "page.html", "desktop").page
    colours = """(id) => [
        document.getElementById(id).data.map((one) => one.line.color),
        document.getElementById(id).layout.shapes.map((one) => one.line.color)]"""
    curves, restarts = page.evaluate(colours, "chart-rank")
    assert restarts == [curves[0], curves[2]]
    page.locator("input[value=hours]").check()
    assert page.evaluate(colours, "chart-rank") == [curves[2:], restarts[1:]]


@pytest.mark.parametrize("size", SIZES)
def test_hostile_names_run_nothing(browser, size, tmp_path):
    folders = [
        tmp_path / name.replace("/", "_")[:60]
        for name in report_runs.HOSTILE[:5]
        if "," not in name
    ]
    for folder in folders:
        report_runs.write(
            folder, steps=60, total=60, evaluation__test_split=os.fspath(folder)
        )
        with report_runs.log(folder).open("a") as log:
            hostile = dict.fromkeys(report_runs.HOSTILE, 1.0)
            log.write(json.dumps(report_runs.line(61, **hostile)) + "\n")
    path = tmp_path / "page.html"
    job.write([*map(str, folders)], str(path), images=False)
    opened = Opened(browser, path, size)
    shown = opened.hover("chart-loss")
    assert report_runs.HOSTILE[3][:20].replace("/", "_") in shown  # tags as text
    assert opened.page.locator("main img, main svg[onload]").count() == 0
    links = opened.page.locator("a").evaluate_all("all => all.map((a) => a.href)")
    assert all(link.startswith(path.as_uri() + "#") for link in links)
    assert opened.page.locator("svg a").count() == 0
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    assert width <= SIZES[size][0]
    assert all(drawn(opened.page).values())
    opened.check_fetched_nothing(path)


def test_the_page_prints(browser, tmp_path):
    run = report_runs.write(tmp_path / "run", steps=60, total=100)
    job.write([str(run)], None, images=False)
    opened = Opened(browser, run / "report.html", "desktop")
    opened.page.emulate_media(media="print", color_scheme="dark")
    background = "getComputedStyle(document.documentElement).getPropertyValue('--bg')"
    assert opened.page.evaluate(background).strip() == "#fbfbfa"
    assert opened.page.locator("nav").is_hidden()
    pdf = opened.page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert len(pdf) > 20_000
    assert not opened.complaints
