"""Decoding of JPEG and PNG files, as operations of TensorFlow graphs."""

from simclr_jax.data.tf_cpu import tf

# TensorFlow's default is the fast, coarse transform, which differs by up to 3 levels
# from every other library.
_DCT_METHOD = "INTEGER_ACCURATE"
# Pixels; twice the largest block that a JPEG codes as one.
_MARGIN = 32
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode_rgb(content: tf.Tensor) -> tf.Tensor:
    """JPEG or PNG bytes to uint8 [H, W, 3]; grey becomes three equal channels."""
    # This operation reads PNG too.
    image = tf.io.decode_jpeg(content, channels=3, dct_method=_DCT_METHOD)
    return tf.ensure_shape(image, (None, None, 3))


def ends_as_jpeg(contents: tf.Tensor) -> tf.Tensor:
    """Whether files, bytes of any shape, end as a JPEG that was not cut short."""
    return tf.equal(tf.strings.substr(contents, -2, 2), b"\xff\xd9")


def image_shape(content: tf.Tensor, ends_well: tf.Tensor | bool = True) -> tf.Tensor:
    """(height, width) int32 [2] of a JPEG or PNG file, read from its header.

    Args:
      content: bytes.
      ends_well: from `ends_as_jpeg`. Where False, a JPEG is decoded; one that was cut
        short then fails here, and not only for crops that reach to what is missing.
    """

    def of_png() -> tf.Tensor:
        # A PNG starts with its signature, then a length, b"IHDR", width and height.
        sides = tf.strings.substr(content, 16, 8)
        width, height = tf.unstack(
            tf.ensure_shape(tf.io.decode_raw(sides, tf.int32, little_endian=False), 2)
        )
        return tf.stack([height, width])

    def of_other() -> tf.Tensor:
        is_png = tf.equal(tf.strings.substr(content, 0, 8), _PNG_SIGNATURE)
        return tf.cond(is_png, of_png, lambda: tf.shape(decode_rgb(content))[:2])

    return tf.cond(
        tf.logical_and(tf.io.is_jpeg(content), ends_well),
        lambda: tf.io.extract_jpeg_shape(content)[:2],
        of_other,
    )


def decode_crops(
    content: tf.Tensor, shape: tf.Tensor, boxes: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes only the part of a file that contains its crops.

    The pixels equal those of the whole image: a margin around the part is decoded too,
    since a JPEG's colours are interpolated from neighbours.

    Args:
      content: bytes of a JPEG or PNG file.
      shape: int32 [2], its (height, width).
      boxes: int32 [V, 4], (y, x, height, width) in the image.

    Returns:
      (uint8 [h, w, 3], boxes within it).
    """

    def part() -> tuple[tf.Tensor, tf.Tensor]:
        y, x, height, width = tf.unstack(boxes, axis=1)
        top, bottom = tf.reduce_min(y), tf.reduce_max(y + height)
        left = tf.reduce_min(x) // _MARGIN * _MARGIN - _MARGIN
        right = -(-tf.reduce_max(x + width) // _MARGIN) * _MARGIN + _MARGIN
        left, right = tf.maximum(left, 0), tf.minimum(right, shape[1])
        window = tf.stack([top, left, bottom - top, right - left])
        image = tf.image.decode_and_crop_jpeg(
            content, window, channels=3, dct_method=_DCT_METHOD
        )
        return image, boxes - tf.stack([top, left, 0, 0])

    image, boxes = tf.cond(
        tf.io.is_jpeg(content), part, lambda: (decode_rgb(content), boxes)
    )
    return tf.ensure_shape(image, (None, None, 3)), boxes
