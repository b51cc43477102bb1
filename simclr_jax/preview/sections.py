"""What a preview shows: the views, the operations, the pairs, host beside device."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sampling import draws
from simclr_jax.data.sources import pixels
from simclr_jax.data.sources.base import Source
from simclr_jax.data.step_sampler import StepSampler
from simclr_jax.data.views.composition import Composition
from simclr_jax.preview import strengths
from simclr_jax.preview.forms import Form, Forms, NotHere, alone
from simclr_jax.preview.layout import Row, Section
from simclr_jax.preview.strengths import Sweep

_STRENGTHS = 7
_COMPARED = 3  # strengths, or views, on host and device
_PAIRS_IN_ROW = 3
_PLACES = {
    "host": "on the host",
    "host_crop": "cropped on the host, the rest on the device",
    "accelerator": "on the device",
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """The first images of a training with the draws of their views.

    Attributes:
      composition: of the views.
      indices: of the images in the dataset, [n].
      images: uint8 [H, W, 3] each.
      boxes: int32 [n, V, 4].
      draws: float32 [n, V, D].
      preprocessing: of evaluation.
    """

    composition: Composition
    indices: np.ndarray
    images: list[np.ndarray]
    boxes: np.ndarray
    draws: np.ndarray
    preprocessing: Preprocessing

    def views(self, form: Form, number: int, count: int) -> np.ndarray:
        """The first views of an image by a form of the composition."""
        some = (number, slice(count))
        return form(self.images[number], self.boxes[some], self.draws[some])

    def unchanged(self, number: int) -> np.ndarray:
        """An image as evaluation sees it, uint8 [S, S, 3]."""
        return self.preprocessing.levels([self.images[number]])[0]

    def most_telling(self) -> int:
        """The image with the most contrast and colour, on which operations show."""

        def spread(number: int) -> float:
            image = self.unchanged(number).astype(np.float32)
            colour = image.max(axis=-1) - image.min(axis=-1)
            return float(image.std() + colour.std())

        return max(range(len(self.images)), key=spread)


def sample(
    source: Source,
    composition: Composition,
    preprocessing: Preprocessing,
    *,
    seed: int,
    num_images: int,
    num_views: int,
) -> Sample:
    """The first images of a training, and what its first step draws for them.

    Raises:
      DataError: an image cannot be read, or there are fewer.
    """
    sampler = StepSampler(
        source, composition, seed, num_images, 1, num_views, slice(0, num_images)
    )
    sampler.check()
    indices, boxes, uniform = sampler(0)
    images = list(pixels.read(source, indices)[0])
    if source.encoded:
        shapes = np.array([image.shape[:2] for image in images])
        boxes = composition.boxes_of_files(boxes, shapes)
    return Sample(composition, indices, images, boxes, uniform, preprocessing)


def operations(sample: Sample, forms: Forms, _num_views: int) -> Section:
    """Each operation of the composition alone, from its weakest setting on."""
    number = sample.most_telling()
    unchanged = sample.unchanged(number)
    rows = []
    for sweep, views in _swept(sample, number, forms.training):
        tiles = [unchanged, *views]
        rows.append(Row(tiles, sweep.title, ["unchanged", *sweep.labels]))
    note = (
        f"One operation at a time on image {sample.indices[number]}, always applied, "
        f"over the range that training draws from; {_PLACES[forms.placement]}."
    )
    return Section("Each operation alone", note, rows)


def views(sample: Sample, forms: Forms, num_views: int) -> Section:
    """Images, as evaluation sees them, and their views."""
    form = forms.training(sample.composition)
    rows = []
    for number, index in enumerate(sample.indices):
        tiles = [sample.unchanged(number), *sample.views(form, number, num_views)]
        rows.append(Row(tiles, f"image {index}"))
    note = (
        f"{' > '.join(sample.composition.operations)}, as in the first step of "
        f"training, {_PLACES[forms.placement]}. First column: the image as evaluation "
        "sees it."
    )
    return Section("The composition", note, rows)


def pairs(sample: Sample, forms: Forms, _num_views: int) -> Section:
    """The two views of each image beside each other."""
    form = forms.training(sample.composition)
    both = [sample.views(form, number, 2) for number in range(len(sample.images))]
    rows = []
    for start in range(0, len(both), _PAIRS_IN_ROW):
        some = slice(start, start + _PAIRS_IN_ROW)
        labels = [
            label for index in sample.indices[some] for label in (f"image {index}", "")
        ]
        tiles = [view for pair in both[some] for view in pair]
        rows.append(Row(tiles, labels=labels, group=2))
    note = (
        "What the loss pulls together: views 1 and 2 of an image. All other views of "
        "the batch are negatives."
    )
    return Section("Positives", note, rows)


def host_and_device(sample: Sample, forms: Forms, _num_views: int) -> Section:
    """The same draws by both implementations, and how far they are apart."""
    title, number = "Host and device", sample.most_telling()
    try:
        hosts = list(_swept(sample, number, forms.host))
        composed = forms.host(sample.composition)
    except NotHere as why:
        return Section(
            title, f"Left out, since the host makes no views here: {why}", ()
        )
    try:
        devices = list(_swept(sample, number, forms.device))
        on_device = forms.device(sample.composition)
    except NotHere as why:
        return Section(title, f"Left out: {why}", ())
    rows = [
        _compared(sweep.title, sweep.labels, host, device, sweep.operation)
        for (sweep, host), (_, device) in zip(hosts, devices, strict=True)
    ]
    for number, index in enumerate(sample.indices[:2]):
        host, device = (
            sample.views(form, number, _COMPARED) for form in (composed, on_device)
        )
        labels = [f"view {n + 1}" for n in range(len(host))]
        name = f"composition, image {index}"
        rows.append(
            _compared(name, labels, host, device, *sample.composition.operations)
        )
    note = (
        "Left of each pair the host's, right the device's, from equal draws. The "
        "numbers are the largest difference of a pixel, in levels of 255."
    )
    return Section(title, note, rows)


SECTIONS: dict[str, Callable[[Sample, Forms, int], Section]] = {
    "operations": operations,
    "views": views,
    "pairs": pairs,
    "host_and_device": host_and_device,
}


def _swept(
    sample: Sample, number: int, form_of: Callable[[Composition], Form]
) -> Iterator[tuple[Sweep, np.ndarray]]:
    """The strengths of each operation, with what they make of an image."""
    for name in sample.composition.operations:
        settings = sample.composition.settings[name]
        form = form_of(alone(sample.composition, name))
        if name == "crop":
            image = sample.images[number]
            height, width = image.shape[:2]
            sweeps = strengths.of_crop((height, width), settings, _STRENGTHS)
        else:
            image = sample.unchanged(number)
            sweeps = strengths.of_operation(name, settings, _STRENGTHS)
        for sweep in sweeps:
            yield sweep, form(image, _boxes(sweep, image), sweep.draws)


def _boxes(sweep: Sweep, image: np.ndarray) -> np.ndarray:
    if sweep.boxes is not None:
        return sweep.boxes
    whole = np.array([0, 0, *image.shape[:2]], np.int32)
    return np.broadcast_to(whole, (len(sweep.draws), 4))


def _compared(
    name: str,
    labels: list[str],
    host: np.ndarray,
    device: np.ndarray,
    *operations: str,
) -> Row:
    """Some of the views of both, and the largest difference of them all."""
    apart = np.abs(host.astype(np.int16) - device)
    words = f"at most {apart.max()} of 255 apart" if apart.any() else "equal"
    if draws.OWN_NUMBERS & {*operations}:
        words = "draws differ: noise\nof each one's own"
    shown = np.unique(np.linspace(0, len(host) - 1, _COMPARED).round().astype(int))
    tiles = [tile for n in shown for tile in (host[n], device[n])]
    both = [label for n in shown for label in (labels[n], labels[n])]
    return Row(tiles, f"{name}\n{words}", both, group=2)
