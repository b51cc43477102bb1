"""Weights of other codebases: taken over, and handed out."""

from simclr_jax.interop.google import load_google_checkpoint
from simclr_jax.interop.torchvision import from_torchvision, to_torchvision
from simclr_jax.interop.weights import ImportedWeights

__all__ = [
    "ImportedWeights",
    "from_torchvision",
    "load_google_checkpoint",
    "to_torchvision",
]
