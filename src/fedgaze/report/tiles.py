"""Pictures side by side, each with a caption."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Tile", "side_by_side"]

_SIDE, _GAP, _CAPTION = 256, 12, 44
_PAPER, _INK, _FAINT = "#ffffff", "#1c1c1c", "#6b6b6b"


@dataclass(frozen=True)
class Tile:
    """A picture with what stands below it: a name, and a smaller line."""

    picture: Image.Image
    name: str
    note: str = ""


def side_by_side(tiles: Sequence[Tile], columns: int) -> Image.Image:
    """Lay tiles out in rows, each picture brought to the same width.

    Args:
        tiles: In reading order; all pictures of the same proportions.
        columns: How many stand in a row at most.
    """
    rows = -(-len(tiles) // columns)
    columns = -(-len(tiles) // rows)  # rows of about the same length
    first = tiles[0].picture
    height = max(1, round(_SIDE * first.height / first.width))
    step = _SIDE + _GAP, height + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        left, top = _GAP + index % columns * step[0], _GAP + index // columns * step[1]
        small = tile.picture.convert("RGB").resize((_SIDE, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (left, top))
        for text, below, size, ink in ((tile.name, 4, 15, _INK), (tile.note, 24, 12, _FAINT)):
            font = ImageFont.load_default(size)
            draw.text((left, top + height + below), _cut(text, font), fill=ink, font=font)
    return sheet


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of a text as fits below a tile."""
    if font.getlength(text) <= _SIDE:
        return text
    while text and font.getlength(f"{text}…") > _SIDE:
        text = text[:-1]
    return f"{text}…"
