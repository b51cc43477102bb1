"""Times a linear evaluation on one CPU core against scikit-learn's.

    python tests/benchmarks/linear_evaluation.py --peers_python=PATH

PATH is a Python that has scikit-learn; without it an environment with it is made in
--env. Both take turns on the same core with the same features and the same penalty p on
the mean loss, which is C = 1 / (N p) there; what is compared is processor time of
standardising, fitting and classifying the test features. The features are rectified
random projections of overlapping classes: they go together and differ in size, as those
of an encoder do.

| contender | what it is |
|---|---|
| scikit-learn | LogisticRegression as it comes (L-BFGS, tol 1e-4), on float32 |
| ours | `linear.linear_evaluation` with one penalty |
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import in_turn

CONTENDERS = ("scikit-learn", "ours")
PENALTIES = (1e-4, 1e-2)
_LATENT = 128
_CLASSES = 10


def features(num_train: int, width: int) -> Any:
    """(train_x, train_labels, test_x, test_labels), a fifth as many to test on."""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = 0.3 * rng.normal(size=(_CLASSES, _LATENT))
    sizes = np.arange(1, _LATENT + 1)[:, None] ** -0.75
    mixed = sizes * rng.normal(size=(_LATENT, width))
    bias = 0.5 * rng.normal(size=width)

    def draw(count: int) -> Any:
        labels = rng.integers(0, _CLASSES, count).astype(np.int32)
        latent = centres[labels] + rng.normal(size=(count, _LATENT))
        x = latent @ mixed + bias + 0.1 * rng.normal(size=(count, width))
        return np.maximum(x, 0).astype(np.float32), labels

    return *draw(num_train), *draw(num_train // 5)


def standardise(train_x: Any, test_x: Any) -> Any:
    mean, deviation = train_x.mean(axis=0), train_x.std(axis=0) + 1e-6
    return (train_x - mean) / deviation, (test_x - mean) / deviation


def loss(weights: Any, bias: Any, x: Any, labels: Any, penalty: float) -> float:
    """In float64, of weights [D, classes]."""
    import numpy as np

    weights = weights.astype(np.float64)
    scores = x.astype(np.float64) @ weights + bias
    scores -= scores.max(axis=1, keepdims=True)
    chosen = scores[np.arange(len(x)), labels]
    losses = np.log(np.exp(scores).sum(axis=1)) - chosen
    return float(losses.mean() + 0.5 * penalty * np.sum(weights**2))


Step = Callable[[], float]


def make_ours(data: Any, penalty: float) -> tuple[Step, Step]:
    import numpy as np

    from simclr_jax import parallel
    from simclr_jax.evaluation import features, linear, logistic, metrics

    mesh = parallel.create_mesh()
    train, test = features.put(*data[:2], mesh), features.put(*data[2:], mesh)

    def step() -> float:
        predicted, _ = linear.linear_evaluation(
            train, test, l2_penalties=(penalty,), max_steps=300
        )
        return metrics.top1(predicted, test.labels)

    def reached() -> float:
        found: list[Any] = []
        fit = logistic.fit

        def watched(*arguments: Any, **settings: Any) -> Any:
            found.append(fit(*arguments, **settings))
            return found[0]

        logistic.fit = watched
        step()
        logistic.fit = fit
        x, _ = standardise(data[0], data[2])
        weights, bias = (np.asarray(part) for part in found[0])
        return loss(weights, bias, x, data[1], penalty)

    return step, reached


def make_theirs(data: Any, penalty: float) -> tuple[Step, Step]:
    from sklearn.linear_model import LogisticRegression

    train_x, train_labels, test_x, test_labels = data
    model = LogisticRegression(C=1 / (len(train_x) * penalty), max_iter=1000)

    def step() -> float:
        x, unseen = standardise(train_x, test_x)
        return float(model.fit(x, train_labels).score(unseen, test_labels))

    def reached() -> float:
        x, _ = standardise(train_x, test_x)
        return loss(model.coef_.T, model.intercept_, x, train_labels, penalty)

    return step, reached


def serve(what: str) -> None:
    name, penalty, num_train, width = json.loads(what)
    make = make_ours if name == "ours" else make_theirs
    run, reached = make(features(num_train, width), penalty)

    def step() -> tuple[float, float]:
        start = time.process_time()
        accuracy = run()
        return time.process_time() - start, accuracy

    first, _ = step()  # compiles
    in_turn.serve([first, reached()], step)


def main() -> None:
    """Runs the command line."""
    parser = in_turn.parser(__doc__.splitlines()[0])
    parser.set_defaults(
        env=pathlib.Path.home() / ".cache" / "simclr_jax" / "scikit-learn", rounds=3
    )
    parser.add_argument("--num_train", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    peers_python = arguments.torch_python or in_turn.make_environment(
        arguments.env, packages=("scikit-learn",)
    )
    print(
        f"{arguments.num_train} x {arguments.width} features, {_CLASSES} classes, "
        f"float32; {arguments.rounds} rounds on one core"
    )
    print(
        "| penalty | | CPU seconds | lowest, highest | first | of scikit-learn's | "
        "accuracy | loss |"
    )
    print("|---" * 8 + "|")
    for penalty in PENALTIES:
        sides = {}
        for name in CONTENDERS:
            python = pathlib.Path(sys.executable) if name == "ours" else peers_python
            what = json.dumps([name, penalty, arguments.num_train, arguments.width])
            sides[name] = in_turn.Contender(python, __file__, what, arguments.core)
        replies: dict[str, list[Any]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                replies[name].append(side.step())
        seconds = {name: [reply[0] for reply in replies[name]] for name in sides}
        middles = {name: statistics.median(seconds[name]) for name in sides}
        for name, side in sides.items():
            first, reached = side.about
            low, high = min(seconds[name]), max(seconds[name])
            print(
                f"| {penalty:g} | {name} | {middles[name]:.2f} | {low:.2f}, {high:.2f} "
                f"| {first:.2f} | {middles[name] / middles['scikit-learn']:.2f} | "
                f"{100 * replies[name][-1][1]:.2f} % | {reached:.5f} |",
                flush=True,
            )
            side.close()


if __name__ == "__main__":
    main()
