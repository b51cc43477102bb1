"""What readers of protocol buffers and of Riegeli's files share."""

from typing import Any


def varint(message: Any, position: int) -> tuple[int, int]:
    """An integer in seven bits a byte, lowest first, and the position after it.

    Args:
      message: bytes, or a view of them.
      position: of the integer's first byte.

    Raises:
      IndexError: the message ends within it.
    """
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
