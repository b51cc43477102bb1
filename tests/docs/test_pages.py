"""Links, files, commands and figures on the pages are right."""

import functools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from simclr_jax.config import identity, renamed
from simclr_jax.configs import base, distill, finetune

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
}
# Scripts that pages call, and the tests of what they run; test.sh runs the tests.
SCRIPTS = {
    "tests/benchmarks/accuracy.py": "tests/benchmarks/test_accuracy.py",
    "launch/smoke.sh": "tests/test_smoke.py",
    "launch/test.sh": "tests/conftest.py",
    "launch/setup.sh": "tests/launch/test_launch_hosts.py",
    "launch/tpu.py": "tests/launch/test_launch_tpu.py",
    "launch/hosts.py": "tests/launch/test_launch_hosts.py",
    "launch/gke.py": "tests/launch/test_launch_gke.py",
    "launch/slurm.py": "tests/launch/test_launch_slurm.py",
    "tests/messy_photos.py": "tests/weights/test_phone_photos.py",
    "tests/benchmarks/accelerator.py": "tests/benchmarks/test_accelerator.py",
}
CONFIG = {
    *identity.flatten(base.get_config()),
    *identity.flatten(finetune.get_config("cifar10,0.1")),
    *identity.flatten(distill.get_config("cifar10")),
}
GROUPS = {key.partition(".")[0] for key in CONFIG if "." in key}


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
        r"weights|evaluation|config)/[\w./-]*(?:\.\w+|/)|tests(?:/\w+)+)`"
    )
    missing = [
        name
        for name in files.findall(PAGES[page])
        if not (ROOT / name).exists() and not (ROOT / "simclr_jax" / name).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_config_keys_that_are_named_exist(page):
    text = PAGES[page]
    names = set(re.findall(r"--config\.(\w+(?:\.\w+)*)[=`]", text))
    for group, rest in re.findall(r"`(\w+)\.(\w+(?:\.\w+)*)(?: ?= ?[^`]*)?`", text):
        if group in GROUPS and rest not in ("py", "md", "json", "jsonl"):
            names.add(f"{group}.{rest}")
    assert names <= {*CONFIG, *GROUPS, *renamed.KEYS}


@pytest.mark.parametrize("page", PAGES)
def test_shell_commands_are_in_bash_blocks(page):
    openings = re.findall(r"^```(.*)$", PAGES[page], re.M)[::2]
    assert {*openings} <= {"bash", "python", "text", "dockerfile"}


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
    name = words[1]
    if name not in SCRIPTS or not (ROOT / name).is_file():
        return f"no test runs {name}"
    if name.endswith(".py"):
        scripts = [*(ROOT / "launch").glob("*.py"), ROOT / name]
        text = "".join(path.read_text() for path in scripts)
        own = words[2 : words.index("--")] if "--" in words else words[2:]
        flags = {word.partition("=")[0] for word in own if word.startswith("--")}
        wrong = [flag for flag in flags if f'"{flag}"' not in text]
        if name.startswith("launch") and len(words) > 2 and f'"{words[2]}"' not in text:
            wrong.append(words[2])
    else:
        paths = [word for word in words[2:] if word.startswith("tests/")]
        wrong = [path for path in paths if not (ROOT / path).exists()]
    return " ".join(wrong)


def pip_problem(words: list[str]) -> str:
    """What is wrong with an installation of this package; others need a mark."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[2:]:
        name, _, extra = word.rstrip("]").partition("[")
        if word.startswith("-") or word == ".":
            continue
        if name != "." or not {*extra.split(",")} <= {
            *project["optional-dependencies"]
        }:
            return f"{word}: not an extra of this package, and not marked"
    return ""


def problem(line: str) -> str:
    """What is wrong with a command; '' for one that is tested or marked as not run."""
    if line.startswith("python -m simclr_jax."):
        return package_problems()[line]
    if re.search(r"#.*\bnot run\b", line):
        return ""
    words = shlex.split(line, comments=True)
    while words and "=" in words[0]:  # variables
        words = words[1:]
    if words[0] in ("bash", "python", "python3"):
        return script_problem(words)
    if pathlib.Path(words[0]).name == "pip":
        return pip_problem(words)
    return "neither tested nor marked as not run"


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"docs/launching.md"}))
def test_commands_are_tested_or_marked(page):
    wrong = {line: problem(line) for line in commands(page) if problem(line)}
    assert not wrong


def test_the_scripts_of_the_launching_page_are_called_with_their_flags():
    # Its commands use shell variables and need clouds, which the page says.
    page = PAGES["docs/launching.md"]
    assert "Tested against fake tools, not against a real cloud" in page
    calls = re.findall(r"^python3 launch/.*$", page.replace("\\\n", " "), re.M)
    assert calls
    wrong = {x: script_problem(x.partition(" #")[0].split()) for x in calls}
    assert not {line: flags for line, flags in wrong.items() if flags}


def test_scripts_have_tests():
    assert all((ROOT / test).is_file() for test in SCRIPTS.values())
