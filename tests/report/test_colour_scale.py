"""The legend shows the colours that the heatmaps have."""

import base64
import io

import numpy as np
from matplotlib import colormaps
from PIL import Image

from fedgaze.report.pictures import colour_scale
from fedgaze.xai.colour import COLORMAP


def test_the_scale_runs_from_black_to_the_hottest_colour_of_the_maps() -> None:
    content = base64.b64decode(colour_scale().partition("base64,")[2])
    scale = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)[4]
    assert scale[0].max() < 20
    hottest = np.array(colormaps[COLORMAP](1.0)[:3]) * 255
    assert np.abs(scale[-1] - hottest).max() < 30  # the picture is compressed
    middle = np.array(colormaps[COLORMAP](0.5)[:3]) * 255 * 0.5**0.5
    assert np.abs(scale[128] - middle).max() < 30
    assert (np.diff(scale.sum(1)[::16]) > 0).all()  # ever brighter
