"""What a notebook shows: the HTML is read by a parser, and its pictures are opened."""

from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from fedgaze.xai import Explanation

VOID = {"br", "img"}


class Page(HTMLParser):
    """The pictures, the text and the attributes of a piece of HTML with balanced tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.pictures: list[np.ndarray] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "img":
            kind, _, data = str(dict(attrs)["src"]).partition(",")
            assert kind == "data:image/png;base64"
            self.pictures.append(np.asarray(Image.open(BytesIO(b64decode(data)))))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []


def made(heatmaps: Tensor, **changes: Any) -> Explanation:
    count = len(heatmaps)
    known = {
        "raw": heatmaps,
        "per_layer": {},
        "attributions": None,
        "images": torch.arange(count),
        "targets": torch.full((count,), 3),
        "scores": torch.full((count,), 1.25),
        "logits": torch.zeros(count, 5),
        "predicted": torch.full((count,), 3),
        "layers": ("layer4",),
        "method": "gradcam",
        "fusion": "mean",
        "precision": "full",
        "flags": ((),) * count,
    }
    return Explanation(heatmaps=heatmaps, **{**known, **changes})


def colour(name: str, heat: float) -> list[int]:
    return [round(255 * each) for each in colormaps[name](heat)[:3]]


def opened(explanation: Explanation) -> Image.Image:
    return Image.open(BytesIO(explanation._repr_png_()))


def test_each_map_is_a_picture_in_the_colours_of_its_heat() -> None:
    heatmaps = torch.zeros(2, 4, 6)
    heatmaps[0, 1, 2], heatmaps[1, 3, 5] = 1, 0.2
    page = Page(made(heatmaps)._repr_html_())
    first, second = page.pictures
    assert first.shape == (4, 6, 3)
    assert first[1, 2].tolist() == colour("inferno", 1.0)
    assert first[0, 0].tolist() == colour("inferno", 0.0)
    assert second[3, 5].tolist() == colour("inferno", 51)
    assert page.texts == [
        *("gradcam", "· layer layer4 · 2 maps", "0", "1"),
        *("image 0", "class 3, score 1.25", "image 1", "class 3, score 1.25"),
    ]
    alternatives = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert alternatives[0] == "heatmap: image 0, class 3, score 1.25"
    # The picture beside it: the same pixels, each drawn 128 pixels wide.
    sheet = opened(made(heatmaps))
    assert sheet.mode == "RGBA"
    assert sheet.width == 2 * 128 + 12
    enlarged = np.asarray(Image.fromarray(first).resize((128, 85)))
    assert np.array_equal(np.asarray(sheet)[:85, :128, :3], enlarged)


def test_signed_maps_have_two_colours() -> None:
    heatmaps = torch.tensor([[[-1.0, 0.0, 1.0]]])
    page = Page(made(heatmaps)._repr_html_())
    negative, middle, positive = page.pictures[0][0].tolist()
    assert negative == colour("RdBu_r", 0.0)
    assert positive == colour("RdBu_r", 1.0)
    assert min(middle) > 240
    assert page.texts[2:4] == ["−1", "1"]


def test_of_volumes_the_strongest_slice_is_shown() -> None:
    heatmaps = torch.zeros(1, 3, 2, 2)
    heatmaps[0, 2, 0, 1], heatmaps[0, 0, 1, 1], heatmaps[0, 1, 1, 1] = 1.0, 0.4, -0.6
    pixels = Page(made(heatmaps)._repr_html_()).pictures[0]
    assert pixels[0, 1].tolist() == colour("RdBu_r", 1.0)
    assert pixels[1, 1].tolist() == colour("RdBu_r", 51)


def test_large_maps_are_shrunk_and_many_are_counted() -> None:
    explanation = made(torch.rand(19, 300, 200))
    html = explanation._repr_html_()
    page = Page(html)
    assert len(page.pictures) == 16
    assert page.pictures[0].shape == (128, 85, 3)
    assert page.texts[-1] == "and 3 more"
    assert len(html) < 16 * 60_000
    # Two rows of eight, each with lines of text below.
    assert opened(explanation).width == 8 * 128 + 7 * 12


def test_flags_other_classes_and_several_targets_are_said() -> None:
    explanation = made(
        torch.zeros(4, 2, 2),
        images=torch.tensor([0, 0, 1, 1]),
        targets=torch.tensor([3, 4, 3, 4]),
        predicted=torch.tensor([3, 4]),
        flags=(("no_positive_evidence",), (), (), ("last_of_3_calls", "constant")),
        layers=("layer3", "layer4"),
        fusion="max",
        precision="bf16",
    )
    page = Page(explanation._repr_html_())
    assert page.texts[1] == "· layers layer3, layer4 · max · 4 maps of 2 images · bf16"
    assert page.texts[4:] == [
        *("image 0", "class 3, score 1.25", "no positive evidence"),
        *("image 0", "class 4, score 1.25", "predicted 3"),
        *("image 1", "class 3, score 1.25", "predicted 4"),
        *("image 1", "class 4, score 1.25", "last of 3 calls", "constant"),
    ]


@pytest.mark.parametrize("predicted", [torch.zeros(1, 4, 4), torch.zeros(1)])
def test_what_explains_no_class_shows_its_score(predicted: Tensor) -> None:
    page = Page(made(torch.rand(1, 4, 4), targets=None, predicted=predicted)._repr_html_())
    assert page.texts[4:] == ["image 0", "score 1.25"]


def test_nothing_is_fetched_and_names_are_text() -> None:
    evil = "</div><script>alert(1)</script>"
    html = made(torch.rand(1, 2, 2), method=evil, layers=(evil + '"',))._repr_html_()
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= {
        *("div", "span", "strong", "figure", "figcaption", "img", "br")
    }
    assert page.texts[0] == evil
    assert "http" not in html
    assert "url(" not in html
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_maps_with_a_graph_and_of_half_precision_are_shown() -> None:
    heatmaps = torch.rand(1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    page = Page(made(heatmaps)._repr_html_())
    shown = colour("inferno", round(255 * heatmaps[0, 0, 0].item()))
    assert page.pictures[0][0, 0].tolist() == shown
