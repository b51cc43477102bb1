"""A representation of a labelled dataset, which a protocol measures."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax.data import pipeline
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources.base import Batch, Source
from simclr_jax.data.sources.subsets import Subset
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation import features
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.evaluation.features import Encode, Features
from simclr_jax.evaluation.kept_features import KeptFeatures
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights.encoder import PretrainedEncoder


@dataclasses.dataclass
class Context:
    """A representation of a labelled dataset, with everything that a protocol needs.

    Attributes:
      name: of the representation: 'pretrained', 'untrained' or 'pixels'.
      encode: from prepared images to h, or to pixels.
      layer: from h to the layer that is measured; None for h itself.
      layers: the same for each layer of the network, by name; the first is h.
      network: the network; None for pixels.
      dataset: the images.
      preprocessing: of the images.
      config: of the run, with overrides.
      mesh: all devices.
      workdir: the run directory.
      kept: where h is kept for the next command; None for nowhere.
      cache: h computed so far, by source. Other layers are computed from h.
    """

    name: str
    encode: Encode
    layer: Encode | None
    layers: dict[str, Encode | None]
    network: PretrainedEncoder | None
    dataset: Dataset
    preprocessing: Preprocessing
    config: config_dict.ConfigDict
    mesh: Mesh
    workdir: str
    kept: KeptFeatures | None = None
    cache: dict[Source, Features] = dataclasses.field(default_factory=dict)

    @property
    def train_features(self) -> Features:
        """Of the training images; h is computed once."""
        return self._features(self.dataset.train)

    @property
    def test_features(self) -> Features:
        """Of the test images; h is computed once."""
        return self._features(self.dataset.test)

    def with_layer(self, layer: Encode | None) -> "Context":
        """Another layer of the same network; the cache is shared."""
        return dataclasses.replace(self, layer=layer)

    def with_network(self, network: PretrainedEncoder) -> "Context":
        """The same images with h of another network."""
        return dataclasses.replace(
            self,
            network=network,
            encode=network.layer(0),
            layer=None,
            layers={},
            kept=None,
            cache={},
        )

    def with_train(self, train: Source) -> "Context":
        """The same test images with other training images; the cache is shared."""
        dataset = dataclasses.replace(self.dataset, train=train)
        return dataclasses.replace(self, dataset=dataset)

    def with_dataset(self, dataset: Dataset) -> "Context":
        """The same representation of another dataset."""
        return dataclasses.replace(self, dataset=dataset, cache={})

    def _features(self, source: Source) -> Features:
        h = self._h(source)
        return h if self.layer is None else h.map(self.layer)

    def _h(self, source: Source) -> Features:
        if source in self.cache:
            return self.cache[source]
        if isinstance(source, Subset) and source.of in self.cache:
            return self.cache[source.of].take(source.indices)
        if self.kept is not None:
            found = self.kept.read(source)
            if found is None:
                found = self.extract(source)
                self.kept.write(source, found)
            self.cache[source] = found
        else:
            self.cache[source] = self.extract(source)
        return self.cache[source]

    def extract(
        self,
        source: Source,
        change: Callable[[Iterator[Batch]], Iterator[Batch]] | None = None,
    ) -> Features:
        """Features h of a source, computed anew.

        Args:
          source: of images.
          change: what is done to the batches of `pipeline.eval_batches` before.
        """
        batches = pipeline.eval_batches(
            source,
            self.preprocessing,
            batch_size=self.config.evaluation.batch_size,
            host_index=jax.process_index(),
            num_hosts=jax.process_count(),
            num_parts=self.mesh.size,
            threads=self.config.data.threads,
        )
        return features.extract(
            self.encode,
            change(batches) if change else batches,
            self.mesh,
            num_examples=source.num_examples,
            name=f"{self.name}, {source.name}",
        )


# (the function to one layer, the functions to all layers by name), from h.
_Layers = tuple[Encode | None, dict[str, Encode | None]]
_H: _Layers = (None, {"h": None})


def network_layers(network: PretrainedEncoder, layer: int) -> _Layers:
    """Functions from h to layers: (one, all by name: h, the head's layers, z).

    That of h is None.

    Raises:
      ConfigError: there is no such layer.
    """
    last = network.head.num_outputs - 1
    names = ["h", *(f"layer {i}" for i in range(1, last)), *(["z"] if last else [])]
    layers = {
        name: network.layer_of_h(i) if i else None for i, name in enumerate(names)
    }
    try:
        return network.layer_of_h(layer) if layer else None, layers
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
    keep_features: bool = False,
) -> dict[str, Context]:
    """A context for each representation, by its name.

    Args:
      pretrained: the encoder.
      dataset: the images.
      preprocessing: of the images.
      config: of the run, with overrides.
      mesh: all devices.
      workdir: the run directory.
      with_baselines: whether to add the representations of `baselines`, before the
        pretrained one.
      keep_features: whether to keep features in the run directory, and use kept ones.

    Raises:
      ConfigError: the encoder has no layer `evaluation.layer`.
    """
    networks: dict[str, PretrainedEncoder | None] = {"pretrained": pretrained}
    if with_baselines:
        # The pretrained encoder comes last: with it, receipts are complete.
        networks = baselines(pretrained) | networks
    contexts = {}
    for name, network in networks.items():
        encode: Encode = features.pixels
        layer, layers = _H
        if network is not None:
            encode = network.layer(0)
            layer, layers = network_layers(network, config.evaluation.layer)
        context = Context(
            name=name,
            encode=encode,
            layer=layer,
            layers=layers,
            network=network,
            dataset=dataset,
            preprocessing=preprocessing,
            config=config,
            mesh=mesh,
            workdir=workdir,
        )
        if keep_features:
            of = "pixels" if network is None else encoders.checksum(network.variables)
            context.kept = KeptFeatures(workdir, of, preprocessing, config, mesh)
        contexts[name] = context
    return contexts
