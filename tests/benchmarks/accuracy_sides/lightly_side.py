"""SimCLR with lightly, as its examples train it, on CIFAR-10's images in an .npz file.

    python lightly_side.py train --task=TASK.json
    python lightly_side.py embed --task=TASK.json
    python lightly_side.py describe --task=TASK.json --output=FILE.npz

Runs in a Python with torch, torchvision and lightly, and needs nothing of this
package, except that `views: package` reads batches from a process of it.
"""

import argparse
import copy
import dataclasses
import json
import math
import os
import pathlib
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from PIL import Image
from torch import nn
from torchvision.models import resnet
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

_SIDE = 32
# Of a standard normal cut at two deviations.
_TRUNCATED_STD = 0.87962566103423978


@dataclasses.dataclass(frozen=True)
class Options:
    """What a variant may change; the defaults are lightly's and torchvision's."""

    zero_init_residual: bool = False  # the last BatchNorm of a block starts at 0
    conv_init: str = "he_normal"  # or truncated_normal, std 1/sqrt(fan_in)
    head_init: str = "uniform"  # PyTorch's; or normal, std 0.01
    decayed: str = "all"  # or kernels
    passes: int = 2  # of the net, one for each view; or 1
    last_offset: bool = True  # of the head's last BatchNorm
    interpolation: str = "bilinear"  # or bicubic
    normalized: bool = True  # pixels, by ImageNet's mean and deviation
    colours: str = "torchvision"  # or package: its contrast and saturation
    views: str = "lightly"  # or package: made by it


# The net -----------------------------------------------------------------------------


def make_encoder(width: float, options: Options) -> nn.Module:
    """torchvision's ResNet-18 with CIFAR's stem and a share of the filters."""
    net = resnet.resnet18(zero_init_residual=options.zero_init_residual)
    filters = round(64 * width)
    net.inplanes = filters
    net.conv1 = nn.Conv2d(3, filters, 3, padding=1, bias=False)
    net.bn1 = nn.BatchNorm2d(filters)
    net.maxpool = nn.Identity()
    for group in range(4):
        blocks = net._make_layer(
            resnet.BasicBlock, filters * 2**group, 2, stride=1 if group == 0 else 2
        )
        setattr(net, f"layer{group + 1}", blocks)
    net.fc = nn.Identity()
    # As torchvision's constructor does with the layers that were replaced.
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            if options.conv_init == "truncated_normal":
                fan_in = module.weight[0].numel()
                std = 1 / math.sqrt(fan_in) / _TRUNCATED_STD
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(module, resnet.BasicBlock) and options.zero_init_residual:
            nn.init.zeros_(module.bn2.weight)
    return net


def make_net(setting: dict[str, Any], options: Options) -> nn.Sequential:
    """Encoder and head; the hidden layer is as wide as the features."""
    encoder = make_encoder(setting["width"], options)
    features = 8 * round(64 * setting["width"])
    head = SimCLRProjectionHead(features, features, setting["output_dim"])
    if options.head_init == "normal":
        for module in head.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
    if not options.last_offset:
        head.layers[-1].bias.requires_grad_(False)
    net = nn.Sequential(encoder, head)
    return net.to(memory_format=torch.channels_last)


def make_optimizer(
    net: nn.Module, setting: dict[str, Any], options: Options
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """SGD, and a cosine to 0 over the steps of the run."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    groups = [{"params": parameters}]
    if options.decayed == "kernels":
        kernels = [p for p in parameters if p.ndim > 1]
        rest = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": kernels}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(
        groups,
        lr=setting["learning_rate"],
        momentum=setting["momentum"],
        weight_decay=setting["weight_decay"],
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / setting["steps"])) / 2
    )
    return optimizer, scheduler


# Views -------------------------------------------------------------------------------


class PackageColours(nn.Module):
    """Colour jitter whose contrast and saturation are those of TensorFlow.

    Contrast scales the distance to each channel's own mean (torchvision: to the mean
    grey of all), saturation S of HSV (torchvision: the distance to the pixel's grey);
    on floats, clipped after each.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.spread, self.hue = 0.8 * strength, 0.2 * strength

    def forward(self, image: Any) -> Any:
        x = transforms.functional.to_dtype(
            transforms.functional.to_image(image), torch.float32, scale=True
        )
        for which in torch.randperm(4).tolist():
            factor = 1 + self.spread * (2 * torch.rand(()) - 1)
            if which == 0:
                x = x * factor
            elif which == 1:
                mean = x.mean((1, 2), keepdim=True)
                x = mean + factor * (x - mean)
            elif which == 2:
                value = x.amax(0, keepdim=True)
                saturation = (value - x.amin(0, keepdim=True)) / value.clamp_min(1e-9)
                ratio = (saturation * factor).clamp_max(1) / saturation.clamp_min(1e-9)
                x = value - (value - x) * ratio
            else:
                turns = float(self.hue * (2 * torch.rand(()) - 1))
                x = transforms.functional.adjust_hue(x, turns)
            x = x.clamp(0, 1)
        return transforms.functional.to_pil_image(x)


def make_transform(setting: dict[str, Any], options: Options) -> SimCLRTransform:
    """lightly's transform; a variant exchanges one operation in it."""
    transform = SimCLRTransform(
        input_size=_SIDE,
        cj_strength=setting["jitter"],
        min_scale=setting["area_min"],
        gaussian_blur=0.0,
        normalize=IMAGENET_NORMALIZE if options.normalized else None,
    )
    for view in transform.transforms:
        for step in view.transform.transforms:
            if isinstance(step, transforms.RandomResizedCrop):
                step.interpolation = InterpolationMode(options.interpolation)
            if isinstance(step, transforms.RandomApply) and options.colours != (
                "torchvision"
            ):
                step.transforms = nn.ModuleList([PackageColours(setting["jitter"])])
    return transform


class Images(torch.utils.data.Dataset):
    """Pairs of views of images in memory."""

    def __init__(self, images: np.ndarray, transform: SimCLRTransform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(Image.fromarray(self.images[index]))


def _normalize(images: torch.Tensor, options: Options) -> torch.Tensor:
    """uint8 [N, H, W, 3] as a batch of the net."""
    x = images.permute(0, 3, 1, 2).to(torch.float32) / 255
    if options.normalized:
        mean, std = (
            torch.tensor(IMAGENET_NORMALIZE[name])[:, None, None]
            for name in ("mean", "std")
        )
        x = (x - mean) / std
    return x.contiguous(memory_format=torch.channels_last)


def _own_batches(
    setting: dict[str, Any], options: Options, images: np.ndarray, workers: int
) -> Iterator[list[torch.Tensor]]:
    loader = torch.utils.data.DataLoader(
        Images(images, make_transform(setting, options)),
        batch_size=setting["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        for views in loader:
            yield [x.contiguous(memory_format=torch.channels_last) for x in views]


def _package_batches(
    setting: dict[str, Any], options: Options, command: list[str]
) -> Iterator[list[torch.Tensor]]:
    shape = (setting["batch_size"], 2, _SIDE, _SIDE, 3)
    size = math.prod(shape)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while len(content := process.stdout.read(size)) == size:
            batch = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
            views = batch.reshape(shape)
            yield [_normalize(views[:, view], options) for view in range(2)]


def batches(task: dict[str, Any]) -> Iterator[list[torch.Tensor]]:
    """Two views of each batch, without end or for the steps of the run."""
    setting, options = task["setting"], Options(**task["options"])
    if options.views == "package":
        return _package_batches(setting, options, task["package_views"])
    images = np.load(task["data"])["train_images"]
    return _own_batches(setting, options, images, task["workers"])


# Commands ----------------------------------------------------------------------------


def train(task: dict[str, Any]) -> None:
    """Trains, and saves the net; a line of `progress.jsonl` follows some steps."""
    setting, options = task["setting"], Options(**task["options"])
    folder = pathlib.Path(task["folder"])
    net = make_net(setting, options)
    optimizer, scheduler = make_optimizer(net, setting, options)
    criterion = NTXentLoss(temperature=setting["temperature"])
    net.train()
    with open(folder / "progress.jsonl", "w", buffering=1) as log:
        stream = batches(task)
        for step in range(1, setting["steps"] + 1):
            x0, x1 = next(stream)
            if options.passes == 2:
                z0, z1 = net(x0), net(x1)
            else:
                z0, z1 = net(torch.cat([x0, x1])).chunk(2)
            loss = criterion(z0, z1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate = scheduler.get_last_lr()[0]
            scheduler.step()
            if step == 1 or step % 50 == 0 or step == setting["steps"]:
                line = {"step": step, "loss": loss.item(), "learning_rate": rate}
                log.write(json.dumps(line) + "\n")
    stream.close()
    torch.save(net.state_dict(), folder / "net.pt")


@torch.no_grad()
def _features(net: nn.Sequential, images: np.ndarray, options: Options) -> np.ndarray:
    net.eval()
    parts = torch.from_numpy(images).split(500)
    return torch.cat([net[0](_normalize(part, options)) for part in parts]).numpy()


def embed(task: dict[str, Any]) -> None:
    """Writes h of the training and test images."""
    folder = pathlib.Path(task["folder"])
    options = Options(**task["options"])
    net = make_net(task["setting"], options)
    net.load_state_dict(torch.load(folder / "net.pt"))
    arrays = np.load(task["data"])
    for split in ("train", "test"):
        features = _features(net, arrays[f"{split}_images"], options)
        np.savez(folder / f"features_{split}.npz", features=features)


def describe(task: dict[str, Any], output: str, count: int) -> None:
    """Writes what can be compared without training.

    Parameters, rates of the schedule, h and z of images before training (z with the
    statistics of the batch), and uint8 views of the first `count` images.
    """
    setting, options = task["setting"], Options(**task["options"])
    net = make_net(setting, options)
    trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    optimizer, scheduler = make_optimizer(net, setting, options)
    rates = []
    for _ in range(setting["steps"]):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    images = np.load(task["data"])["train_images"][:count]
    raw = dataclasses.replace(options, normalized=False)
    data = Images(images, make_transform(setting, raw))
    views = torch.stack([torch.stack(data[i]) for i in range(len(data))])
    some = _normalize(torch.from_numpy(images[:512]), options)
    with torch.no_grad():
        net.train()
        z = copy.deepcopy(net)(some)
        h = copy.deepcopy(net[0])(some)
    np.savez(
        output,
        names=[name for name, _ in trained],
        sizes=[p.numel() for _, p in trained],
        stds=[float(p.detach().std(correction=0)) for _, p in trained],
        rates=rates,
        h=h.numpy(),
        z=z.numpy(),
        views=(views * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy(),
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "embed", "describe"))
    parser.add_argument("--task", required=True, type=pathlib.Path)
    parser.add_argument("--output")
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    task = json.loads(arguments.task.read_text())
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(task["seed"])
    if arguments.command == "describe":
        describe(task, arguments.output, arguments.count)
    else:
        {"train": train, "embed": embed}[arguments.command](task)


if __name__ == "__main__":
    main()
