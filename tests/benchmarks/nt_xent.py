"""Times NT-Xent and its gradient on one CPU core against PyTorch.

    python tests/benchmarks/nt_xent.py --torch_python=PATH

PATH is a Python that has torch and lightly; without it an environment with them is made
in --env. All take turns on the same core with the same projections; what is compared is
processor time, and how much the resident memory of a fresh process grows over its first
two steps.

| contender | what it is |
|---|---|
| lightly | lightly's NTXentLoss |
| cross entropy | the usual way: one matrix, its diagonal masked, F.cross_entropy |
| compiled | the same under torch.compile |
| log-sum-exp | the same loss with the fewest passes over the matrix |
| global | this package, one matrix |
| streaming | this package, as training takes it for such a batch |
"""

import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import in_turn

TEMPERATURE = 0.1
OURS = ("global", "streaming")
PEERS = ("lightly", "cross entropy", "log-sum-exp", "compiled")
Step = Callable[[], float]


def projections(num_images: int, width: int) -> Any:
    import numpy as np

    # Views of an image agree, as in training.
    noise = np.random.default_rng(0).normal(size=(num_images, 3, width))
    return (noise[:, :1] + noise[:, 1:]).astype(np.float32)


def jax_step(form: str, num_images: int, width: int) -> Step:
    import jax

    from simclr_jax.losses import choose_streaming, nt_xent

    streaming = None if form == "global" else choose_streaming(2 * num_images, None)
    z = jax.device_put(projections(num_images, width))
    function = jax.jit(
        jax.value_and_grad(
            lambda z: nt_xent(z, temperature=TEMPERATURE, streaming=streaming)
        )
    )

    def step() -> float:
        return float(jax.block_until_ready(function(z))[0])

    return step


def torch_step(form: str, num_images: int, width: int) -> Step:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    z = torch.from_numpy(projections(num_images, width))
    first, second = (z[:, v].clone().requires_grad_() for v in (0, 1))
    partner = torch.arange(2 * num_images).roll(num_images)

    def cross_entropy(first: Any, second: Any) -> Any:
        z = F.normalize(torch.cat([first, second]), dim=1)
        logits = z @ z.T / TEMPERATURE
        logits.fill_diagonal_(float("-inf"))
        return F.cross_entropy(logits, partner)

    def log_sum_exp(first: Any, second: Any) -> Any:
        first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
        z = torch.cat([first, second])
        logits = (z / TEMPERATURE) @ z.T
        logits.fill_diagonal_(float("-inf"))
        positives = (first * second).sum(1).mean() / TEMPERATURE
        return torch.logsumexp(logits, dim=1).mean() - positives

    if form == "lightly":
        from lightly.loss import NTXentLoss

        loss_of: Any = NTXentLoss(temperature=TEMPERATURE)
    elif form == "compiled":
        loss_of = torch.compile(cross_entropy)
    else:
        loss_of = {"cross entropy": cross_entropy, "log-sum-exp": log_sum_exp}[form]

    def step() -> float:
        first.grad = second.grad = None
        loss = loss_of(first, second)
        loss.backward()
        return loss.item()

    return step


def serve(what: str) -> None:
    form, num_images, width = what.split(",")
    make = jax_step if form in OURS else torch_step
    run = make(form, int(num_images), int(width))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = [run(), run()]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def step() -> tuple[float, float]:
        start = time.process_time()
        loss = run()
        return time.process_time() - start, loss

    in_turn.serve([(after - before) / 1024, losses[0]], step)


def main() -> None:
    """Runs the command line."""
    parser = in_turn.parser(__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, default=4096)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    torch_python = arguments.torch_python or in_turn.make_environment(arguments.env)
    contenders = {}
    for form in (*PEERS, *OURS):
        python = pathlib.Path(sys.executable) if form in OURS else torch_python
        what = f"{form},{arguments.num_images},{arguments.width}"
        contenders[form] = in_turn.Contender(python, __file__, what, arguments.core)
    seconds: dict[str, list[float]] = {form: [] for form in contenders}
    for _ in range(arguments.rounds):
        for form, contender in contenders.items():
            # The first step of a turn finds the caches full of another's data.
            turn = [contender.step() for _ in range(2)]
            seconds[form].append(turn[-1][0])
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    fastest_peer = min(medians[form] for form in PEERS)
    print(
        f"NT-Xent and gradient, {arguments.num_images} images of two views, width "
        f"{arguments.width}, float32; {arguments.rounds} rounds on one core"
    )
    print("| | CPU seconds | lowest, highest | of the fastest peer | MB | loss |")
    print("|---|---|---|---|---|---|")
    for form, contender in contenders.items():
        memory, loss = contender.about
        low, high = min(seconds[form]), max(seconds[form])
        print(
            f"| {form} | {medians[form]:.2f} | {low:.2f}, {high:.2f} | "
            f"{medians[form] / fastest_peer:.2f} | {memory:.0f} | {loss:.5f} |"
        )
        contender.close()


if __name__ == "__main__":
    main()
