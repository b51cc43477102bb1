"""The worked example of the documentation, as printed.

bash launch/test.sh -m slow tests/weights/test_example.py
"""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import commands
import library_environment
import pytest
from PIL import Image

from simclr_jax.data.sources import photographs

PAGE = commands.ROOT / "docs" / "example.md"
CLASSES = 6
# Settings with which it takes minutes.
SMALL = {
    "pretrain": [
        "--config.image_size=64",
        "--config.batch.batch_size=32",
        "--config.schedule.train_steps=20",
        "--config.encoder.compute_dtype=float32",
    ],
    "evaluate": ["--set=evaluation.lbfgs_steps=20", "--set=evaluation.batch_size=16"],
    "export": [],
    "finetune": [
        "--config.image_size=64",
        "--config.schedule.train_steps=5",
        "--config.batch.batch_size=16",
        "--config.encoder.compute_dtype=float32",
    ],
}


def write_photos(folder: pathlib.Path) -> None:
    for split, name, count in (("train", "train", 40), ("val", "test", 10)):
        images, labels = photographs.load(name)
        for number in range(CLASSES):
            place = folder / split / f"class{number}"
            place.mkdir(parents=True)
            for i, image in enumerate(images[labels == number][:count]):
                Image.fromarray(image).resize((72, 72)).save(place / f"{i}.png")


@pytest.mark.slow
def test_the_example_runs_as_it_is_printed(tmp_path):
    python = library_environment.make()
    write_photos(tmp_path / "photos")
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(), re.S)
    assert [kind for kind, _ in blocks] == ["bash", "python", "bash"]
    environment = {**os.environ, "PYTHONPATH": str(commands.ROOT)}
    environment.pop("XLA_FLAGS", None)
    environment["JAX_NUM_CPU_DEVICES"] = "1"
    ran = []
    for kind, text in blocks:
        if kind == "python":
            lines = [line for line in text.splitlines() if line.strip()]
            assert len(lines) <= 25
            alone = {k: v for k, v in environment.items() if k != "PYTHONPATH"}
            done = subprocess.run(
                [python, "-c", text], cwd=tmp_path, env=alone, capture_output=True
            )
            assert done.returncode == 0, done.stderr.decode()
            accuracy = re.search(r"accuracy ([\d.]+)%", done.stdout.decode())
            # Of six classes; patches of other parts of the same photographs.
            assert float(accuracy[1]) > 40
            continue
        for line in text.replace("\\\n", " ").strip().splitlines():
            name, *arguments = shlex.split(line)[2:]
            module = name.removeprefix("simclr_jax.")
            arguments = [
                argument.replace("=configs/", f"={commands.ROOT}/configs/")
                for argument in arguments
            ]
            done = subprocess.run(
                [sys.executable, "-m", name, *arguments, *SMALL[module]],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            ran.append(module)
    assert ran == ["pretrain", "evaluate", "export", "finetune"]
    assert (tmp_path / "runs" / "tuned" / "eval" / "classifier.json").exists()
