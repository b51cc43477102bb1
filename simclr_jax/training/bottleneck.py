"""Which side of a run waits for the other, in the words of log and benchmark."""

HOST_INPUT = "host input"
DEVICE = "device"
# Below this share of the time, waits are the jitter of a pipeline that keeps up.
_WAIT_SHARE = 0.1


def of_wait(input_wait_share: float) -> str:
    """By the share of the time in which the training loop waited for images."""
    return HOST_INPUT if input_wait_share > _WAIT_SHARE else DEVICE


def of_rates(host_images_per_sec: float, device_images_per_sec: float) -> str:
    """By the rates of both sides alone."""
    return HOST_INPUT if host_images_per_sec < device_images_per_sec else DEVICE


def advice(bottleneck: str, input_wait_share: float) -> str:
    """A line for the log."""
    if bottleneck == DEVICE:
        return "Bottleneck: device; the input pipeline keeps up."
    return (
        f"Bottleneck: host input; devices wait {input_wait_share:.0%} of the time. "
        "`python -m simclr_jax.bench` tells which stage; try config.augment.placement "
        "and config.data.parallel_reads."
    )
