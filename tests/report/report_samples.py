"""Samples without an encoder, and parts of the page as HTML."""

import html.parser

import numpy as np

from simclr_jax.report import page
from simclr_jax.report.sample import Sample

# What HTML, attributes, scripts, Plotly, terminals and lines of text would obey.
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "</script><!-- &lt; ${x} {{ 7 * 7 }}",
    "<b>bold</b><br>&amp;",
    "🦩 flamingo 火烈鸟",
    "שלום\u202eevil",
    "c" * 300,
    "line\nbreak\x1b[2J",
    "\udce9",
    "",
)


def make_sample(h, labels=None, class_names=None, **changes):
    n = len(h)
    rng = np.random.default_rng(n)
    fields = {
        "h": np.asarray(h, np.float32),
        "labels": np.full(n, -1, np.int32) if labels is None else np.asarray(labels),
        "thumbnails": rng.integers(0, 256, (n, 64, 64, 3), np.uint8),
        "image_names": tuple(f"file {i}.png" for i in range(n)),
        "class_names": class_names,
        "split": "test",
        "note": "",
        "num_bad": 0,
        "num_images": n,
        "step": 7,
    }
    return Sample(**{**fields, **changes})


def clusters(counts, *, width=8, spread=0.05, seed=0):
    """(h, labels) of classes that lie in different directions."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(counts), width))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    h = centres[labels] + spread * rng.normal(size=(len(labels), width))
    return h.astype(np.float32), labels.astype(np.int32)


def render(section):
    """As the page has it."""
    return str(page.render_section(section))


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)
