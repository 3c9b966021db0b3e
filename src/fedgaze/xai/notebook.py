"""Notebooks: how an explanation displays itself."""

from base64 import b64encode
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgaze.xai.colour import COLORMAP, SIGNED, colour_table
from fedgaze.xai.drawing import shrunk, tiled

if TYPE_CHECKING:
    from fedgaze.xai.explanation import Explanation

__all__ = ["html_of", "png_of"]

SHOWN = 16
"""How many maps are displayed; of the others only their number."""

_SIDE = 128
_COLUMNS = 8
_STOPS = 9

# Text takes the colour of what surrounds it, so that it can be read in light and dark themes.
_PAGE = """\
<div style="font:13px/1.45 system-ui,sans-serif;color:inherit;background:none">
<div style="margin-bottom:8px"><strong>{method}</strong> {facts}
<span style="white-space:nowrap;margin-left:12px">{low}
<span style="display:inline-block;width:96px;height:10px;margin:0 4px;border-radius:2px;\
background:linear-gradient(to right,{stops})"></span>{high}</span></div>
<div style="display:flex;flex-wrap:wrap;gap:12px">
{figures}
</div>
{more}</div>
"""
_FIGURE = """\
<figure style="margin:0;width:{side}px">
<img src="data:image/png;base64,{data}" alt="{alt}" width="{side}" \
style="display:block;width:{side}px;height:auto;max-width:none;margin:0;border-radius:3px;\
box-shadow:0 0 0 1px rgba(128,128,128,.4)">
<figcaption style="margin-top:3px;text-align:left;color:inherit;font-size:12px">{lines}{flags}\
</figcaption></figure>"""
_FLAG = """\
<span style="display:inline-block;margin-top:2px;padding:0 6px;border:1px solid #d97706;\
border-radius:9px;font-size:11px">{text}</span>"""


def html_of(explanation: "Explanation") -> str:
    """Show the first 16 heatmaps as a row of small pictures with captions, in one piece of HTML.

    Nothing is fetched from elsewhere. Signed maps have a diverging colour map. Of volumes what is
    strongest over the depth is shown.
    """
    coloured, colormap = _coloured(explanation)
    captions = _captions(explanation)
    figures = [
        _FIGURE.format(
            side=_SIDE,
            data=b64encode(_png(pixels)).decode(),
            alt=escape(f"heatmap: {', '.join(lines)}"),
            lines="<br>".join(map(escape, lines)),
            flags="".join("<br>" + _FLAG.format(text=escape(_said(flag))) for flag in flags),
        )
        for pixels, lines, flags in zip(coloured, captions, explanation.flags, strict=False)
    ]
    stops = colour_table(colormap)[torch.linspace(0, 255, _STOPS).long()] * 255
    left = len(explanation) - len(figures)
    more = f'<div style="margin-top:8px;opacity:.75">and {left} more</div>\n' if left else ""
    return _PAGE.format(
        method=escape(explanation.method),
        facts="".join(f" · {escape(fact)}" for fact in _facts(explanation)),
        low="0" if colormap == COLORMAP else "−1",
        high="1",
        stops=",".join(f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in stops.tolist()),
        figures="\n".join(figures),
        more=more,
    )


def png_of(explanation: "Explanation") -> bytes:
    """Show the same as a picture with a transparent background."""
    coloured, _ = _coloured(explanation)
    pairs = zip(_captions(explanation), explanation.flags, strict=False)
    captions = [[*lines, *map(_said, flags)] for lines, flags in pairs]
    if len(explanation) > SHOWN:
        captions[-1] = [*captions[-1], f"and {len(explanation) - SHOWN} more"]
    file = BytesIO()
    tiled(coloured, captions, _COLUMNS, _SIDE).save(file, format="png")
    return file.getvalue()


def _coloured(explanation: "Explanation") -> tuple[Tensor, str]:
    """uint8 ``(n, h, w, 3)``, and the name of the colour map."""
    maps = explanation.heatmaps.detach()[:SHOWN].float().cpu()
    while maps.dim() > 3:
        strongest = maps.abs().argmax(1, keepdim=True)
        maps = maps.gather(1, strongest)[:, 0]
    signed = bool((explanation.heatmaps < 0).any())
    colormap = SIGNED if signed else COLORMAP
    heat = shrunk((maps + 1) / 2 if signed else maps, _SIDE).clamp(0, 1)
    table = (colour_table(colormap) * 255).round().to(torch.uint8)
    return table[(heat * 255).round().long()], colormap


def _png(pixels: Tensor) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="png", optimize=True)
    return file.getvalue()


def _facts(explanation: "Explanation") -> list[str]:
    maps, images = len(explanation), len(explanation.predicted)
    layers = explanation.layers
    facts = [f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(layers)}"] if layers else []
    if len(layers) > 1:
        facts.append(explanation.fusion)
    facts.append(_count(maps, "map") + ("" if maps == images else f" of {_count(images, 'image')}"))
    if explanation.precision != "full":
        facts.append(explanation.precision)
    return facts


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _captions(explanation: "Explanation") -> list[list[str]]:
    shown = slice(SHOWN)
    images = explanation.images[shown].tolist()
    scores = explanation.scores[shown].tolist()
    classes = explanation.targets
    targets = [None] * len(images) if classes is None else classes[shown].tolist()
    one_each = explanation.predicted.dim() == 1
    best = explanation.predicted[explanation.images[shown]].tolist() if one_each else targets
    captions: list[list[str]] = []
    for image, target, score, predicted in zip(images, targets, scores, best, strict=True):
        what = f"score {score:.3g}" if target is None else f"class {target}, score {score:.3g}"
        lines = [f"image {image}", what]
        if target is not None and predicted != target:
            lines.append(f"predicted {predicted}")
        captions.append(lines)
    return captions


def _said(flag: str) -> str:
    return flag.replace("_", " ")
