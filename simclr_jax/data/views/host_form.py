"""Whether this host can compile views."""

import functools
import importlib

from simclr_jax.data import optional
from simclr_jax.errors import first_line

# Processor time of the input pipeline with the graph form over that with the compiled
# form: two views of ImageNet by the default composition. 1.5 where only crops are
# computed on the host.
GRAPH_SLOWDOWN = 8


@functools.cache
def unavailable() -> str | None:
    """Why this process cannot compile views; None if it can."""
    try:
        # Numba compiles at the first call, for which any image will do.
        importlib.import_module("simclr_jax.data.views.host_program").warm_up()
        if optional.is_installed("tensorflow"):
            importlib.import_module("simclr_jax.data.views.compiled").register()
    # Whatever is wrong with a compiler or a library, there are other ways to a view.
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None
