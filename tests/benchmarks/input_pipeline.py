"""Times the input pipeline on one CPU core against the original's and its peers.

    python tests/benchmarks/input_pipeline.py --images=FOLDER
    python tests/benchmarks/input_pipeline.py --cifar --tfds=FOLDER

Two views of each image by SimCLR's recipe: crop, flip, colour jitter, grey, blur. With
--images they are made of JPEG files, read beforehand, at 224 pixels, and decoding is
part of it; with --cifar of CIFAR-10's uint8 images in memory, without blur and with
half the jitter. The contenders take turns on one core, one thread each, in processes of
their own. What is compared is images per second of processor time; a ratio is the
median over the rounds, with the lowest and the highest. The peers' Python is made in
--env, or is that of --torch_python; a peer that it lacks stands in the table as not
run.

| contender | what it is |
|---|---|
| original | google-research/simclr's recipe in TensorFlow, its blur on the host too |
| original-no-blur | its host part as shipped: the blur is left to the accelerator |
| ours | this package's pipeline, blur included |
| ours-antialias | the same, its crops antialiased as Pillow's |
| ours-float32 | as ours, and its views as floats in [0, 1], made on the host |
| ours-no-blur | ours without blur |
| ours-split | its decoding and cropping; the rest is left to the accelerator |
| decode | decoding with the exact transform and nothing else: a floor |
| torchvision-pil | torchvision's v1 transforms on PIL images |
| torchvision-uint8 | its v2 transforms on tensors, colours and blur in uint8 |
| torchvision-float32 | the same with colours and blur in float32 |
| lightly | lightly's SimCLRTransform on PIL images |
| albumentations | its transforms on uint8 arrays, which are OpenCV's |
| dali | NVIDIA DALI's operations for CPUs, on uint8 |

They differ in more than speed:

- Decoding: original with TensorFlow's default, the fast transform; the others exactly.
- Crops: original and ours draw the height uniformly and never less than a tenth of the
  area, the others the area itself, so theirs are larger on average.
- Resizing: cubic, in lightly linear. Original, ours and albumentations do not
  antialias; ours-antialias and torchvision do.
- Colours: original, ours and torchvision-float32 compute in float32, the others round
  to uint8 after each operation. dali multiplies by one matrix, in one order, clips once
  and greys by a saturation of 0. Contrast is about each channel's mean in original and
  ours, about half of the range in dali, about the mean grey in the others. Saturation
  is HSV's in original and ours, a mixture with grey in the others.
- Blur: the original has one sigma for all images of a batch and blurs all of them, also
  those it keeps sharp; the others draw for each image. Around the image there are zeros
  in original and ours, in lightly its border is extended, elsewhere it is mirrored.
  Lightly's is PIL's, which repeats box filters.
- Output: float32, or uint8, a quarter of its size.
"""

import functools
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import in_turn
import numpy as np
from input_sides.task import Batches, Task, check, cifar, imagenet

PACKAGES = ("albumentations", "opencv-python-headless", "nvidia-dali-cuda120")
YARDSTICKS = ("original", "original-no-blur")
# name -> what the config has besides the recipe
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours-antialias": {"augment.crop.antialias": True},
    "ours-float32": {},
    "ours-no-blur": {
        "augment.operations": ("crop", "flip", "color_jitter", "grayscale")
    },
    "ours-host_crop": {"augment.placement": "host_crop"},
}
NATIVE = (*YARDSTICKS, *OURS, "decode")
TORCHVISION = ("torchvision-pil", "torchvision-uint8", "torchvision-float32")
PEERS = (*TORCHVISION, "lightly", "albumentations", "dali")
# At 32 pixels there is no blur, so original is what the original has on the host.
CIFAR_NATIVE = ("original", "ours", "ours-host_crop")
CIFAR_PEERS = (*TORCHVISION, "lightly", "albumentations")
# Processor seconds may arrive late, when threads that read ahead wait for the core.
_CALM_SECONDS, _CALM_READINGS, _CALM = 0.02, 15, 5e-4


def make(name: str, task: Task) -> Batches:
    """A contender's batches; imports what it needs and no more."""
    if name in OURS:
        from input_sides import package

        batches = package.batches(task, OURS[name])
        if name == "ours-float32":
            return (batch * np.float32(1 / 255) for batch in batches)
        return batches
    if name in NATIVE:
        from input_sides import original

        if name == "decode":
            return original.decoded(task)
        return original.batches(task, blur=task.blur and name == "original")
    from input_sides import peers

    makers: dict[str, Callable[[Task], Batches]] = {
        "torchvision-pil": peers.torchvision_pil,
        "torchvision-uint8": functools.partial(peers.torchvision_tensor, dtype="uint8"),
        "torchvision-float32": functools.partial(
            peers.torchvision_tensor, dtype="float32"
        ),
        "lightly": peers.lightly,
        "albumentations": peers.albumentations,
        "dali": peers.dali,
    }
    return makers[name](task)


def settle() -> float:
    """Waits until nothing is read ahead any more; the processor seconds so far."""
    calm, last = 0, time.process_time()
    while calm < _CALM_READINGS:
        time.sleep(_CALM_SECONDS)
        now = time.process_time()
        calm = calm + 1 if now - last < _CALM else 0
        last = now
    return last


def serve(name: str, task: Task) -> None:
    """A contender's process: replies with the processor seconds of all images once."""
    num_batches = len(task.records) // task.batch_size
    try:
        batches = make(name, task)
        first = next(batches)
    except ImportError as error:
        in_turn.serve({"missing": str(error)}, lambda: None)
        return
    about: dict[str, Any] = {"output": str(first.dtype), "mean": None}
    if name != "decode":
        about["mean"] = check(task, first)
    for _ in range(num_batches - 1):
        next(batches)

    def step() -> float:
        # Before and after the same number of batches is read ahead.
        start = settle()
        for _ in range(num_batches):
            next(batches)
        return settle() - start

    in_turn.serve(about, step)


def compare(
    names: list[str],
    kind: str,
    data: str,
    num_images: int,
    arguments: Any,
    peers_python: pathlib.Path | None,
) -> None:
    """Runs the contenders and prints their table."""
    contenders = {
        name: in_turn.Contender(
            peers_python
            if name in PEERS and peers_python
            else pathlib.Path(sys.executable),
            __file__,
            json.dumps([name, kind, data, num_images]),
            arguments.core,
        )
        for name in names
    }
    present = [n for n, c in contenders.items() if "missing" not in c.about]
    seconds: dict[str, list[float]] = {name: [] for name in present}
    for _ in range(arguments.rounds):
        for name in present:
            seconds[name].append(contenders[name].step())
    for contender in contenders.values():
        contender.close()

    yardsticks = [name for name in YARDSTICKS if name in names]
    print(
        f"\n{kind}: two views of {num_images} images; {arguments.rounds} rounds on core"
        f" {arguments.core}"
    )
    columns = ["", "images/s", *(f"of {name}" for name in yardsticks), "output", "mean"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, contender in contenders.items():
        if name not in present:
            rest = " |" * (len(columns) - 2)
            print(f"| {name} | not run: {contender.about['missing']} |{rest}")
            continue
        cells = [name, f"{num_images / statistics.median(seconds[name]):.0f}"]
        for yardstick in yardsticks:
            pairs = zip(seconds[yardstick], seconds[name], strict=True)
            ratios = [theirs / own for theirs, own in pairs]
            middle = statistics.median(ratios)
            cells.append(f"{middle:.2f} ({min(ratios):.2f}, {max(ratios):.2f})")
        mean = contender.about["mean"]
        cells += [contender.about["output"], "" if mean is None else f"{mean:.3f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Runs the command line."""
    parser = in_turn.parser(__doc__.splitlines()[0])
    parser.add_argument("--images", help="a folder of JPEG files")
    parser.add_argument("--cifar", action="store_true", help="32 pixels instead")
    parser.add_argument("--tfds", help="the folder in which TFDS prepared cifar10")
    parser.add_argument(
        "--images_per_round", type=int, help="64 if not given, CIFAR 4096"
    )
    parser.add_argument("--only", help="names of contenders, with commas")
    arguments = parser.parse_args()
    if arguments.serve:
        name, kind, data, num_images = json.loads(arguments.serve)
        serve(name, cifar(data) if kind == "cifar" else imagenet(data, num_images))
        return
    if arguments.cifar:
        kind, data, names = "cifar", arguments.tfds, [*CIFAR_NATIVE, *CIFAR_PEERS]
    else:
        kind, data, names = "jpeg", arguments.images, [*NATIVE, *PEERS]
    if not data:
        parser.error("needs --images=FOLDER, or --cifar and --tfds=FOLDER")
    if arguments.only:
        chosen = arguments.only.split(",")
        names = [name for name in names if name in (*YARDSTICKS, *chosen)]
    num_images = arguments.images_per_round or (4096 if arguments.cifar else 64)
    python = arguments.torch_python
    if python is None and set(names) & set(PEERS):
        python = in_turn.make_environment(arguments.env, PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.cifar:
            from input_sides import package

            data = f"{folder}/cifar.npy"
            package.write_cifar(arguments.tfds, num_images, data)
        compare(names, kind, data, num_images, arguments, python)


if __name__ == "__main__":
    main()
