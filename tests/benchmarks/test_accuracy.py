"""The parts of accuracy.py, and both sides from end to end at toy size."""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from accuracy_sides import evaluator, measured, page
from accuracy_sides.variants import (
    BASE,
    LIGHTLY,
    PACKAGE,
    VARIANTS,
    Setting,
    Variant,
    chosen,
    package_overrides,
)
from scipy import stats

from simclr_jax.config import identity, rules
from simclr_jax.configs import cifar10

HERE = pathlib.Path(__file__).parent
REFERENCE = "package_the_reference_s_start_decay_and_batchnorm"
TORCH = pathlib.Path.home() / ".cache/simclr_jax/torch/bin/python"


@pytest.mark.parametrize(
    ("seed", "k", "temperature"),
    [(0, 5, 0.1), (1, 200, 0.1), (2, 1, 0.5), (3, 40, 0.02)],
)
def test_knn_votes_as_by_hand(seed, k, temperature):
    rng = np.random.default_rng(seed)
    labels, test_labels = rng.integers(0, 4, 60), rng.integers(0, 4, 30)
    centres = rng.normal(size=(4, 6))
    train = (centres[labels] + rng.normal(size=(60, 6))).astype(np.float32)
    test = (centres[test_labels] + rng.normal(size=(30, 6))).astype(np.float32)
    correct = 0
    for image, label in zip(test.astype(np.float64), test_labels, strict=True):
        similar = [x @ image / np.linalg.norm(x) / np.linalg.norm(image) for x in train]
        votes = [0.0] * 4
        for i in sorted(range(60), key=lambda i: -similar[i])[:k]:
            votes[labels[i]] += math.exp(similar[i] / temperature)
        correct += votes.index(max(votes)) == label
    got = evaluator.knn_accuracy(
        train, labels, test, test_labels, k=k, temperature=temperature
    )
    assert got == pytest.approx(correct / 30)


@pytest.mark.slow  # imports scikit-learn
def test_linear_accuracy_does_not_see_scales_and_offsets():
    rng = np.random.default_rng(0)
    labels, test_labels = np.arange(80) % 4, np.arange(40) % 4
    centres = 2 * rng.normal(size=(4, 3))
    train, test = (
        centres[y] + rng.normal(size=(len(y), 3)) for y in (labels, test_labels)
    )
    plain = evaluator.linear_accuracy(train, labels, test, test_labels)
    scale, offset = np.array([1e-3, 1.0, 1e3]), np.array([5.0, -200.0, 0.0])
    moved = evaluator.linear_accuracy(
        train * scale + offset, labels, test * scale + offset, test_labels
    )
    assert plain == moved
    assert 0.6 < plain < 1


@pytest.mark.parametrize("counts", [(3, 3), (2, 5), (4, 2)])
def test_differences_have_welchs_interval(counts):
    rng = np.random.default_rng(sum(counts))
    a, b = rng.normal(0.42, 0.01, counts[0]), rng.normal(0.43, 0.002, counts[1])
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    half = (interval.high - interval.low) / 2
    assert page.difference(a, b) == pytest.approx((a.mean() - b.mean(), half))
    assert math.isnan(page.difference(a[:1], b)[1])


def test_variants_change_one_side_and_are_told_apart():
    slugs = [variant.slug for variant in VARIANTS]
    assert REFERENCE in slugs
    assert len({*slugs}) == len(slugs)
    assert [v.slug for v in chosen("base")] == ["package_as_it_is", "lightly_as_it_is"]
    assert chosen("all") == list(VARIANTS)
    with pytest.raises(ValueError, match="--variants=he: must be all, base or some of"):
        chosen("package_truncated_normal,he")


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.side == PACKAGE], ids=lambda v: v.slug
)
def test_variants_of_the_package_are_valid_and_change_its_config(variant):
    def flat(changed):
        config = cifar10.get_config("200epochs")
        config.update_from_flattened_dict(package_overrides(Setting(), changed, 7))
        rules.validate(config)
        return identity.flatten(config)

    before, after = flat(Variant(PACKAGE, BASE)), flat(variant)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {*variant.changes}
    assert before["seed"] == 7
    assert before["optimizer.name"] == "sgd"
    assert before["schedule.warmup_epochs"] == 0
    assert before["head.num_layers"] == 2
    assert after["batch.norm_parts"] in (1, 2)


def test_a_command_is_measured_with_its_children(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    script = (
        f"import os, pathlib, subprocess, sys, time\n{burn}"
        f"pathlib.Path({str(tmp_path / 'first')!r}).write_text('1')\n"
        f"time.sleep(0.4)\nsubprocess.run([sys.executable, '-c', {burn!r}])\n"
        "print(os.sched_getaffinity(0))"
    )
    cores = sorted(os.sched_getaffinity(0))
    try:
        times = measured.run(
            [sys.executable, "-c", script],
            cores=cores[-1:],
            log=tmp_path / "log",
            first_step=tmp_path / "first",
        )
        with pytest.raises(SystemExit, match="no such thing"):
            measured.run(
                [sys.executable, "-c", "raise SystemExit('no such thing')"],
                cores=cores,
                log=tmp_path / "log",
            )
    finally:
        os.sched_setaffinity(0, cores)
    assert 0.25 <= times["first_step_cpu_secs"] < 0.5 <= times["cpu_secs"]
    assert times["first_step_secs"] + 0.3 < times["secs"]


def test_the_page_has_a_row_for_each_variant_that_was_run(tmp_path):
    def result(seed, knn):
        train = {"secs": 100.0 + seed, "cpu_secs": 200.0}
        train |= {"first_step_secs": 60.0, "first_step_cpu_secs": 100.0}
        return {"seed": seed, "knn": knn, "linear": 0.5, "times": {"train": train}}

    results = {
        "package_as_it_is": [result(0, 0.41), result(1, 0.43)],
        "lightly_as_it_is": [result(0, 0.43), result(1, 0.44)],
        "package_truncated_normal": [result(0, 0.45)],
    }
    text = page.page(Setting(), "2 cores", "python accuracy.py", results)
    rows = [line for line in text.splitlines() if line.startswith("| package")]
    assert "| 42.00 (41.0, 43.0) |  | -1.50 ±" in rows[0]
    assert rows[1].startswith("| package | truncated normal | 45.0 | +3.00 | +1.50 |")
    # The times are those of both sides as they are.
    assert len(rows) == 2 + 1
    assert rows[2] == "| package | 100 | 40 | 1.00, 1.00 | 200 | 100 | 1.00, 1.00 |"
    assert "15,000 images of CIFAR-10, 15 epochs of batch 256: 870 steps" in text
    path = tmp_path / "page.md"
    path.write_text(f"Old figures.\n\n{page.READING}\nOur words.\n")
    page.write(path, text)
    assert path.read_text() == f"{text}\n{page.READING}\nOur words.\n"
    stored = json.loads(page.as_json(Setting(), "2 cores", results))
    assert stored["results"] == results


def _write_images(path):
    """Classes that differ in colour, at the size of a smoke test."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 96), ("test", 40)):
        labels = np.arange(count) % 4
        colours = np.array(
            [[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 60]]
        )
        noise = rng.integers(-40, 40, (count, 32, 32, 3))
        pixels = np.clip(colours[labels][:, None, None] + noise, 0, 255)
        arrays |= {
            f"{split}_images": pixels.astype(np.uint8),
            f"{split}_labels": labels,
        }
    np.savez(path, **arrays)


def _command(folder, *more):
    return [
        *(sys.executable, str(HERE / "accuracy.py"), f"--workdir={folder}"),
        *(f"--torch_python={TORCH}", "--images=96", "--test_images=40", "--epochs=1"),
        *("--batch_size=32", "--seeds=1", *more),
    ]


@pytest.mark.slow
@pytest.mark.skipif(not TORCH.exists(), reason="needs the environment with lightly")
def test_both_sides_run_from_end_to_end(tmp_path):
    _write_images(tmp_path / "images.npz")
    checked = subprocess.run(
        _command(tmp_path, "--check"), capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert "| steps | 3 | 3 |" in checked.stdout

    names = ["package_as_it_is", REFERENCE]
    names += [v.slug for v in VARIANTS if v.side == LIGHTLY]
    options = [f"--variants={','.join(names)}", f"--json={tmp_path / 'all.json'}"]
    first = subprocess.run(_command(tmp_path, *options), capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "all.json").read_text())["results"]
    assert [*results] == [v.slug for v in VARIANTS if v.slug in names]
    for (result,) in results.values():
        assert result["knn"] > 0.5
        assert result["times"]["train"]["first_step_secs"] > 0
    # Nothing is run again.
    start = time.monotonic()
    again = subprocess.run(_command(tmp_path, *options), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "seed 0:" not in again.stdout
    assert json.loads((tmp_path / "all.json").read_text())["results"] == results
    assert time.monotonic() - start < 60
    other = subprocess.run(
        _command(tmp_path, "--area_min=0.2"), capture_output=True, text=True
    )
    assert other.returncode == 1
    assert "has runs of" in other.stderr
