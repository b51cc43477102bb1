"""The walk-through from phone photos to a classifier, as printed.

bash launch/test.sh -m slow tests/weights/test_phone_photos.py
"""

import csv
import json
import os
import re
import shlex
import subprocess
import sys

import commands
import library_environment
import numpy as np
import pytest

PAGE = commands.ROOT / "docs" / "phone_photos.md"
# Settings with which it takes minutes.
_QUICK = (
    "--config.image_size=48",
    "--config.encoder.compute_dtype=float32",
    "--config.batch.batch_size=32",
)
SMALL = {
    "pretrain": [*_QUICK, "--config.schedule.train_steps=60"],
    "evaluate": ["--set=evaluation.lbfgs_steps=30"],
    "finetune": [*_QUICK, "--config.schedule.train_steps=60"],
}


@pytest.mark.slow
def test_the_walk_through_runs_as_it_is_printed(tmp_path):
    text = PAGE.read_text()
    environment = {**os.environ, "PYTHONPATH": str(commands.ROOT)}
    environment |= {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
    said = {}
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").strip().splitlines():
            _, *words = shlex.split(line)
            name = words[1].removeprefix("simclr_jax.") if words[0] == "-m" else ""
            if not name:
                words[0] = str(commands.ROOT / words[0])
            done = subprocess.run(
                [sys.executable, *words, *SMALL.get(name, [])],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            said[name] = done.stderr + done.stdout
    assert list(said) == [
        *("", "prepare", "pretrain", "evaluate", "embed", "finetune", "export")
    ]
    check_what_was_understood(tmp_path, said["prepare"], text)
    check_neighbours(tmp_path)

    (program,) = re.findall(r"```python\n(.*?)```", text, re.S)
    alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [library_environment.make(), "-c", program],
        cwd=tmp_path,
        env={**alone, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    hits, among = map(int, re.findall(r"\d+", done.stdout))
    assert among == 45  # 50 pictures, one of ten is named .HEIC
    assert hits > 0.6 * among  # of five classes


def check_what_was_understood(folder, said, page):
    """The table of the page is the one that was printed."""
    (table,) = re.findall(r"```text\n(.*?)```", page, re.S)
    for line in table.splitlines():
        assert line.strip() in said
    manifest = json.loads((folder / "data" / "photos" / "manifest.json").read_text())
    assert manifest["splits"].keys() == {"train", "validation"}
    assert manifest["class_names"] == [
        *("Café wall", "Cat", "Coffee", "Motorcycle", "Rocket")
    ]
    counts = {name: s["num_images"] for name, s in manifest["splits"].items()}
    assert counts == {"train": 161, "validation": 50}  # 5 x 32 and the panorama; 5 x 10


def check_neighbours(folder):
    """Most pictures have one of their class as their nearest neighbour."""
    with np.load(folder / "features.npz") as content:
        names = dict(zip(content["paths"], content["labels"], strict=True))
    with open(next(folder.glob("features*neighbours.tsv"))) as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    first = [row for row in rows if row["rank"] == "1"]
    same = [names[row["path"]] == names[row["neighbour"]] for row in first]
    assert np.mean(same) > 0.6
