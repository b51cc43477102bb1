"""A representation of a labelled dataset, which a protocol measures."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax.data import pipeline
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation import features
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.evaluation.features import Encode
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights.encoder import PretrainedEncoder


@dataclasses.dataclass
class Context:
    """A representation of a labelled dataset, with everything that a protocol needs.

    Attributes:
      name: of the representation: 'pretrained', 'untrained' or 'pixels'.
      encode: computes the representation of prepared images.
      layers: the same for each layer of the network, by name; the first is h.
      network: the network; None for pixels.
      dataset: the images.
      preprocessing: of the images.
      config: of the run, with overrides.
      mesh: all devices.
      workdir: the run directory.
      cache: (features, labels) computed so far, by source.
    """

    name: str
    encode: Encode
    layers: dict[str, Encode]
    network: PretrainedEncoder | None
    dataset: Dataset
    preprocessing: Preprocessing
    config: config_dict.ConfigDict
    mesh: Mesh
    workdir: str
    cache: dict[Source, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def train_features(self) -> tuple[np.ndarray, np.ndarray]:
        """(features [N, D], labels [N]) of the training images; computed once."""
        return self._features(self.dataset.train)

    @property
    def test_features(self) -> tuple[np.ndarray, np.ndarray]:
        """(features [N, D], labels [N]) of the test images; computed once."""
        return self._features(self.dataset.test)

    def with_encode(self, encode: Encode) -> "Context":
        """The same images with another representation."""
        return dataclasses.replace(self, encode=encode, cache={})

    def with_train(self, train: Source) -> "Context":
        """The same test images with other training images; the cache is shared."""
        dataset = dataclasses.replace(self.dataset, train=train)
        return dataclasses.replace(self, dataset=dataset)

    def with_dataset(self, dataset: Dataset) -> "Context":
        """The same representation of another dataset."""
        return dataclasses.replace(self, dataset=dataset, cache={})

    def _features(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        if source not in self.cache:
            batches = pipeline.eval_batches(
                source,
                self.preprocessing,
                batch_size=self.config.evaluation.batch_size,
                host_index=jax.process_index(),
                num_hosts=jax.process_count(),
                threads=self.config.data.threads,
            )
            self.cache[source] = features.extract(
                self.encode, batches, self.mesh, num_examples=source.num_examples
            )
        return self.cache[source]


def network_layers(
    network: PretrainedEncoder, layer: int
) -> tuple[Encode, dict[str, Encode]]:
    """(one layer of a network, all its layers by name: h, the head's layers, z).

    Raises:
      ConfigError: there is no such layer.
    """
    last = network.head.num_outputs - 1
    names = ["h", *(f"layer {i}" for i in range(1, last)), *(["z"] if last else [])]
    layers = {name: network.layer(i) for i, name in enumerate(names)}
    try:
        return network.layer(layer), layers
    except ValueError as error:
        raise ConfigError(f"config.evaluation.{error}") from error


def baselines(pretrained: PretrainedEncoder) -> dict[str, PretrainedEncoder | None]:
    """The baselines of an encoder: raw pixels (None), and the untrained encoder."""
    return {"pixels": None, "untrained": encoders.untrained(pretrained)}


def make_contexts(
    pretrained: PretrainedEncoder,
    dataset: Dataset,
    preprocessing: Preprocessing,
    config: config_dict.ConfigDict,
    mesh: Mesh,
    workdir: str,
    *,
    with_baselines: bool,
) -> dict[str, Context]:
    """A context for each representation, by its name.

    Args:
      pretrained: the encoder.
      dataset: the images.
      preprocessing: of the images.
      config: of the run, with overrides.
      mesh: all devices.
      workdir: the run directory.
      with_baselines: whether to add the representations of `baselines`.

    Raises:
      ConfigError: the encoder has no layer `evaluation.layer`.
    """
    networks: dict[str, PretrainedEncoder | None] = {"pretrained": pretrained}
    if with_baselines:
        networks = baselines(pretrained) | networks
    contexts = {}
    for name, network in networks.items():
        encode, layers = features.pixels, {"h": features.pixels}
        if network is not None:
            encode, layers = network_layers(network, config.evaluation.layer)
        contexts[name] = Context(
            name,
            encode,
            layers,
            network,
            dataset,
            preprocessing,
            config,
            mesh,
            workdir,
        )
    return contexts
