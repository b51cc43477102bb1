"""Weights: what `simclr_jax.load` returns, imports from other codebases, exports.

The modules in reading order.

What `simclr_jax.load` returns:

    encoder.py         a pretrained encoder with its preprocessing, read from a run
    given_images.py    what `encode` takes: arrays, Pillow images, files; one or many
    load.py            opens a run, a checkpoint or an exported folder
    initial.py         what a pretraining starts from

In: `simclr_jax.convert`.

    convert.py         from a file or an exported folder to a run directory
    google.py          names in checkpoints of google-research/simclr
    tensor_bundles.py  TensorFlow's files
    library_folders.py folders of Hugging Face and timm
    torchvision.py     torchvision's names, in and out
    torch_layouts.py   the names of other PyTorch codebases
    torch_files.py     PyTorch's files, read without PyTorch
    layers.py          the layers of an encoder, in call order
    named_tensors.py   from named tensors to checked variables

Out: `simclr_jax.export`.

    export.py          from a run to an exported folder
    classifiers.py     the classifier that goes with it, and the names of its classes
    formats.py         the table of formats: a new format is added there
    torch_formats.py   torchvision and timm
    huggingface.py     Hugging Face's transformers
    jax_formats.py     safetensors with this package's names, StableHLO
    descriptions.py    encoder.json and preprocessing.json
    parity.py          compares the features of an export with those of the original
    torch_peers.py     opens an export in PyTorch's libraries, in another process
    torch_process.py   the program of that process
    model_card.py      README.md
"""

from simclr_jax.weights.google import load_google_checkpoint
from simclr_jax.weights.named_tensors import ImportedWeights
from simclr_jax.weights.torchvision import from_torchvision, to_torchvision

__all__ = [
    "ImportedWeights",
    "from_torchvision",
    "load_google_checkpoint",
    "to_torchvision",
]
