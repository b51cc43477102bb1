"""Times the train step on one CPU core against PyTorch with lightly's loss.

    python tests/benchmarks/train_step.py --torch_python=PATH

PATH is a Python that has torch, torchvision and lightly; without it an environment with
them is made in --env. Both sides take turns, a step each, on the same core; what is
compared is processor time. They train the same net on the same images, with the same
number of parameters: two views of each image, forward pass, NT-Xent, backward pass, SGD
with momentum. On this side it is the step that training runs.
"""

import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import in_turn

# name -> depth, share of the filters, stem, side of the images, images in the batch
NETS: dict[str, tuple[int, float, str, int, int]] = {
    "resnet18": (18, 1.0, "cifar", 32, 64),
    "resnet18_quarter": (18, 0.25, "cifar", 32, 256),
    "resnet50": (50, 1.0, "imagenet", 64, 16),
}
SIDES = ("torch", "cpu", "direct")
TEMPERATURE, MOMENTUM, LEARNING_RATE = 0.1, 0.9, 0.01
HIDDEN_LAYERS, OUTPUT_DIM = 1, 128
# A step returns its loss.
Step = Callable[[], float]


def make_images(batch_size: int, side: int) -> Any:
    import numpy as np

    shape = (batch_size, 2, side, side, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def jax_step(net: str, form: str) -> tuple[Step, int]:
    """The package's step, and its parameters.

    Args:
      net: a name in `NETS`.
      form: of the convolutions, 'cpu' or 'direct'; 'direct' is for accelerators.
    """
    import jax
    import numpy as np

    from simclr_jax import losses, models, optim, parallel
    from simclr_jax.models import convolutions
    from simclr_jax.training import compiling, cpu_memory, step

    if form == "direct":
        convolutions._by_platform = lambda *arrays, cpu, direct, gpu=None: direct(
            *arrays
        )
    cpu_memory.keep_freed_memory()  # as the commands do
    depth, width, stem, side, batch_size = NETS[net]
    parts = step.StepParts(
        model=models.SimCLR(
            encoder=models.create_encoder(depth=depth, width=width, stem=stem),
            head=models.create_projection_head(
                num_layers=HIDDEN_LAYERS + 1, output_dim=OUTPUT_DIM
            ),
        ),
        objective=step.Contrastive(
            loss=lambda z: losses.nt_xent(z, temperature=TEMPERATURE),
            temperature=TEMPERATURE,
        ),
        optimizer=optim.sgd(
            lambda step: LEARNING_RATE, weight_decay=0.0, momentum=MOMENTUM
        ),
        schedule=lambda step: LEARNING_RATE,
    )
    mesh = parallel.create_mesh(jax.devices()[:1])
    state = compiling.compile_init(parts, mesh, image_size=side)(jax.random.key(0))
    batch = parallel.shard_batch(
        mesh,
        {
            "images": make_images(batch_size, side),
            "labels": np.full(batch_size, -1, np.int32),
        },
    )
    advance = compiling.compile_step(parts, mesh)
    num_parameters = sum(x.size for x in jax.tree.leaves(state.params))

    def one() -> float:
        nonlocal state
        state, metrics, _ = advance(state, batch)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return one, num_parameters


def torch_step(net: str) -> tuple[Step, int]:
    """The same in PyTorch: torchvision's net in channels-last, lightly's NTXentLoss."""
    import torch
    import torchvision
    from accuracy_sides import lightly_side
    from lightly.loss import NTXentLoss
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    depth, width, stem, side, batch_size = NETS[net]
    encoder = getattr(torchvision.models, f"resnet{depth}")()
    features = round(width * encoder.fc.in_features)
    encoder.fc = nn.Identity()
    if stem == "cifar":
        encoder = lightly_side.make_encoder(width, lightly_side.Options())
    layers: list[nn.Module] = []
    for _ in range(HIDDEN_LAYERS):
        layers += [nn.Linear(features, features, bias=False)]
        layers += [nn.BatchNorm1d(features), nn.ReLU(inplace=True)]
    layers += [nn.Linear(features, OUTPUT_DIM, bias=False), nn.BatchNorm1d(OUTPUT_DIM)]
    # The last BatchNorm has no offset here.
    layers[-1].bias.requires_grad_(False)
    model = nn.Sequential(encoder, *layers).to(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, MOMENTUM)
    criterion = NTXentLoss(temperature=TEMPERATURE)
    images = torch.from_numpy(make_images(batch_size, side))

    def one() -> float:
        x = images.transpose(0, 1).reshape(-1, side, side, 3).permute(0, 3, 1, 2)
        z = model(x.to(torch.float32) / 255)
        loss = criterion(z[:batch_size], z[batch_size:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return one, sum(p.numel() for p in parameters)


def serve(net: str, side: str) -> None:
    """One side's process, which replies with processor seconds and the loss."""
    step, num_parameters = torch_step(net) if side == "torch" else jax_step(net, side)
    step()

    def timed() -> tuple[float, float]:
        start = time.process_time()
        loss = step()
        return time.process_time() - start, loss

    in_turn.serve(num_parameters, timed)


def compare(
    net: str,
    torch_python: pathlib.Path,
    *,
    names: Sequence[str],
    rounds: int,
    steps: int,
    core: int,
) -> None:
    """Prints the table of one net, of the sides in `names`; 'torch' is one."""
    pythons = {"torch": torch_python}
    sides = {
        side: in_turn.Contender(
            pythons.get(side, pathlib.Path(sys.executable)),
            __file__,
            f"{net},{side}",
            core,
        )
        for side in names
    }
    counts = {side: process.about for side, process in sides.items()}
    if len(set(counts.values())) > 1:
        raise SystemExit(f"The nets differ in their numbers of parameters: {counts}")
    seconds: dict[str, list[float]] = {side: [] for side in names}
    losses: dict[str, float] = {}
    for _ in range(rounds):
        for side, process in sides.items():
            # The first step of a turn finds the caches full of another side's data.
            turn = [process.step() for _ in range(1 + steps)][1:]
            seconds[side].append(statistics.median(s for s, _ in turn))
            losses[side] = turn[-1][1]
    for process in sides.values():
        process.close()

    *_, image_side, batch_size = NETS[net]
    print(
        f"\n{net}, {image_side} pixels, {batch_size} images of two views,"
        f" {counts['torch']:,} parameters;"
        f" {rounds} rounds of {steps} steps on core {core}"
    )
    print("| side | images/s | of torch | lowest and highest round | loss |")
    print("|---|---|---|---|---|")
    reference = statistics.median(seconds["torch"])
    for side in names:
        median = statistics.median(seconds[side])
        rates = sorted(batch_size / s for s in seconds[side])
        print(
            f"| {side} | {batch_size / median:.1f} | {reference / median:.2f} |"
            f" {rates[0]:.1f}, {rates[-1]:.1f} | {losses[side]:.4f} |",
            flush=True,
        )


def main() -> None:
    """Runs the command line."""
    parser = in_turn.parser(__doc__.splitlines()[0])
    parser.add_argument("--net", choices=list(NETS), action="append")
    parser.add_argument("--side", choices=SIDES[1:], action="append")
    parser.add_argument("--steps", type=int, default=2, help="of each side in a round")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve.split(","))
        return
    python = arguments.torch_python or in_turn.make_environment(arguments.env)
    for net in arguments.net or NETS:
        compare(
            net,
            python,
            names=["torch", *(arguments.side or SIDES[1:])],
            rounds=arguments.rounds,
            steps=arguments.steps,
            core=arguments.core,
        )


if __name__ == "__main__":
    main()
