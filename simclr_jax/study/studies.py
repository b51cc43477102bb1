"""The studies. Each is a function of the scale; `STUDIES` names them.

SimCLR: Chen et al., ICML 2020. SimCLRv2: Chen et al., NeurIPS 2020.
"""

from collections.abc import Callable
from typing import Any

from simclr_jax.study import scales
from simclr_jax.study.definitions import (
    Axis,
    Choice,
    Figure,
    Finding,
    Point,
    Study,
    Term,
    difference,
    where,
)


def _axis(name: str, label: str, key: str, values: tuple[Any, ...]) -> Axis:
    """An axis of one config key."""
    choices = (Choice(f"{value:g}", {key: value}) for value in values)
    return Axis(name, label, tuple(choices))


def _study(
    scale: str, changes: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """The fields of a study that follow from its scale, and its own."""
    cut = (*scales.CUT[scale], *fields.pop("cut", ()))
    base = scales.base_config(scale, **(changes or {}))
    return {"base": base, "cut": cut, "protocol": scales.PROTOCOLS[scale], **fields}


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
        **_study(scale, cut=cut),
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
        **_study(
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


def depth_width(scale: str) -> Study:
    """Figure 7: depth and width of the encoder."""
    depths: tuple[int, ...] = (18, 34, 50)
    widths: tuple[float, ...] = (1.0, 2.0, 4.0)
    if scale == "minutes":
        depths, widths = (10, 18), (0.125, 0.25, 0.5)
    elif scale == "gpu":
        widths = (0.5, 1.0, 2.0)
    first, last = f"{widths[0]:g}", f"{widths[-1]:g}"
    shallow, deep = f"{depths[0]}", f"{depths[-1]}"
    return Study(
        **_study(scale, cut=("Without supervised training.",)),
        title="Depth and width of the encoder",
        source="SimCLR, Figure 7",
        axes=(
            _axis("depth", "Depth", "encoder.depth", depths),
            _axis("width", "Width", "encoder.width", widths),
        ),
        figure=Figure("points", "parameters", ("depth", "width")),
        findings=(
            Finding(
                f"Width {last} is better than width {first}, over all depths.",
                "Section 4.1, Figure 7",
                difference(where(width=last), where(width=first)),
            ),
            Finding(
                f"Depth {deep} is better than depth {shallow}, over all widths.",
                "Section 4.1, Figure 7",
                difference(where(depth=deep), where(depth=shallow)),
            ),
        ),
    )


def projection_head(scale: str) -> Study:
    """Figure 8: kind of the projection head and width of its output."""
    dims = (32, 128, 512) if scale == "minutes" else (32, 64, 128, 256, 512, 1024, 2048)
    first, last = str(dims[0]), str(dims[-1])
    kinds = tuple(
        Choice(kind, {"head.kind": kind}, label)
        for kind, label in (
            ("linear", "Linear"),
            ("nonlinear", "Non-linear"),
            ("none", "None"),
        )
    )
    return Study(
        **_study(
            scale,
            cut=(f"Outputs of {', '.join(map(str, dims))} dimensions.",)
            if scale == "minutes"
            else (),
            num_seeds=5 if scale == "minutes" else 3,
        ),
        title="Projection heads",
        source="SimCLR, Figure 8",
        axes=(
            Axis("head", "Projection", kinds),
            _axis("dim", "Projection output dimensionality", "head.output_dim", dims),
        ),
        # Without a head there is no output to vary.
        keep=lambda p: p["head"] != "none" or p["dim"] == first,
        measure="accuracy_and_z",
        metrics={
            "linear": "h, linear evaluation",
            "knn": "h, kNN",
            "linear_z": "g(h), linear evaluation",
        },
        figure=Figure("bars", "dim", ("head",)),
        findings=(
            Finding(
                "A non-linear head is better than none.",
                "Section 4.2, Figure 8",
                difference(where(head="nonlinear"), where(head="none")),
            ),
            Finding(
                "A non-linear head is better than a linear one.",
                "Section 4.2, Figure 8",
                difference(where(head="nonlinear"), where(head="linear")),
            ),
            Finding(
                "A linear head is better than none.",
                "Section 4.2, Figure 8",
                difference(where(head="linear"), where(head="none")),
            ),
            Finding(
                "With a non-linear head, h is a better representation than g(h).",
                "Section 4.2",
                difference(
                    where(head="nonlinear"),
                    where(head="nonlinear"),
                    low_metric="linear_z",
                ),
            ),
            Finding(
                f"The width of a non-linear head's output makes little difference: "
                f"{last} against {first}, within 2 points.",
                "Section 4.2, Figure 8",
                difference(
                    where(head="nonlinear", dim=last),
                    where(head="nonlinear", dim=first),
                ),
                within=0.02,
            ),
        ),
    )


_TRANSFORMATIONS = {
    "grayscale": "Colour or greyscale (50)",
    "rotation": "Rotation (25)",
    "corrupted": "Original or noisy (50)",
    "sobel": "Original or Sobel (50)",
}


def transformations(scale: str) -> Study:
    """Table 3: h against g(h) in predicting the transformation applied."""
    width = {"minutes": 128, "gpu": 512, "paper": 2048}[scale]
    metrics = {
        f"{name}_{layer}": f"{label}, {shown}"
        for name, label in _TRANSFORMATIONS.items()
        for layer, shown in (("h", "h"), ("z", "g(h)"))
    }
    everywhere = where()
    return Study(
        **_study(
            scale,
            cut=(
                "A linear classifier predicts the transformation; the paper's is a "
                "network of two layers. Half of the images are grey, where the paper's "
                "share is its augmentation's.",
            ),
            changes={"head__output_dim": width},
            num_seeds=5 if scale == "minutes" else 3,
        ),
        title="Predicting the transformation from h or g(h)",
        source="SimCLR, Table 3",
        axes=(Axis("net", "Pretraining", (Choice("simclr", label="SimCLR"),)),),
        measure="transformations",
        metrics=metrics,
        settings={"num_images": 5000 if scale == "minutes" else 20_000},
        figure=Figure(
            "metric_bars", "metric", label="Accuracy (%), in brackets by chance"
        ),
        findings=tuple(
            Finding(
                f"h tells more than g(h) of: {label.lower()}.",
                "Section 4.2, Table 3",
                difference(everywhere, everywhere, f"{name}_h", f"{name}_z"),
            )
            for name, label in _TRANSFORMATIONS.items()
        ),
    )


def objectives(scale: str) -> Study:
    """Table 4: objectives, with and without semi-hard negatives."""
    losses = (
        Choice("margin", {"loss.name": "margin_triplet"}, "Margin"),
        Choice("nt_logistic", {"loss.name": "nt_logistic"}, "NT-Logi."),
        Choice(
            "margin_sh",
            {"loss.name": "margin_triplet", "loss.semi_hard": True},
            "Margin (sh)",
        ),
        Choice(
            "nt_logistic_sh",
            {"loss.name": "nt_logistic", "loss.semi_hard": True},
            "NT-Logi. (sh)",
        ),
        Choice("nt_xent", {"loss.name": "nt_xent"}, "NT-Xent"),
    )
    others = tuple(loss.name for loss in losses[:-1])
    temperature = (
        "NT-Logistic has the temperature of NT-Xent, the triplet loss the margin 0.4: "
        "the paper tuned both."
    )
    words = {"margin": "the triplet loss", "nt_logistic": "NT-Logistic"}
    words |= {f"{n}_sh": f"{w} with semi-hard negatives" for n, w in words.items()}
    return Study(
        **_study(
            scale,
            cut=(temperature,),
            num_seeds=5 if scale == "minutes" else 3,
        ),
        title="Objectives",
        source="SimCLR, Table 4",
        axes=(Axis("loss", "Objective", losses),),
        figure=Figure("bars", "loss"),
        findings=(
            *(
                Finding(
                    f"NT-Xent is better than {words[name]}.",
                    "Section 5.1, Table 4",
                    difference(where(loss="nt_xent"), where(loss=name)),
                )
                for name in others
            ),
            Finding(
                "NT-Xent is better than the mean of the others.",
                "Section 5.1, Table 4",
                difference(where(loss="nt_xent"), where(loss=others)),
            ),
            *(
                Finding(
                    f"Semi-hard negatives improve {words[name]}.",
                    "Section 5.1, Table 4",
                    difference(where(loss=f"{name}_sh"), where(loss=name)),
                )
                for name in ("margin", "nt_logistic")
            ),
        ),
    )


def temperature(scale: str) -> Study:
    """Table 5: temperature, and normalisation of z."""

    def choices(normalize: bool, values: tuple[float, ...]) -> tuple[Choice, ...]:
        prefix = "l2" if normalize else "dot"
        label = "cosine" if normalize else "product"
        return tuple(
            Choice(
                f"{prefix}_{value:g}",
                {"loss.normalize": normalize, "loss.temperature": value},
                f"{label}, {value:g}",
            )
            for value in values
        )

    axis = Axis(
        "similarity",
        "Similarity of embeddings, temperature",
        (*choices(True, (0.05, 0.1, 0.5, 1.0)), *choices(False, (10.0, 100.0))),
    )
    normalized = tuple(c.name for c in axis.choices if c.name.startswith("l2"))
    products = tuple(c.name for c in axis.choices if c.name.startswith("dot"))
    return Study(
        **_study(
            scale,
            cut=() if scale == "paper" else ("On CIFAR-10 the paper's best is 0.5.",),
            num_seeds=5 if scale == "minutes" else 3,
        ),
        title="Temperature and normalisation",
        source="SimCLR, Table 5",
        axes=(axis,),
        figure=Figure("bars", "similarity"),
        findings=(
            Finding(
                "Normalised embeddings (the mean of their temperatures) are better "
                "than products without normalisation.",
                "Section 5.1, Table 5",
                difference(where(similarity=normalized), where(similarity=products)),
            ),
            Finding(
                "Temperature 0.1 is better than 1.",
                "Section 5.1, Table 5",
                difference(where(similarity="l2_0.1"), where(similarity="l2_1")),
            ),
            Finding(
                "Temperature 0.1 is better than 0.05.",
                "Section 5.1, Table 5",
                difference(where(similarity="l2_0.1"), where(similarity="l2_0.05")),
            ),
            Finding(
                "Temperature 0.1 is better than 0.5 (on ImageNet; on CIFAR-10 the "
                "paper's best is 0.5).",
                "Section 5.1, Table 5; appendix B.9",
                difference(where(similarity="l2_0.1"), where(similarity="l2_0.5")),
            ),
        ),
    )


def batch_size_epochs(scale: str) -> Study:
    """Figure 9: batch size by epochs."""
    batches = {
        "minutes": (64, 128, 256, 512),
        "gpu": (128, 256, 512, 1024),
        "paper": (256, 512, 1024, 2048, 4096, 8192),
    }[scale]
    epochs = {
        "minutes": (3.0, 6.0, 12.0),
        "gpu": (25.0, 50.0, 100.0),
        "paper": tuple(map(float, range(100, 1001, 100))),
    }[scale]
    small, large = f"{batches[0]}", f"{batches[-1]}"
    short, long = f"{epochs[0]:g}", f"{epochs[-1]:g}"
    size_effect = difference(
        where(batch=large, epochs=short), where(batch=small, epochs=short)
    )
    later = difference(where(batch=small, epochs=long), where(batch=large, epochs=long))
    rate = {
        "minutes": "The learning rate grows with the root of the batch size.",
        "gpu": "The learning rate grows with the batch size.",
        "paper": "",
    }[scale]
    cut = f"Batches of {small} to {large} and {short} to {long} epochs. {rate}".strip()
    return Study(
        **_study(
            scale,
            cut=() if scale == "paper" else (cut,),
            changes={"schedule__warmup_epochs": 10.0 if scale == "paper" else 1.0},
        ),
        title="Batch size by epochs",
        source="SimCLR, Figure 9",
        axes=(
            _axis("epochs", "Training epochs", "schedule.train_epochs", epochs),
            _axis("batch", "Batch size", "batch.batch_size", batches),
        ),
        figure=Figure("bars", "epochs", ("batch",)),
        findings=(
            Finding(
                f"In a short training ({short} epochs) a batch of {large} is better "
                f"than one of {small}.",
                "Section 5.2, Figure 9",
                size_effect,
            ),
            Finding(
                f"The difference between them is smaller after {long} epochs.",
                "Section 5.2, Figure 9",
                (*size_effect, *later),
            ),
            Finding(
                f"{long} epochs are better than {short}, over all batch sizes.",
                "Section 5.2, Figure 9",
                difference(where(epochs=long), where(epochs=short)),
            ),
        ),
    )


def learning_rate(scale: str) -> Study:
    """Appendix B.1: rule of the learning rate, and the optimiser."""
    batches = {
        "minutes": (64, 256),
        "gpu": (128, 512, 2048),
        "paper": (256, 1024, 4096),
    }[scale]
    reference = batches[-1]
    # At the largest batch, where both rules give the same rate.
    peaks = {
        "lars": {"minutes": 1.0, "gpu": 8.0, "paper": 4.8},
        "sgd": {"minutes": 0.12, "gpu": 0.96, "paper": 1.92},
        "adamw": {"minutes": 2e-3, "gpu": 4e-3, "paper": 4e-3},
    }
    optimizers = tuple(
        Choice(name, {"optimizer.name": name}, label)
        for name, label in (("lars", "LARS"), ("sgd", "SGD"), ("adamw", "AdamW"))
    )
    rules = tuple(
        Choice(name, {"optimizer.scaling": name}, f"{name} rule")
        for name in ("linear", "sqrt")
    )

    def rate(point: Point) -> dict[str, Any]:
        peak = peaks[point["optimizer"]][scale]
        share = {"linear": reference / 256, "sqrt": reference**0.5}[point["rule"]]
        return {"optimizer.learning_rate": peak / share}

    small, large = f"{batches[0]}", f"{batches[-1]}"

    def scaled(rule: str, batch: str) -> Any:
        return where(optimizer="lars", rule=rule, batch=batch)

    return Study(
        **_study(
            scale,
            cut=(
                "One rate for each optimiser, none of them tuned; one training time.",
            ),
        ),
        title="Learning-rate rule and optimiser",
        source="SimCLR, appendix B.1",
        axes=(
            Axis("optimizer", "Optimiser", optimizers),
            Axis("rule", "Rule", rules),
            _axis("batch", "Batch size", "batch.batch_size", batches),
        ),
        derive=rate,
        figure=Figure("lines", "batch", ("optimizer", "rule")),
        findings=(
            Finding(
                f"With LARS and a batch of {small}, the square-root rule is better "
                "than the linear one.",
                "Appendix B.1",
                difference(scaled("sqrt", small), scaled("linear", small)),
            ),
            Finding(
                f"At the largest batch, {large}, LARS is better than SGD.",
                "Section 2.2",
                difference(
                    where(optimizer="lars", batch=large),
                    where(optimizer="sgd", batch=large),
                ),
            ),
        ),
    )


def head_depth_labels(scale: str) -> Study:
    """SimCLRv2's Figure 5: depth of the head by the fraction of labels."""
    shares = {"finetune_1pct": "1 %", "finetune_10pct": "10 %", "finetune": "100 %"}
    metrics = {
        f"{name}_layer{layer}": f"{label} of labels, from {shown}"
        for layer, shown in ((1, "layer 1"), (0, "h"))
        for name, label in shares.items()
    }
    depths = (2, 3, 4)

    def deeper(share: str) -> tuple[Term, ...]:
        metric = f"{share}_layer1"
        return difference(where(depth="4"), where(depth="2"), metric, metric)

    few, many = "finetune_1pct", "finetune"
    epochs = {"minutes": 5.0, "gpu": 30.0, "paper": None}[scale]
    return Study(
        **_study(
            scale,
            cut=("ResNets of one size; the paper has more.",)
            + ((f"{epochs:g} epochs of fine-tuning.",) if epochs else ()),
        ),
        title="Depth of the projection head by label fraction",
        source="SimCLRv2, Figure 5",
        axes=(_axis("depth", "Layers of the head", "head.num_layers", depths),),
        measure="fine_tuning",
        metrics=metrics,
        settings={"layers": (1, 0), "shares": tuple(shares), "epochs": epochs},
        figure=Figure(
            "metric_lines", "metric", ("depth",), label="Fine-tuned, top-1 (%)"
        ),
        findings=(
            Finding(
                "With 1 % of the labels, a head of 4 layers is better than one of 2, "
                "fine-tuned from its first layer.",
                "SimCLRv2, Section 3.2, Figure 5",
                deeper(few),
            ),
            Finding(
                "That difference is larger with 1 % of the labels than with all.",
                "SimCLRv2, Section 3.2, Figure 5",
                (
                    *deeper(few),
                    *(Term(-t.weight, t.where, t.metric) for t in deeper(many)),
                ),
            ),
            Finding(
                "With 1 % of the labels, a head of 3 layers is better fine-tuned from "
                "its first layer than from h.",
                "SimCLRv2, Section 3.2, Figure 5",
                difference(
                    where(depth="3"), where(depth="3"), f"{few}_layer1", f"{few}_layer0"
                ),
            ),
        ),
    )


# By the name for --study.
STUDIES: dict[str, Callable[[str], Study]] = {
    "augmentation_pairs": augmentation_pairs,
    "color_strength": color_strength,
    "depth_width": depth_width,
    "projection_head": projection_head,
    "transformations": transformations,
    "objectives": objectives,
    "temperature": temperature,
    "batch_size_epochs": batch_size_epochs,
    "learning_rate": learning_rate,
    "head_depth_labels": head_depth_labels,
}
