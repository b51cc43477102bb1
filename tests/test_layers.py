"""Imports run downwards only, and TensorFlow stays inside the data layer."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import simclr_jax

PACKAGE = pathlib.Path(simclr_jax.__file__).parent
# From the bottom up. A package imports from its own layer only along `SAME_LAYER`.
LAYERS = (
    ("errors",),
    ("losses", "models", "optim"),
    ("data", "parallel"),
    ("training", "evaluation", "interop", "planning", "diagnosis", "preparation"),
    ("exporting",),
    (
        "command",
        "bench",
        "pretrain",
        "evaluate",
        "convert",
        "export",
        "prepare",
        "preview",
        "plan",
        "doctor",
        "finetune",
        "distill",
    ),
)
SAME_LAYER = {
    ("evaluation", "training"),
    ("interop", "training"),
    ("planning", "training"),
    ("diagnosis", "training"),
    ("bench", "command"),
    ("convert", "command"),
    ("export", "command"),
    ("pretrain", "command"),
    ("evaluate", "command"),
    ("prepare", "command"),
    ("preview", "command"),
    ("plan", "command"),
    ("doctor", "command"),
    ("finetune", "command"),
    ("distill", "command"),
}
# What only some packages may import.
RESERVED = {
    "tensorflow": {"data", "interop"},
    "tensorflow_datasets": {"data"},
    "flax": {"models"},
    "ml_collections": {
        "training",
        "evaluation",
        "interop",
        "planning",
        "diagnosis",
        "exporting",
        "command",
    },
    "orbax": {"training"},
    # No dependencies: only to compare exports with, where they are installed.
    "torch": {"exporting"},
    "torchvision": {"exporting"},
    "timm": {"exporting"},
    "transformers": {"exporting"},
}


def imports_of(path: pathlib.Path) -> set[str]:
    """Dotted names that a module imports, wherever in the file; not under typing."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules() -> list[tuple[str, pathlib.Path]]:
    """(part, file) for every module but the package's own __init__."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part != "__init__":
            found.append((part, path))
    return found


RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def test_every_module_has_a_layer():
    assert {part for part, _ in modules()} == set(RANK)


def test_imports_run_downwards():
    upward = []
    for part, path in modules():
        for name in imports_of(path):
            match = re.match(r"simclr_jax\.(\w+)", name)
            target = match.group(1) if match else part
            allowed = (
                target == part
                or RANK[target] < RANK[part]
                or (part, target) in SAME_LAYER
            )
            if not allowed:
                upward.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not upward


@pytest.mark.parametrize("library", RESERVED)
def test_libraries_stay_where_they_belong(library):
    users = {
        part
        for part, path in modules()
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert users <= RESERVED[library]
    assert users, f"nothing imports {library} any more"


def test_pytorch_is_imported_in_one_place():
    libraries = {"torch", "torchvision", "timm", "transformers"}
    users = {
        str(path.relative_to(PACKAGE))
        for _, path in modules()
        if libraries & {name.split(".")[0] for name in imports_of(path)}
    }
    assert users == {"exporting/torch_process.py"}
    importers = [
        str(path.relative_to(PACKAGE))
        for _, path in modules()
        if "simclr_jax.exporting.torch_process" in imports_of(path)
    ]
    assert not importers, "it is for a process of its own"


def test_everything_but_data_and_the_loop_works_without_tensorflow():
    program = """
import sys
sys.modules["tensorflow"] = None  # makes every import of it fail
import simclr_jax
simclr_jax.load
for name in ("losses", "models", "optim", "parallel"):
    getattr(simclr_jax, name)
import simclr_jax.data.order, simclr_jax.data.preprocessing
import simclr_jax.training.step, simclr_jax.training.recipe
import simclr_jax.training.checkpoints, simclr_jax.training.validation
import simclr_jax.evaluation.encoder, simclr_jax.evaluation.features
import simclr_jax.evaluation.knn, simclr_jax.evaluation.linear
import simclr_jax.interop.as_run, simclr_jax.diagnosis.checks
import simclr_jax.exporting.loading, simclr_jax.exporting.writing
simclr_jax.interop.from_torchvision
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_all_public_names_are_documented():
    undocumented = []
    for _, path in modules():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and node in tree.body
                and not ast.get_docstring(node)
            ):
                undocumented.append(f"{path.name}: {node.name}")
    assert not undocumented
