"""What a compiled program says of its memory."""

import types

GIB = 2**30


def analysis(needed):
    """`memory_analysis()` of a program of so many GiB, one of them its state."""
    return types.SimpleNamespace(
        argument_size_in_bytes=GIB,
        output_size_in_bytes=GIB,
        alias_size_in_bytes=GIB,
        temp_size_in_bytes=(needed - 1) * GIB,
    )
