"""Studies of encoder and head: SimCLR, Section 4, and SimCLRv2, Section 3.

SimCLR: Chen et al., ICML 2020. SimCLRv2: Chen et al., NeurIPS 2020.
"""

from simclr_jax.study import scales
from simclr_jax.study.definitions import (
    Axis,
    Choice,
    Figure,
    Finding,
    Study,
    Term,
    difference,
    key_axis,
    where,
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
        **scales.fields(scale, cut=("Without supervised training.",)),
        title="Depth and width of the encoder",
        source="SimCLR, Figure 7",
        axes=(
            key_axis("depth", "Depth", "encoder.depth", depths),
            key_axis("width", "Width", "encoder.width", widths),
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
        **scales.fields(
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
            key_axis(
                "dim", "Projection output dimensionality", "head.output_dim", dims
            ),
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
        **scales.fields(
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
        **scales.fields(
            scale,
            cut=("ResNets of one size; the paper has more.",)
            + ((f"{epochs:g} epochs of fine-tuning.",) if epochs else ()),
        ),
        title="Depth of the projection head by label fraction",
        source="SimCLRv2, Figure 5",
        axes=(key_axis("depth", "Layers of the head", "head.num_layers", depths),),
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
