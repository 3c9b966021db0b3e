"""How a picture becomes what a model takes, in two steps that are kept apart.

First the geometry (`Preprocess.view`): resize and crop, which gives the picture that the model sees
and that a heatmap lies on. Then the numbers (`Preprocess.tensor`): scale and normalise.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from fedgaze.errors import FedgazeError, nearest
from fedgaze.models.resolve import library

__all__ = ["IMAGENET", "Preprocess", "input_channels", "read_preprocess", "weights_preprocess"]

_INTERPOLATIONS = (
    "nearest",
    "lanczos",
    "bilinear",
    "bicubic",
    "box",
    "hamming",
)  # as Pillow counts
_FILE_KEYS = ("size", "resize", "mean", "std", "interpolation", "channels")


@dataclass(frozen=True)
class Preprocess:
    """What is done to a picture before a model gets it.

    Attributes:
        resize: The length of the shorter side, or (height, width) exactly; None leaves it.
        crop: (height, width) of the middle part that is cut out; None cuts nothing.
        mean: Taken from each channel, in [0, 1]; a single one serves every channel.
        std: What each channel is divided by.
        interpolation: ``bilinear``, ``bicubic``, ``nearest``, ``lanczos``, ``box``, ``hamming``.
        channels: 3 for colour, 1 for grey.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: str = "bilinear"
    channels: int = 3

    def view(self, picture: Image.Image) -> Image.Image:
        """Resize and crop a picture: what is returned is what the model sees."""
        seen = self._coloured(picture)
        scaled = self._scaled(seen.size)
        if scaled != seen.size:
            seen = seen.resize(scaled, Image.Resampling[self.interpolation.upper()])
        return seen if self.crop is None else seen.crop(self._box(scaled, self.crop))

    def frame(self, picture: Image.Image) -> Image.Image:
        """Cut out what `view` shows, to the pixel, but leave it at the picture's own resolution."""
        whole = self._coloured(picture)
        return whole if self.crop is None else whole.crop(self.frame_box(whole.size))

    def frame_box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Which part of a picture of that (width, height) `frame` cuts out.

        Returns:
            (left, top, right, bottom); it may reach over the edge.
        """
        if self.crop is None:
            return 0, 0, *size
        scaled = self._scaled(size)
        left, top, right, bottom = self._box(scaled, self.crop)
        across, down = size[0] / scaled[0], size[1] / scaled[1]
        return round(left * across), round(top * down), round(right * across), round(bottom * down)

    def tensor(self, view: Image.Image) -> Tensor:
        """Turn a view into the (C, H, W) float tensor that the model takes."""
        pixels = torch.from_numpy(np.array(view)).view(view.height, view.width, -1)
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return (pixels.permute(2, 0, 1).float() / 255 - mean) / std

    def _coloured(self, picture: Image.Image) -> Image.Image:
        return picture.convert("L" if self.channels == 1 else "RGB")

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) that a picture of that (width, height) is brought to."""
        if self.resize is None:
            return size
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        # The libraries round the longer side down.
        long = int(self.resize * max(size) / min(size))
        return (self.resize, long) if size[0] <= size[1] else (long, self.resize)

    @staticmethod
    def _box(scaled: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int, int, int]:
        """The middle of a picture, as (left, top, right, bottom); it may reach over the edge."""
        rest = scaled[0] - crop[1], scaled[1] - crop[0]
        # The libraries round an odd rest so when they cut it off, and so when they add a border.
        left, top = (round(each / 2) if each >= 0 else -(-each // 2) for each in rest)
        return left, top, left + crop[1], top + crop[0]


IMAGENET = Preprocess(
    resize=256, crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
"""What most models trained on ImageNet take."""


def input_channels(model: nn.Module) -> int:
    """Return how many channels a model's pictures have: 1 if its first convolution takes 1, else 3.

    A model whose convolution takes another number makes channels of its own from the picture's.
    """
    first = next((each for each in model.modules() if isinstance(each, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3


def weights_preprocess(model: nn.Module, source: str, name: str) -> Preprocess:
    """Return what the weights of a model of a library ask for.

    Args:
        model: The model.
        source: ``torchvision``, ``timm``, ``transformers`` or ``fedgaze``; others say nothing of
            pictures, which then are handed on as they are, in [0, 1].
        name: The architecture in torchvision, or the place of a transformers model.

    Raises:
        FedgazeError: What they ask for cannot be done here.
    """
    if source == "torchvision":
        return _of_torchvision(name)
    if source == "timm":
        return _of_timm(model)
    if source == "transformers":
        return _of_transformers(name)
    if source == "fedgaze":
        coloured = name.endswith("CifarResNet")
        return Preprocess(32, (32, 32)) if coloured else Preprocess(channels=1)
    return Preprocess(channels=input_channels(model))


def read_preprocess(path: Path, channels: int = 3) -> Preprocess:
    """Read a JSON or YAML file that says how pictures are prepared.

    - ``size``: S (the shorter side is brought to S and the middle S × S cut out) or [H, W] (brought
      to exactly that). Without it pictures keep their size.
    - ``resize``: what the picture is brought to before ``size`` is cut out of its middle, where the
      two differ; the usual recipe for ImageNet is ``size: 224, resize: 256``.
    - ``mean``, ``std``: a number, or one a channel, of pixels in [0, 1].
    - ``interpolation``: see `Preprocess`.
    - ``channels``: 1 or 3.

    Args:
        path: The file.
        channels: Used where the file does not say.

    Raises:
        FedgazeError: The file cannot be read, or has a key or a value that is not one of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
        held = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = str(error).replace("\n", " ")
        raise FedgazeError(f"the preprocessing {path} cannot be read: {why}") from error
    if not isinstance(held, Mapping):
        raise FedgazeError(f"{path} should map {', '.join(_FILE_KEYS)} to values")
    for key in held:
        if key not in _FILE_KEYS:
            raise FedgazeError(
                f"{path} has the unknown key '{key}'{nearest(str(key), _FILE_KEYS)}; "
                f"the keys are {', '.join(_FILE_KEYS)}"
            )
    try:
        return _from_words(held, channels)
    except FedgazeError as error:
        raise FedgazeError(f"{path}: {error}") from error


def _from_words(held: Mapping[str, Any], channels: int) -> Preprocess:
    channels = held.get("channels", channels)
    if channels not in (1, 3):
        raise FedgazeError(f"channels must be 1 or 3, not {channels!r}")
    size, resize = _sides(held, "size"), _sides(held, "resize")
    interpolation = held.get("interpolation", "bilinear")
    if interpolation not in _INTERPOLATIONS:
        raise FedgazeError(
            f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, not {interpolation!r}"
        )
    std = _numbers(held, "std", channels, (1.0,))
    if any(value <= 0 for value in std):
        raise FedgazeError("std must be greater than 0")
    exact = isinstance(size, tuple) and resize is None
    return Preprocess(
        resize=size if resize is None else resize,
        crop=None if exact or size is None else size if isinstance(size, tuple) else (size, size),
        mean=_numbers(held, "mean", channels, (0.0,)),
        std=std,
        interpolation=interpolation,
        channels=channels,
    )


def _sides(held: Mapping[str, Any], key: str) -> int | tuple[int, int] | None:
    value = held.get(key)
    if value is None:
        return None
    sides = value if isinstance(value, list) else [value]
    if not all(type(side) is int and 0 < side <= 8192 for side in sides) or len(sides) > 2:
        raise FedgazeError(
            f"{key} must be a side or [height, width], each 1 to 8192, not {value!r}"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _numbers(
    held: Mapping[str, Any], key: str, channels: int, default: tuple[float, ...]
) -> tuple[float, ...]:
    value = held.get(key, default)
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    right = all(isinstance(each, int | float) and math.isfinite(each) for each in numbers)
    if not right or len(numbers) not in (1, channels):
        raise FedgazeError(f"{key} must be a number or a list of {channels}, not {value!r}")
    return tuple(float(each) for each in numbers)


def _of_torchvision(name: str) -> Preprocess:
    from torchvision.models import get_model_weights

    asked = get_model_weights(name).DEFAULT.transforms()
    if not {"resize_size", "crop_size", "mean", "std"} <= vars(asked).keys():
        raise FedgazeError(
            f"{name} is no classifier of pictures, so its weights do not say how to prepare one"
        )
    resize = tuple(asked.resize_size)
    crop = tuple(asked.crop_size)
    return Preprocess(
        resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        crop=(crop[0], crop[-1]),
        mean=tuple(asked.mean),
        std=tuple(asked.std),
        interpolation=asked.interpolation.value,
    )


def _of_timm(model: nn.Module) -> Preprocess:
    asked = library("timm").data.resolve_model_data_config(model)
    channels, height, width = asked["input_size"]
    # timm rounds the side before the crop down.
    scaled = (math.floor(height / asked["crop_pct"]), math.floor(width / asked["crop_pct"]))
    mode = asked.get("crop_mode") or "center"
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise FedgazeError(
            f"the weights ask for the crop mode '{mode}' at {height}×{width}, which is not "
            "supported: say how to prepare pictures with --preprocess FILE"
        )
    return Preprocess(
        resize=scaled if mode == "squash" else scaled[0],
        crop=(height, width),
        mean=tuple(asked["mean"]),
        std=tuple(asked["std"]),
        interpolation=asked["interpolation"],
        channels=channels,
    )


def _of_transformers(place: str) -> Preprocess:
    try:
        processor = library("transformers").AutoImageProcessor.from_pretrained(
            place, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise FedgazeError(
            f"'{place}' does not say how to prepare pictures (it has no usable "
            "preprocessor_config.json): say so with --preprocess imagenet|none|FILE"
        ) from error
    asked = processor.to_dict()
    size, crop = asked.get("size") or {}, asked.get("crop_size") or {}
    resize: int | tuple[int, int] | None = None
    cut = (crop["height"], crop["width"]) if asked.get("do_center_crop") and crop else None
    if asked.get("do_resize"):
        if "shortest_edge" in size:
            resize = int(size["shortest_edge"])
            # ConvNeXt's small sizes: the side is grown by 1 / crop_pct, then cut out of the middle.
            if asked.get("crop_pct") and resize < 384:
                cut = (resize, resize)
                resize = int(resize / asked["crop_pct"])
            elif asked.get("crop_pct"):
                resize = (resize, resize)
        elif "height" in size:
            resize = (size["height"], size["width"])
        else:
            raise FedgazeError(
                f"'{place}' asks for the size {size}, which is not supported: say how to prepare "
                "pictures with --preprocess FILE"
            )
    normalise = asked.get("do_normalize")
    # Numbers that are not scaled to [0, 1] first are brought there by scaling mean and std instead.
    scale = asked.get("rescale_factor", 1 / 255) * 255 if asked.get("do_rescale", True) else 255.0
    mean, std = (asked["image_mean"], asked["image_std"]) if normalise else ([0.0], [1.0])
    resample = asked.get("resample")
    return Preprocess(
        resize=resize,
        crop=cut,
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
        interpolation=_INTERPOLATIONS[2 if resample is None else int(resample)],
    )
