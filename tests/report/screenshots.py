"""Pictures of a report, for the documentation.

    python tests/report/screenshots.py --report=both.html --output=docs/diagnosing \
        --sections=top,training,pairs,neighbours

Each section, by its name in the page's links, becomes `NAME.jpg`; `top` is the first
screen. `--size=phone` and `--dark` choose how the page is seen. Needs playwright (in
the extra `tests`) and Debian's `chromium`.
"""

import argparse
import pathlib
import shutil

from playwright import sync_api

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def shoot(
    report: pathlib.Path,
    output: pathlib.Path,
    sections: list[str],
    *,
    size: str,
    dark: bool,
) -> None:
    """Writes a JPEG of each section into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    width, height = SIZES[size]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        page.goto(report.absolute().as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        # The links stay at the top of the window, over what a section shows.
        page.add_style_tag(content="nav { position: static !important }")
        page.wait_for_timeout(1000)
        for section in sections:
            shown = page if section == "top" else page.locator(f"#{section}")
            path = output / f"{section}.jpg"
            shown.screenshot(path=path, type="jpeg", quality=80)
            print(path)
        browser.close()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--sections", default="top", help="comma-separated")
    parser.add_argument("--size", choices=SIZES, default="desktop")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    sections = given.sections.split(",")
    shoot(given.report, given.output, sections, size=given.size, dark=given.dark)


if __name__ == "__main__":
    main()
