"""SimCLR's recipe in other libraries, on their own operations.

One thread each; the images are uint8 until an operation, or the end, makes them float.
"""

import io
import os
from collections.abc import Callable
from typing import Any

from input_sides import task as tasks
from input_sides.task import Batches, Task

View = Callable[[Any], Any]


def _jitter_ranges(task: Task) -> tuple[float, float, float, float]:
    spread = tasks.BRIGHTNESS * task.strength
    return spread, spread, spread, tasks.HUE * task.strength


def _open_pil(task: Task, record: Any) -> Any:
    from PIL import Image

    if task.are_files:
        return Image.open(io.BytesIO(record)).convert("RGB")
    return Image.fromarray(record)


def _stack_tensors(
    task: Task, load: View, views: Callable[[Any], list[Any]]
) -> Batches:
    import torch

    torch.set_num_threads(1)
    for chunk in task.chunks():
        pairs = [torch.stack(views(load(record))) for record in chunk]
        yield torch.stack(pairs).numpy().transpose(0, 1, 3, 4, 2)


def torchvision_pil(task: Task) -> Batches:
    """torchvision's v1 transforms on PIL images."""
    from torchvision import transforms as T

    steps = [
        T.RandomResizedCrop(
            task.side, tasks.AREA, interpolation=T.InterpolationMode.BICUBIC
        ),
        T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(*_jitter_ranges(task))], tasks.JITTER_PROBABILITY),
        T.RandomGrayscale(tasks.GRAY_PROBABILITY),
    ]
    if task.blur:
        blur = T.GaussianBlur(task.taps, tasks.SIGMA)
        steps.append(T.RandomApply([blur], tasks.BLUR_PROBABILITY))
    view = T.Compose([*steps, T.ToTensor()])
    return _stack_tensors(
        task, lambda record: _open_pil(task, record), lambda x: [view(x), view(x)]
    )


def torchvision_tensor(task: Task, dtype: str) -> Batches:
    """torchvision's v2 transforms on tensors; `dtype` is that of colours and blur."""
    import torch
    from torchvision import io as torch_io
    from torchvision.transforms import v2

    steps = [
        v2.RandomResizedCrop(
            task.side, tasks.AREA, interpolation=v2.InterpolationMode.BICUBIC
        ),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(getattr(torch, dtype), scale=True),
        v2.RandomApply(
            [v2.ColorJitter(*_jitter_ranges(task))], tasks.JITTER_PROBABILITY
        ),
        v2.RandomGrayscale(tasks.GRAY_PROBABILITY),
    ]
    if task.blur:
        blur = v2.GaussianBlur(task.taps, tasks.SIGMA)
        steps.append(v2.RandomApply([blur], tasks.BLUR_PROBABILITY))
    view = v2.Compose(steps)

    def load(record: Any) -> Any:
        if not task.are_files:
            return torch.from_numpy(record).permute(2, 0, 1)
        content = torch.frombuffer(bytearray(record), dtype=torch.uint8)
        return torch_io.decode_jpeg(content, mode=torch_io.ImageReadMode.RGB)

    return _stack_tensors(task, load, lambda x: [view(x), view(x)])


def lightly(task: Task) -> Batches:
    """lightly's transform on PIL images, without the mean and standard deviation."""
    from lightly.transforms import SimCLRTransform

    views = SimCLRTransform(
        input_size=task.side,
        cj_strength=task.strength,
        gaussian_blur=tasks.BLUR_PROBABILITY if task.blur else 0.0,
        normalize=None,
    )
    return _stack_tensors(task, lambda record: _open_pil(task, record), views)


def albumentations(task: Task) -> Batches:
    """Albumentations, which is OpenCV on uint8 arrays."""
    # It would ask the network for a newer version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    brightness, contrast, saturation, hue = _jitter_ranges(task)
    view = A.Compose(
        [
            A.RandomResizedCrop(
                (task.side, task.side), tasks.AREA, interpolation=cv2.INTER_CUBIC
            ),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(
                brightness=(1 - brightness, 1 + brightness),
                contrast=(1 - contrast, 1 + contrast),
                saturation=(1 - saturation, 1 + saturation),
                hue=(-hue, hue),
                p=tasks.JITTER_PROBABILITY,
            ),
            A.ToGray(p=tasks.GRAY_PROBABILITY),
            A.GaussianBlur(
                blur_limit=0,  # as many taps as sigma needs
                sigma_limit=tasks.SIGMA,
                p=tasks.BLUR_PROBABILITY if task.blur else 0.0,
            ),
        ]
    )

    def load(record: Any) -> Any:
        if not task.are_files:
            return record
        return cv2.imdecode(np.frombuffer(record, np.uint8), cv2.IMREAD_COLOR_RGB)

    for chunk in task.chunks():
        images = [load(record) for record in chunk]
        yield np.stack([[view(image=x)["image"] for _ in range(2)] for x in images])


def dali(task: Task) -> Batches:
    """DALI's operations for CPUs: one matrix for all colours, grey as saturation 0."""
    import numpy as np
    from nvidia.dali import fn, pipeline_def, types

    spread, _, _, hue = _jitter_ranges(task)
    chunks = task.chunks()

    def contents() -> list[Any]:
        return [np.frombuffer(record, np.uint8) for record in next(chunks)]

    def view(images: Any) -> Any:
        images = fn.random_resized_crop(
            images,
            size=task.side,
            random_area=tasks.AREA,
            random_aspect_ratio=tasks.RATIO,
            interp_type=types.INTERP_CUBIC,
        )
        images = fn.flip(images, horizontal=fn.random.coin_flip())
        jitter = fn.random.coin_flip(probability=tasks.JITTER_PROBABILITY)
        color = fn.random.coin_flip(probability=1 - tasks.GRAY_PROBABILITY)

        def factor(width: float) -> Any:
            return jitter * fn.random.uniform(range=(-width, width))

        images = fn.color_twist(
            images,
            brightness=1 + factor(spread),
            contrast=1 + factor(spread),
            saturation=color * (1 + factor(spread)),
            hue=factor(360 * hue),
        )
        if fn.random.coin_flip(dtype=types.BOOL):
            images = fn.gaussian_blur(
                images,
                window_size=task.taps,
                sigma=fn.random.uniform(range=tasks.SIGMA),
            )
        return images

    @pipeline_def(
        batch_size=task.batch_size,
        num_threads=1,
        device_id=None,
        enable_conditionals=True,
    )
    def two_views() -> Any:
        files = fn.external_source(contents, dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(files, device="cpu", output_type=types.RGB)
        return fn.stack(view(images), view(images))

    pipe = two_views()
    pipe.build()
    while True:
        (batch,) = pipe.run()
        yield batch.as_array()
