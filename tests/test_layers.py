"""Imports run downwards only, and TensorFlow stays inside the data layer."""

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

import simclr_jax

PACKAGE = pathlib.Path(simclr_jax.__file__).parent
# From the bottom up. A part imports from its own layer only along `SAME_LAYER`.
LAYERS = (
    ("errors", "host_resources", "signals"),
    ("paths",),
    ("losses", "models", "optim"),
    ("data", "parallel"),
    ("config",),
    ("runs",),
    ("training",),
    ("weights",),
    ("evaluation",),
    ("cli", "verdicts"),
    (
        "bench",
        "convert",
        "distill",
        "doctor",
        "embed",
        "evaluate",
        "export",
        "finetune",
        "plan",
        "prepare",
        "pretrain",
        "preview",
        "rehearse",
        "report",
        "study",
    ),
)
# `rehearse` begins with what `doctor` checks of a machine.
SAME_LAYER = {("rehearse", "doctor")}
# What only some parts may import.
RESERVED = {
    "tensorflow": {"data", "weights"},
    "tensorflow_datasets": {"data"},
    "obstore": {"data"},
    "flax": {"models"},
    "ml_collections": {
        "bench",
        "cli",
        "config",
        "doctor",
        "evaluation",
        "plan",
        "preview",
        "rehearse",
        "report",
        "runs",
        "study",
        "training",
        "weights",
    },
    "orbax": {"runs"},
    "apache_beam": {"prepare"},
    "tensorboardX": {"runs"},
    "wandb": {"runs"},
    "mlflow": {"runs"},
    # No dependencies: only to compare exports with, where they are installed.
    "torch": {"weights"},
    "torchvision": {"weights"},
    "timm": {"weights"},
    "transformers": {"weights"},
}


@functools.cache
def imports_of(path: pathlib.Path) -> set[str]:
    """Dotted names that a module imports, wherever in the file; not under typing."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def modules() -> list[tuple[str, pathlib.Path]]:
    """(part, file) for every module but the package's own __init__."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part != "__init__":
            found.append((part, path))
    return found


# The shipped configs lie in a folder of their own and import ml_collections alone.
RANK = {"configs": -1} | {
    part: rank for rank, parts in enumerate(LAYERS) for part in parts
}


def test_every_module_has_a_layer():
    assert {part for part, _ in modules()} == {*RANK} - {"configs"}


def test_imports_run_downwards():
    upward = []
    for part, path in modules():
        for name in imports_of(path):
            match = re.match(r"simclr_jax(?:\.(\w+))?", name)
            # The package root imports weights: nothing in the package may import it.
            target = (match.group(1) or "root") if match else part
            allowed = (
                target == part
                or RANK.get(target, len(LAYERS)) < RANK[part]
                or (part, target) in SAME_LAYER
            )
            if not allowed:
                upward.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not upward


# Inside `data`, from the bottom up.
DATA_FLOORS = (
    (
        "buffers",
        "image_files",
        "image_traits",
        "optional",
        "own_images",
        "pillow_decode",
        "preprocessing",
        "progress",
        "tf_cpu",
        "tf_decode",
        "upright",
        "white_level",
    ),
    ("sampling", "sources"),
    ("views",),
    ("step_sampler",),
    ("replacing",),
    ("thread_pipeline", "tf_pipeline"),
    ("augment", "augment_jax", "pipeline", "stalls"),
)


def test_imports_inside_data_run_downwards():
    rank = {part: floor for floor, parts in enumerate(DATA_FLOORS) for part in parts}
    folder = PACKAGE / "data"
    files = [path for path in sorted(folder.rglob("*.py")) if path.parent != folder]
    files += [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    upward = []
    for path in files:
        part = path.relative_to(folder).parts[0].removesuffix(".py")
        for name in imports_of(path):
            match = re.match(r"simclr_jax\.data\.(\w+)", name)
            if match and rank[match.group(1)] > rank[part]:
                upward.append(f"{path.relative_to(folder)} imports {name}")
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
    assert users == {"weights/torch_process.py"}
    importers = [
        str(path.relative_to(PACKAGE))
        for _, path in modules()
        if "simclr_jax.weights.torch_process" in imports_of(path)
    ]
    assert not importers, "it is for a process of its own"


@pytest.mark.slow
def test_everything_but_data_and_the_loop_works_without_tensorflow():
    program = """
import sys
sys.modules["tensorflow"] = None  # makes every import of it fail
import simclr_jax
simclr_jax.load
for name in ("losses", "models", "optim", "parallel"):
    getattr(simclr_jax, name)
import simclr_jax.data.sampling.order, simclr_jax.data.preprocessing
import simclr_jax.training.step, simclr_jax.training.build
import simclr_jax.runs.checkpoints, simclr_jax.config.rules
import simclr_jax.weights.encoder, simclr_jax.evaluation.features
import simclr_jax.evaluation.knn, simclr_jax.evaluation.linear
import simclr_jax.weights.convert, simclr_jax.doctor.checks
import simclr_jax.weights.load, simclr_jax.weights.export
simclr_jax.weights.from_torchvision
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
