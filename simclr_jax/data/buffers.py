"""How much of the host the input pipeline uses: threads, and memory within a budget."""

import dataclasses

from simclr_jax import host_resources
from simclr_jax.errors import DataError

_MIB = 2**20
# A decoded photograph of a few megapixels, its views, working memory, and what the
# allocator keeps of the largest photograph.
_BYTES_PER_THREAD = 128 * _MIB
# A compressed photograph, twice, since it is copied out of the response to a request.
_BYTES_PER_RECORD = _MIB // 4
# Even if blocks are smaller.
_LEAST_RECORDS_PER_READ = 16
# One batch is being filled, one was returned, one is on its way to the device.
_BATCHES_IN_USE = 3
_MAX_PREFETCH = 4


@dataclasses.dataclass(frozen=True)
class Buffers:
    """Sizes of a pipeline; see `choose`.

    Attributes:
      threads: images that are decoded and augmented at a time.
      parallel_reads: chunks of records that are fetched at a time.
      prefetch: finished batches that wait.
      memory_bytes: upper bound of all buffers together.
    """

    threads: int
    parallel_reads: int
    prefetch: int
    memory_bytes: int

    @property
    def pool_size(self) -> int:
        """Threads of the pool; one that waits for a store must not hold up others."""
        return self.threads + self.parallel_reads

    @classmethod
    def choose(
        cls,
        *,
        batch_bytes: int,
        memory_mb: int | None = None,
        threads: int | None = None,
        parallel_reads: int | None = None,
        block_size: int = 1,
    ) -> "Buffers":
        """As many finished batches ahead as the budget allows, four at most.

        Args:
          batch_bytes: of this host's slice of a batch of views.
          memory_mb: MiB for all buffers; when None a quarter of what this process may
            use, see `host_resources`.
          threads: for decoding and augmenting; when None as many as can run at a time,
            or as half of the budget holds.
          parallel_reads: as many as threads when None; more hide a store's latency.
          block_size: images that are read together.

        Raises:
          DataError: the budget is too small for a single batch ahead.
        """
        mine = host_resources.mine()
        why = ""
        if memory_mb is None:
            memory_mb = mine.memory_bytes // 4 // _MIB
            why = f" (by default a quarter of {mine.memory_source})"
        if threads is None:
            held = memory_mb * _MIB // 2 // _BYTES_PER_THREAD
            threads = max(min(mine.cpus, held), 1)
        parallel_reads = parallel_reads or threads
        per_read = max(block_size, _LEAST_RECORDS_PER_READ)
        records = parallel_reads * per_read * _BYTES_PER_RECORD
        working = threads * _BYTES_PER_THREAD + records
        fixed = working + _BATCHES_IN_USE * batch_bytes
        prefetch = min((memory_mb * _MIB - fixed) // max(batch_bytes, 1), _MAX_PREFETCH)
        if prefetch < 1:
            needed = -(-(fixed + batch_bytes) // _MIB)
            costs = {
                f"config.data.threads={threads}": threads * _BYTES_PER_THREAD,
                f"config.data.block_size={block_size}": records,
                "config.batch.batch_size and image_size": needed * _MIB - working,
            }
            raise DataError(
                f"config.data.memory_mb={memory_mb}{why}: must be at least {needed}, "
                f"for {_BATCHES_IN_USE + 1} slices of a batch of "
                f"{batch_bytes / _MIB:.0f} MiB each, {threads} threads and "
                f"{parallel_reads} parallel reads of {per_read} images; most of it "
                f"follows from {max(costs, key=lambda key: costs[key])}"
            )
        return cls(
            threads=threads,
            parallel_reads=parallel_reads,
            prefetch=int(prefetch),
            memory_bytes=int(fixed + prefetch * batch_bytes),
        )
