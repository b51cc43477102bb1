"""Links, files, commands and figures on the pages are right."""

import functools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
}
# Commands of others, and why no test runs them here.
ELSEWHERE = {
    "pip": "setup.sh installs the same",
    "tfds": "downloads",
    "git": "needs a remote",
    "source": "of the shell",
}


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    files = re.compile(
        r"`((?:simclr_jax|configs|launch|tests|docs|data|losses|models|runs|training|"
        r"weights|evaluation|config)/[\w./-]*(?:\.\w+|/))`"
    )
    missing = [
        name
        for name in files.findall(PAGES[page])
        if not (ROOT / name).exists() and not (ROOT / "simclr_jax" / name).exists()
    ]
    assert not missing


def test_the_index_lists_every_page():
    listed = set(re.findall(r"\]\(([\w.]+\.md)\)", PAGES["docs/README.md"]))
    assert listed == {path.name for path in DOCS.glob("*.md")} - {"README.md"}


def test_the_readme_is_short_and_counts_the_files_of_a_step():
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 170
    rows = re.findall(r"^\| \[`(.+?)`\]\(\1\) \| (\d+) \|", readme, re.M)
    assert len(rows) == 4
    for name, lines in rows:
        assert len((ROOT / name).read_text().splitlines()) == int(lines), name
    assert sum(int(lines) for _, lines in rows) <= 600


def commands(page: str) -> list[str]:
    """Commands of the page's bash blocks, continuations joined."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGES[page], re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


@functools.cache
def package_problems() -> dict[str, str]:
    """Messages for all commands of this package, '' for those that are fine."""
    lines = [
        line
        for page in PAGES
        for line in commands(page)
        if line.startswith("python -m simclr_jax.")
    ]
    parsed = [shlex.split(line, comments=True)[2:] for line in lines]
    parsed = [[name.removeprefix("simclr_jax."), *rest] for name, *rest in parsed]
    done = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).with_name("check_commands.py"))],
        input=json.dumps(parsed),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, json.loads(done.stdout), strict=True))


def script_problem(words: list[str]) -> str:
    """What is wrong with the call of a script of the checkout."""
    script = ROOT / words[1]
    if not script.is_file():
        return f"there is no {words[1]}"
    if script.suffix == ".sh":
        flags = []  # pytest's or a command's
    else:
        folder = script.parent.glob("*.py") if words[1].startswith("launch") else ()
        text = script.read_text() + "".join(path.read_text() for path in folder)
        flags = [word.partition("=")[0] for word in words[2:] if word[:2] == "--"]
        flags = flags[: flags.index("--")] if "--" in flags else flags
        flags = [flag for flag in flags if flag != "--help" and flag not in text]
    paths = [word for word in words[2:] if word.startswith("tests/")]
    missing = [path for path in paths if not (ROOT / path).exists()]
    return " ".join([*flags, *missing])


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"docs/launching.md"}))
def test_commands_are_right(page):
    wrong = {}
    for line in commands(page):
        words = shlex.split(line, comments=True)
        while words and "=" in words[0] and not words[0].startswith("-"):
            words = words[1:]
        if line.startswith("python -m simclr_jax."):
            problem = package_problems()[line]
        elif words[0] in ("bash", "python", "python3"):
            problem = script_problem(words)
        else:
            name = words[0].removeprefix(".venv/bin/")
            problem = "" if name in ELSEWHERE else f"{name} is not known"
        if problem:
            wrong[line] = problem
    assert not wrong
