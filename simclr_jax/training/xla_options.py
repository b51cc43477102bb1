"""Compiler options: of the train step on GPUs, of the first state on CPUs."""

import os

from jax.sharding import Mesh

Options = dict[str, bool | int]

# As JAX's guide for GPUs advises. A flag of the same name in XLA_FLAGS replaces it.
_FAST: Options = {
    # Collectives run beside computation.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Gradients of ResNet-50 (25.6 M floats, 98 MiB) in one all-reduce; by default XLA
    # combines up to 30 MiB.
    "xla_gpu_all_reduce_combine_threshold_bytes": 128 * 2**20,
    # The same for `parallel.shard_state`.
    "xla_gpu_all_gather_combine_threshold_bytes": 128 * 2**20,
    "xla_gpu_reduce_scatter_combine_threshold_bytes": 128 * 2**20,
}
# Only kernels that sum in one order, and none chosen by measuring it.
_DETERMINISTIC: Options = {"xla_gpu_deterministic_ops": True}
# The program runs once, and with all of LLVM's optimisations takes longer to compile
# than the train step: 41 s for ResNet-18 on a core, 8 s with fewer.
_QUICK: Options = {"xla_backend_optimization_level": 1}


def of_init(mesh: Mesh) -> Options:
    """Options of the program that draws the weights; none on GPUs and TPUs."""
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return _unless_set(_QUICK)


def of_step(mesh: Mesh, *, deterministic: bool) -> Options:
    """Options for `jax.jit(compiler_options=...)`; none on TPUs and CPUs.

    Args:
      mesh: of the devices that run the step.
      deterministic: the same bits in every run; see `parallel.deterministic`.
    """
    if mesh.devices.flat[0].platform != "gpu":
        return {}
    return _unless_set(_FAST | (_DETERMINISTIC if deterministic else {}))


def _unless_set(options: Options) -> Options:
    """Without those that are set in XLA_FLAGS."""
    names = {
        flag.partition("=")[0].lstrip("-")
        for flag in os.environ.get("XLA_FLAGS", "").split()
    }
    return {name: value for name, value in options.items() if name not in names}
