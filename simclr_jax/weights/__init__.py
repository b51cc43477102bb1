"""Weights of other codebases: taken over, and handed out."""

from simclr_jax.weights.google import load_google_checkpoint
from simclr_jax.weights.imported import ImportedWeights
from simclr_jax.weights.torchvision import from_torchvision, to_torchvision

__all__ = [
    "ImportedWeights",
    "from_torchvision",
    "load_google_checkpoint",
    "to_torchvision",
]
