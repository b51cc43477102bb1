"""Tables of the results."""

import json
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from accuracy_sides.evaluator import (
    KNN_K,
    KNN_TEMPERATURE,
    LOGISTIC_C,
    LOGISTIC_STEPS,
)
from accuracy_sides.variants import (
    BASE,
    LIGHTLY,
    PACKAGE,
    VARIANTS,
    Setting,
    Variant,
)

# By slug: the results of its seeds.
Results = dict[str, list[dict[str, Any]]]
_FIGURES = ("knn", "linear")
# What people write about the figures.
READING = "## What the figures say\n"


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Difference of the means of two samples and half its 95 % interval.

    Welch's: the variances may differ. Half the interval is NaN with a single value.
    """
    from scipy import stats

    mean = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return mean, float("nan")
    errors = [float(np.var(x, ddof=1)) / len(x) for x in (a, b)]
    if not sum(errors):
        return mean, 0.0
    parts = zip(errors, (a, b), strict=True)
    freedom = sum(errors) ** 2 / sum(e**2 / (len(x) - 1) for e, x in parts)
    return mean, float(stats.t.ppf(0.975, freedom)) * sum(errors) ** 0.5


def _percent(values: Sequence[float]) -> str:
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * np.mean(values):.2f} ({each})" if len(values) > 1 else each


def _less(a: Sequence[float], b: Sequence[float]) -> str:
    mean, half = difference(a, b)
    if np.isnan(half):
        return f"{100 * mean:+.2f}"
    return f"{100 * mean:+.2f} ± {100 * half:.2f}"


def _values(results: Results, slug: str, figure: str) -> list[float]:
    return [result[figure] for result in results[slug]]


def _base(side: str) -> str:
    return Variant(side, BASE).slug


def accuracies(results: Results) -> str:
    """A row for each variant: kNN and linear, and how far from both bases."""
    columns = ["side", "variant"]
    for name in ("kNN", "linear"):
        columns += [f"{name}, %", "less its side's", "less lightly's"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for variant in VARIANTS:
        if variant.slug not in results:
            continue
        row = [variant.side, variant.name]
        for figure in _FIGURES:
            values = _values(results, variant.slug, figure)
            row.append(_percent(values))
            for base in (_base(variant.side), _base(LIGHTLY)):
                known = base in results and base != variant.slug
                other = _values(results, base, figure) if known else []
                row.append(_less(values, other) if known else "")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def times(results: Results) -> str:
    """Seconds of training of both sides as they are, and their ratio to lightly's.

    Medians over the seeds.
    """
    names = ("secs", "cpu_secs")
    medians = {}
    for slug in {_base(PACKAGE), _base(LIGHTLY)} & {*results}:
        of_seeds = results[slug]
        trained = [result["times"]["train"] for result in of_seeds]
        medians[slug] = {
            name: (
                float(np.median([t[name] for t in trained])),
                float(np.median([t[name] - t[f"first_step_{name}"] for t in trained])),
            )
            for name in names
        }
    columns = ["side"]
    for name in ("wall", "processor"):
        columns += [f"{name}, s", "after the first step", "of lightly's"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    base = medians.get(_base(LIGHTLY))
    for side in (PACKAGE, LIGHTLY):
        if _base(side) not in medians:
            continue
        row = [side]
        for name in names:
            whole, rest = medians[_base(side)][name]
            row += [f"{whole:,.0f}", f"{rest:,.0f}"]
            ratio = ""
            if base:
                ratio = f"{whole / base[name][0]:.2f}, {rest / base[name][1]:.2f}"
            row.append(ratio)
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def page(setting: Setting, machine: str, command: str, results: Results) -> str:
    """docs/accuracy.md."""
    both_sides = f"""{setting.images:,} images of CIFAR-10, {setting.epochs:g} epochs of
        batch {setting.batch_size}: {setting.steps} steps. ResNet-18 with
        {setting.width:g} of the filters and CIFAR's stem, a head of two layers, NT-Xent
        at temperature {setting.temperature:g}; SGD with a rate of
        {setting.learning_rate:g}, momentum {setting.momentum:g}, a cosine to 0 and
        weight decay {setting.weight_decay:g}; crops of at least {setting.area_min:g} of
        the image by torchvision's sampler, flips, colour jitter of strength
        {setting.jitter:g}, greyscale, no blur. Everything else is as each side has it:
        lightly's transform and head, torchvision's net, PyTorch's optimiser, two passes
        of the net, a loader with a process for each core."""
    evaluation = f"""Of h of unaugmented images, by one evaluator: weighted kNN
        (k = {KNN_K}, temperature {KNN_TEMPERATURE}) and scikit-learn's logistic
        regression on standardised features (C = {LOGISTIC_C:g}, up to {LOGISTIC_STEPS}
        steps of L-BFGS), on {setting.test_images:,} test images. Means over seeds, each
        seed in brackets; differences in points with their 95 % intervals by Welch's t.
        `less its side's`: one thing changed, against the same side as it is."""
    return f"""# Accuracy against lightly

The same net trained on the same images for the same epochs by this package and with
[lightly](https://github.com/lightly-ai/lightly) in PyTorch; written by

```bash
{command}
```

A seed or variant that the tables do not have has not been run.

{_filled(both_sides)}

{machine}.

## Accuracy

{_filled(evaluation)}

{accuracies(results)}

## Time

Of a whole training as each side has it, with its cores to itself, from the start of its
process to its end, with imports, compilation and loading of data; and without all up to
the end of the first step. Medians over seeds. Ratios to lightly's are of both.

{times(results)}
"""


def _filled(paragraph: str) -> str:
    """Lines of at most 88 characters."""
    words = " ".join(paragraph.split())
    return textwrap.fill(words, 88, break_long_words=False, break_on_hyphens=False)


def write(path: pathlib.Path, text: str) -> None:
    """Writes a page; what an earlier one says below `READING` stays."""
    known = path.read_text() if path.exists() else ""
    _, heading, reading = known.partition(READING)
    path.write_text(text + (f"\n{heading}{reading}" if heading else ""))


def as_json(setting: Setting, machine: str, results: Results) -> str:
    """The same as JSON."""
    import dataclasses

    content = {
        "setting": dataclasses.asdict(setting),
        "machine": machine,
        "results": results,
    }
    return json.dumps(content, indent=1) + "\n"
