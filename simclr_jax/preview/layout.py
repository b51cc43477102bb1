"""Titled sections of labelled tiles, as one picture."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MIN_TILE = 96  # smaller views are enlarged by a whole number
_MARGIN, _GAP, _GROUP_GAP, _SECTION_GAP = 24, 6, 20, 28
_BACKGROUND, _INK, _GREY = (250, 250, 248), (32, 32, 36), (110, 110, 116)
_TITLE_SIZE, _TEXT_SIZE, _LABEL_SIZE = 20, 14, 12
_LINE = 1.3  # of a line of text, in sizes of its font


@dataclasses.dataclass(frozen=True)
class Row:
    """Tiles beside each other.

    Attributes:
      tiles: uint8 [S, S, 3] each, of one size in a picture.
      title: written left of them; may have several lines.
      labels: written under the tiles; none, or one for each.
      group: after so many tiles there is a wider gap; 0: nowhere.
    """

    tiles: Sequence[np.ndarray]
    title: str = ""
    labels: Sequence[str] = ()
    group: int = 0


@dataclasses.dataclass(frozen=True)
class Section:
    """Rows under a title, and a note that says what they are."""

    title: str
    note: str
    rows: Sequence[Row]


def draw(sections: Sequence[Section]) -> Image.Image:
    """The sections below each other."""
    return _Page(sections).draw()


class _Page:
    """A picture, of the size that its sections need."""

    def __init__(self, sections: Sequence[Section]) -> None:
        self._sections = sections
        self._fonts = {
            size: ImageFont.load_default(size)
            for size in (_TITLE_SIZE, _TEXT_SIZE, _LABEL_SIZE)
        }
        rows = [row for section in sections for row in section.rows]
        side = next((len(tile) for row in rows for tile in row.tiles), _MIN_TILE)
        self._scale = -(-_MIN_TILE // side)
        self._side = side * self._scale
        texts = [line for row in rows for line in row.title.split("\n")]
        widest = max((self._width(text, _TEXT_SIZE) for text in texts), default=0)
        self._left = _MARGIN + (widest + _GROUP_GAP if widest else 0)

    def draw(self) -> Image.Image:
        width = _MARGIN + self._widest_row()
        # The notes are broken to the width, so the height follows from it.
        height = self._paint(None, width)
        picture = Image.new("RGB", (width, height), _BACKGROUND)
        self._paint(picture, width)
        return picture

    def _widest_row(self) -> int:
        rights = [
            self._x(row, len(row.tiles) - 1) + self._side
            for section in self._sections
            for row in section.rows
        ]
        titles = [
            _MARGIN + self._width(section.title, _TITLE_SIZE)
            for section in self._sections
        ]
        return max(*rights, *titles, 20 * _TITLE_SIZE)

    def _x(self, row: Row, number: int) -> int:
        groups = number // row.group if row.group else 0
        return self._left + number * (self._side + _GAP) + groups * _GROUP_GAP

    def _width(self, text: str, size: int) -> int:
        return int(np.ceil(self._fonts[size].getlength(text)))

    def _paint(self, picture: Image.Image | None, width: int) -> int:
        """Paints the sections; returns the height that they need."""
        y = _MARGIN
        for number, section in enumerate(self._sections):
            y += _SECTION_GAP if number else 0
            y = self._text(picture, (_MARGIN, y), section.title, _TITLE_SIZE, _INK)
            for line in self._broken(section.note, width - 2 * _MARGIN):
                y = self._text(picture, (_MARGIN, y), line, _TEXT_SIZE, _GREY)
            y += _GAP
            for row in section.rows:
                y = self._row(picture, row, y)
        return y + _MARGIN

    def _broken(self, text: str, width: int) -> list[str]:
        """A text in lines of at most this width."""
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self._width(longer, _TEXT_SIZE) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines

    def _row(self, picture: Image.Image | None, row: Row, y: int) -> int:
        text_y = y
        for number, line in enumerate(row.title.split("\n")):
            colour = _GREY if number else _INK
            text_y = self._text(picture, (_MARGIN, text_y), line, _TEXT_SIZE, colour)
        below = y + self._side
        for number, tile in enumerate(row.tiles):
            x = self._x(row, number)
            if picture is not None:
                large = tile.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
                picture.paste(Image.fromarray(large), (x, y))
            if row.labels:
                label = row.labels[number]
                middle = x + (self._side - self._width(label, _LABEL_SIZE)) // 2
                place = (middle, y + self._side + 1)
                below = self._text(picture, place, label, _LABEL_SIZE, _GREY)
        return max(below, text_y) + _GAP

    def _text(
        self,
        picture: Image.Image | None,
        place: tuple[int, int],
        text: str,
        size: int,
        colour: tuple[int, int, int],
    ) -> int:
        """Writes a line; returns where the next one begins."""
        if picture is not None:
            ImageDraw.Draw(picture).text(place, text, colour, self._fonts[size])
        return place[1] + round(_LINE * size)
