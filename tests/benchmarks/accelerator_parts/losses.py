"""NT-Xent and its gradient on one device, by number of images."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from accelerator_parts import steps
from accelerator_parts.record import Record, Settings

SIZES, TOY_SIZES = (4096, 8192, 16384, 32768, 65536), (32, 64)
WIDTH, TEMPERATURE, REPEATS = 128, 0.1, 10


def nt_xent(record: Record, settings: Settings) -> None:
    """Both forms of this package and the peer's, milliseconds and memory."""
    # JAX keeps the memory that it once took, so PyTorch is first.
    for side in ("PyTorch", "PyTorch compiled", "lightly", "streaming", "global"):
        for size in TOY_SIZES if settings.toy else SIZES:
            row = f"{size}, {side}"
            if row not in record:
                try:
                    record[row] = _measure(side, size)
                except Exception as error:  # such as out of memory
                    record[row] = {"error": f"{type(error).__name__}: {error}"[:200]}


def _projections(size: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(size, 3, WIDTH))
    return (noise[:, :1] + noise[:, 1:]).astype(np.float32)


def _measure(side: str, size: int) -> dict[str, Any]:
    if side in ("global", "streaming"):
        return _ours(side, size)
    needed = ("torch", "lightly") if side == "lightly" else ("torch",)
    for name in needed:
        if not importlib.util.find_spec(name):
            return {"error": f"{name} not installed"}
    return _peers(side, size)


def _median_ms(step: Callable[[], float]) -> tuple[float, float]:
    loss = step()
    secs = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        loss = step()
        secs.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(secs), 3), loss


def _ours(form: str, size: int) -> dict[str, Any]:
    import jax

    from simclr_jax import losses

    streaming = None if form == "global" else losses.Streaming()
    z = jax.device_put(_projections(size))
    gradient = jax.value_and_grad(
        lambda z: losses.nt_xent(z, temperature=TEMPERATURE, streaming=streaming)
    )
    compiled = jax.jit(gradient).lower(z).compile()
    ms, loss = _median_ms(lambda: float(jax.block_until_ready(compiled(z))[0]))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return {"ms": ms, "gib": round(temporary / 2**30, 3), "loss": round(loss, 5)}


def _peers(side: str, size: int) -> dict[str, Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    z = torch.from_numpy(_projections(size)).to(device)
    first, second = (z[:, v].clone().requires_grad_() for v in (0, 1))
    loss_of = steps.torch_loss("lightly" if side == "lightly" else "own")
    if side == "PyTorch compiled":
        loss_of = torch.compile(loss_of)

    def step() -> float:
        first.grad = second.grad = None
        loss = loss_of(first, second)
        loss.backward()
        return float(loss.item())

    if device == "cuda":
        torch.cuda.empty_cache()  # of an earlier size
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    ms, loss = _median_ms(step)
    result = {"ms": ms, "loss": round(loss, 5)}
    if device == "cuda":
        extra = torch.cuda.max_memory_allocated() - before
        result["gib"] = round(extra / 2**30, 3)
    return result
