"""Drawing: small pictures side by side, with words below."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["shrunk", "tiled", "with_legend"]

_GAP = 12
_INK = (118, 118, 118, 255)  # readable on white and on black
_DARK, _PAPER = (30, 30, 30), (255, 255, 255)
_PER_ROW = 4


def shrunk(maps: Tensor, side: int) -> Tensor:
    """Bring maps ``(N, H, W)`` to at most so many pixels a side; none is made larger."""
    height, width = maps.shape[1:]
    factor = side / max(height, width)
    if factor >= 1:
        return maps
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return F.interpolate(maps[:, None], size, mode="area")[:, 0]


def tiled(pictures: Tensor, captions: Sequence[Sequence[str]], columns: int, side: int) -> "Image":
    """Lay pictures out in rows, each with lines of text below it, on nothing.

    Args:
        pictures: uint8 ``(N, H, W, 3)``.
        captions: The lines of each.
        columns: How many stand in a row.
        side: How wide each is drawn.
    """
    from PIL import Image, ImageDraw

    count, height, width, _ = pictures.shape
    tall = max(1, round(height * side / width))
    font, step = _font(12), 16
    lines = max(map(len, captions))
    across, down = side + _GAP, tall + lines * step + _GAP
    rows = -(-count // columns)
    size = (min(columns, count) * across - _GAP, rows * down - _GAP)
    sheet = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, caption) in enumerate(zip(pictures.cpu().numpy(), captions, strict=True)):
        left, top = index % columns * across, index // columns * down
        sheet.paste(Image.fromarray(pixels).resize((side, tall)), (left, top))
        for number, line in enumerate(caption):
            draw.text((left, top + tall + 2 + number * step), line, _INK, font)
    return sheet


def with_legend(
    pictures: Tensor,
    colours: Tensor,
    texts: Sequence[str],
    marks: Sequence[Sequence[tuple[float, float, str]]],
) -> "Image":
    """Draw pictures in rows, and below them what each colour means, on white.

    Args:
        pictures: uint8 ``(N, H, W, 3)``.
        colours: RGB ``(k, 3)`` in [0, 1].
        texts: A text for each colour.
        marks: For each picture, what to write at which x and y.
    """
    from PIL import Image, ImageDraw

    count, height, width, _ = pictures.shape
    columns = min(count, _PER_ROW)
    rows = -(-count // columns)
    font, step, box = _font(15), 24, 16
    wide = max(
        columns * (width + _GAP), *(box + 10 + font.getlength(each) + _GAP for each in texts)
    )
    body = rows * (height + _GAP)
    sheet = Image.new("RGB", (int(wide) + _GAP, body + len(texts) * step + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, pixels in enumerate(pictures.cpu().numpy()):
        left, top = index % columns * (width + _GAP), index // columns * (height + _GAP)
        sheet.paste(Image.fromarray(pixels), (_GAP + left, _GAP + top))
        for x, y, text in marks[index]:
            place = (
                _GAP + left + min(max(x, 8), width - 8),
                _GAP + top + min(max(y, 8), height - 8),
            )
            draw.text(place, text, _PAPER, font, anchor="mm", stroke_width=2, stroke_fill=_DARK)
    for index, (colour, text) in enumerate(zip(colours.tolist(), texts, strict=True)):
        top = body + _GAP + index * step
        fill = tuple(round(255 * each) for each in colour)
        draw.rectangle((_GAP, top, _GAP + box, top + box), fill, _DARK)
        draw.text((_GAP + box + 10, top + box // 2), text, _DARK, font, anchor="lm")
    return sheet


def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)
