"""Studies of loss, batch and optimiser: SimCLR, Section 5, appendix B.

SimCLR: Chen et al., ICML 2020.
"""

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
    key_axis,
    where,
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
        **scales.fields(
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
        **scales.fields(
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
        **scales.fields(
            scale,
            cut=() if scale == "paper" else (cut,),
            changes={"schedule__warmup_epochs": 10.0 if scale == "paper" else 1.0},
        ),
        title="Batch size by epochs",
        source="SimCLR, Figure 9",
        axes=(
            key_axis("epochs", "Training epochs", "schedule.train_epochs", epochs),
            key_axis("batch", "Batch size", "batch.batch_size", batches),
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
                f"The advantage of the batch of {large} is smaller after {long} "
                f"epochs than after {short}.",
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
    # At the largest batch, where both rules give the same rate. Each is trained there,
    # as the last point of its line.
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
        **scales.fields(
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
            key_axis("batch", "Batch size", "batch.batch_size", batches),
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
