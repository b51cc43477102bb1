"""Studies of the augmentations: SimCLR, Section 3 (Chen et al., ICML 2020)."""

from typing import Any

from simclr_jax.study import scales
from simclr_jax.study.definitions import (
    Axis,
    Choice,
    Figure,
    Finding,
    Point,
    Study,
    difference,
    where,
)

_OPERATIONS = {
    "crop": ("Crop", ("crop",)),
    "cutout": ("Cutout", ("cutout",)),
    "color": ("Colour", ("color_jitter", "grayscale")),
    "sobel": ("Sobel", ("sobel",)),
    "noise": ("Noise", ("noise",)),
    "blur": ("Blur", ("blur",)),
    "rotate": ("Rotate", ("rotation",)),
}


def augmentation_pairs(scale: str) -> Study:
    """Figure 5: pairs of augmentations."""
    names = tuple(_OPERATIONS)
    cut: tuple[str, ...] = (
        "Both views are augmented: the paper leaves one of the two as it is, and says "
        "that this lowers all figures.",
        "A pair is applied in one order, a crop first: the map is symmetric.",
    )
    if scale == "minutes":
        names = ("crop", "cutout", "color", "sobel", "rotate")
        cut += ("Without noise and blur: five operations of seven.",)
    label_of = {name: label for name, (label, _) in _OPERATIONS.items()}
    choices = tuple(Choice(name, label=label_of[name]) for name in names)

    def operations(point: Point) -> dict[str, Any]:
        pair = dict.fromkeys((point["first"], point["second"]))
        both = tuple(op for name in pair for op in _OPERATIONS[name][1])
        return {"augment.operations": both}

    def is_single(point: Point) -> bool:
        return point["first"] == point["second"]

    def is_best(point: Point) -> bool:
        return {point["first"], point["second"]} == {"crop", "color"}

    return Study(
        **scales.fields(scale, cut=cut),
        title="Pairs of augmentations",
        source="SimCLR, Figure 5",
        axes=(
            Axis("first", "1st augmentation", choices),
            Axis("second", "2nd augmentation", choices),
        ),
        keep=lambda p: names.index(p["first"]) <= names.index(p["second"]),
        derive=operations,
        figure=Figure("heat_map", "second", ("first",)),
        findings=(
            Finding(
                "Two augmentations give better representations than one alone.",
                "Section 3.1, Figure 5",
                difference(lambda p: not is_single(p), is_single),
            ),
            Finding(
                "Crop with colour distortion is better than the mean of the other "
                "pairs.",
                "Section 3.1, Figure 5",
                difference(is_best, lambda p: not (is_single(p) or is_best(p))),
            ),
            Finding(
                "Crop with colour distortion is better than crop alone.",
                "Figure 5",
                difference(is_best, where(first="crop", second="crop")),
            ),
            Finding(
                "Crop with colour distortion is better than colour distortion alone.",
                "Figure 5",
                difference(is_best, where(first="color", second="color")),
            ),
        ),
    )


def color_strength(scale: str) -> Study:
    """Table 1: strength of the colour distortion."""
    strengths = (0.125, 0.25, 0.5, 1.0)
    labels = ("1/8", "1/4", "1/2", "1")
    key = "augment.color_jitter.strength"
    plain = ("crop", "flip", "color_jitter", "grayscale")
    choices = [
        Choice(f"{s:g}", {key: s, "augment.operations": plain}, label)
        for s, label in zip(strengths, labels, strict=True)
    ]
    blurred = {key: 1.0, "augment.operations": (*plain, "blur")}
    choices.append(Choice("1+blur", blurred, "1 (+ blur)"))
    return Study(
        **scales.fields(
            scale,
            cut=("Without AutoAugment and without supervised training.",),
            num_seeds=5 if scale == "minutes" else 3,
        ),
        title="Strength of the colour distortion",
        source="SimCLR, Table 1",
        axes=(Axis("strength", "Strength of the colour distortion", tuple(choices)),),
        figure=Figure("lines", "strength"),
        findings=(
            Finding(
                "Colour distortion of full strength is better than of an eighth.",
                "Table 1",
                difference(where(strength="1"), where(strength="0.125")),
            ),
            Finding(
                "The two stronger distortions are better than the two weaker ones.",
                "Table 1",
                difference(
                    where(strength=("0.5", "1")), where(strength=("0.125", "0.25"))
                ),
            ),
            Finding(
                "Blur adds to colour distortion of full strength.",
                "Table 1",
                difference(where(strength="1+blur"), where(strength="1")),
            ),
        ),
    )
