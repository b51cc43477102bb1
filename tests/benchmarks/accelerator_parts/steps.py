"""The train step against PyTorch's, in turn, and training with its input pipeline."""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import in_turn
import numpy as np

from accelerator_parts.record import Record, Settings

# Neither side takes all memory of a GPU for itself.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
NEARLY_ALL = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
ROUNDS, TURN_SECS = 3, 4.0
PEERS = ("eager", "compiled")
PLACEMENTS = ("accelerator", "host_crop", "host")


@dataclasses.dataclass(frozen=True)
class Net:
    """A net and its batch.

    Attributes:
      depth: of the ResNet.
      stem: as in the configs.
      side: of a view in pixels.
      batch_size: images of two views.
      width: of the net.
      train_steps: of a run with its input pipeline.
    """

    depth: int
    stem: str
    side: int
    batch_size: int
    train_steps: int
    width: float = 1.0


NETS = {
    "resnet18": Net(18, "cifar", 32, 512, 200),
    "resnet50": Net(50, "imagenet", 224, 256, 60),
}
TOYS = {
    "resnet18": Net(18, "cifar", 8, 16, 4, width=0.0625),
    "resnet50": Net(18, "imagenet", 16, 8, 4, width=0.0625),
}
# Turns of a step: (images/s, loss).
Turn = Callable[[], tuple[float, float]]


def has_torch() -> bool:
    """Whether PyTorch can be imported here."""
    return all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))


def make_config(net: Net) -> Any:
    """The package's config of a net, with plain SGD as the peer has it."""
    from simclr_jax.configs import base

    config = base.get_config()
    config.image_size = net.side
    config.batch.batch_size = net.batch_size
    config.encoder.depth, config.encoder.width = net.depth, net.width
    config.encoder.stem = net.stem
    config.optimizer.name = "sgd"
    config.head.num_layers = 2
    config.probe.enabled = False
    config.schedule.train_steps = net.train_steps
    config.schedule.warmup_steps = 1
    return config


def _turn(step: Callable[[], float], batch_size: int, secs: float) -> Turn:
    def turn() -> tuple[float, float]:
        count, start = 0, time.monotonic()
        while count < 2 or time.monotonic() - start < secs:
            loss = step()
            count += 1
        return count * batch_size / (time.monotonic() - start), loss

    return turn


def our_step(net: Net) -> tuple[dict[str, Any], Callable[[], float]]:
    """(parameters, memory; a step): the step that training runs, one batch."""
    import jax

    from simclr_jax import parallel
    from simclr_jax.config import resolve
    from simclr_jax.training import compiling, out_of_memory, step

    config = resolve.resolve(make_config(net), num_examples=10**6)
    mesh = parallel.create_mesh()
    parts = step.pretraining_parts(config, num_classes=None, mesh=mesh)
    shape = (net.batch_size, 2, net.side, net.side, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = np.full(net.batch_size, -1, np.int32)
    batch = parallel.shard_batch(mesh, {"images": images, "labels": labels})
    init = compiling.compile_init(parts, mesh, image_size=net.side)
    state = init(jax.random.key(0))
    start = time.monotonic()
    advance = compiling.compile_step(parts, mesh).lower(state, batch).compile()
    compile_secs = time.monotonic() - start
    memory = advance.memory_analysis()
    about = {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "compile_secs": round(compile_secs, 1),
        "gib": round(
            (out_of_memory.fixed_bytes(memory) + memory.temp_size_in_bytes) / 2**30, 3
        ),
    }

    def one() -> float:
        nonlocal state
        state, metrics, _ = advance(state, batch)
        return float(metrics["loss"])  # waits for the step

    return about, one


def peer_step(net: Net, form: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """The same in PyTorch: channels-last, bfloat16 by autocast, lightly's loss."""
    import torch
    import torchvision
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    encoder = getattr(torchvision.models, f"resnet{net.depth}")()
    width = encoder.fc.in_features
    encoder.fc = nn.Identity()
    if net.stem == "cifar":
        encoder.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        encoder.maxpool = nn.Identity()
    model: Any = nn.Sequential(
        encoder,
        *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width)),
        nn.ReLU(inplace=True),
        *(nn.Linear(width, 128, bias=False), nn.BatchNorm1d(128)),
    ).to(device, memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.01, 0.9)
    if form == "compiled":
        model = torch.compile(model)
    shape = (net.batch_size, 2, net.side, net.side, 3)
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    ).to(device)
    criterion = torch_loss("lightly" if importlib.util.find_spec("lightly") else "own")

    def one() -> float:
        x = images.transpose(0, 1).reshape(-1, net.side, net.side, 3)
        x = x.permute(0, 3, 1, 2).to(torch.float32) / 255
        with torch.autocast(device, torch.bfloat16):
            z = model(x)
        z = z.float()
        loss = criterion(z[: net.batch_size], z[net.batch_size :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    one()
    about = {"parameters": sum(p.numel() for p in parameters)}
    if device == "cuda":
        about["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return about, one


def torch_loss(form: str) -> Any:
    """NT-Xent of (first views, second views) in PyTorch at temperature 0.1."""
    import torch
    import torch.nn.functional as F

    if form == "lightly":
        from lightly.loss import NTXentLoss

        return NTXentLoss(temperature=0.1)

    def cross_entropy(first: Any, second: Any) -> Any:
        z = F.normalize(torch.cat([first, second]), dim=1)
        logits = z @ z.T / 0.1
        logits.fill_diagonal_(float("-inf"))
        partner = torch.arange(len(z), device=z.device).roll(len(first))
        return F.cross_entropy(logits, partner)

    return cross_entropy


def serve(what: str) -> None:
    """A side's process; `what` is JSON."""
    told = json.loads(what)
    net = Net(**told["net"])
    try:
        if told["side"] == "ours":
            about, step = our_step(net)
        else:
            about, step = peer_step(net, told["side"])
        step()
    except Exception as error:  # told to the other process, such as out of memory
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}))
        return
    in_turn.serve(about, _turn(step, net.batch_size, told["secs"]))


def in_turns(net: Net, settings: Settings, *, together: bool = True) -> dict[str, Any]:
    """Rates of all sides; images/s, median and range of their turns.

    Args:
      net: of all sides.
      settings: of the command.
      together: each peer takes turns with this package; else each side has the device,
        and nearly all of its memory, for itself.
    """
    groups: list[tuple[str, ...]] = [("ours",)]
    if has_torch():
        groups = [("ours", peer) for peer in PEERS]
        if not together:
            groups = [("ours",), *((peer,) for peer in PEERS)]
    result: dict[str, Any] = {
        peer: {"error": "PyTorch and torchvision not installed"} for peer in PEERS
    }
    turns: dict[str, list[tuple[float, float]]] = {}
    environment = SHARED if together else {**SHARED, **NEARLY_ALL}
    for group in groups:
        contenders = {}
        for side in group:
            contenders[side] = _start(net, side, settings, environment)
            result[side] = contenders[side].about
        for _ in range(ROUNDS):
            for side, contender in contenders.items():
                if "error" not in contender.about:
                    turns.setdefault(side, []).append(contender.step())
        for contender in contenders.values():
            contender.close()
    for side, pairs in turns.items():
        rates = [rate for rate, _ in pairs]
        result[side] |= {
            "images_per_sec": round(statistics.median(rates), 1),
            "lowest": round(min(rates), 1),
            "highest": round(max(rates), 1),
            "loss": round(pairs[-1][1], 4),
        }
    return {"batch_size": net.batch_size, **result}


def _start(
    net: Net, side: str, settings: Settings, environment: dict[str, str]
) -> in_turn.Contender:
    secs = 0.2 if settings.toy else TURN_SECS
    what = {"net": dataclasses.asdict(net), "side": side, "secs": secs}
    return in_turn.Contender(
        pathlib.Path(sys.executable),
        str(pathlib.Path(__file__)),
        json.dumps(what),
        None,
        environment,
    )


def steps(record: Record, settings: Settings) -> None:
    """Both nets at their usual batch, then the largest batch that fits."""
    nets = TOYS if settings.toy else NETS
    for name, net in nets.items():
        if name not in record:
            record[name] = in_turns(net, settings)
    if "resnet50 largest" not in record:
        record["resnet50 largest"] = _largest(
            nets["resnet50"], record.rows["resnet50"]["ours"], settings
        )


def _largest(net: Net, at_usual: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The largest multiple of 64 images that fits, by memory in proportion to it."""
    import jax

    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if "error" in at_usual:
        return {"error": at_usual["error"]}
    size = 2 * net.batch_size  # where the memory is unknown, as on CPUs
    if limit is not None:
        # JAX takes three quarters of a GPU by default; here it may have nearly all.
        total = limit / 0.75 / 2**30
        size = int(0.85 * total / at_usual["gib"] * net.batch_size) // 64 * 64
    while size > net.batch_size and settings.secs_left > 0:
        larger = dataclasses.replace(net, batch_size=size)
        result = in_turns(larger, settings, together=False)
        if "error" not in result["ours"]:
            return result
        size = int(0.85 * size) // 64 * 64
    return {"error": f"no batch above {net.batch_size} fits, or the time was up"}


def placements(record: Record, settings: Settings) -> None:
    """Images per second of whole training runs, by where views are computed."""
    nets = {"resnet18": TOYS["resnet18"]} if settings.toy else NETS
    for name, net in nets.items():
        for placement in PLACEMENTS[: 1 if settings.toy else None]:
            row = f"{name}, {placement}"
            if row in record:
                continue
            if placement != "accelerator" and not importlib.util.find_spec("numba"):
                record[row] = {"error": "Numba not installed"}
                continue
            record[row] = _train(net, placement, row, settings)


def _train(net: Net, placement: str, row: str, settings: Settings) -> dict[str, Any]:
    import shutil

    from simclr_jax.training import loop

    config = make_config(net)
    if settings.toy:
        config.augment.operations = ("crop", "flip")
    config.augment.placement = placement
    config.data.dataset = settings.data()
    if net.side > 32:
        config.data.dataset = f"npz:{_photograph_sized(settings)}"
    config.log.every_steps = net.train_steps // 2
    config.log.writers = ()
    config.checkpoint.every_steps = net.train_steps
    workdir = settings.workdir / row.replace(", ", "-")
    shutil.rmtree(workdir, ignore_errors=True)
    loop.run(loop.pretraining_job(config), str(workdir))
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    shutil.rmtree(workdir)
    return {
        "images_per_sec": round(last["images_per_sec"], 1),
        "input_wait_share": round(last["input_wait_share"], 3),
    }


def _photograph_sized(settings: Settings) -> pathlib.Path:
    """A file of 1024 images of 256 pixels, noise: nothing depends on their content."""
    path = settings.workdir / "data" / "noise256.npz"
    if not path.exists():
        images = np.random.default_rng(0).integers(
            0, 256, (1024, 256, 256, 3), np.uint8
        )
        np.savez(path, images=images)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", required=True)
    serve(parser.parse_args().serve)
