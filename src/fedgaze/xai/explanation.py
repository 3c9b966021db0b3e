"""Explanation: what a model was found to look at, and how it is kept."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.colour import ALPHA, COLORMAP, overlay

__all__ = ["Explanation"]

MANIFEST = "explanation.json"


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a model looked: R maps for N images, one each unless several targets were asked.

    Every tensor is on the model's device, and detached unless ``differentiable`` was asked for.

    Attributes:
        heatmaps: ``(R, H, W)`` in [0, 1], at the size of the images: the raw map brought to that
            size and divided by its maximum. 0 is no evidence for the target. Of signed maps
            (``relu=False``) in [-1, 1], divided by the greatest absolute value. Of volumes
            ``(R, D, H, W)``.
        raw: ``(R, h, w)``. Of one layer: what the method gave, at the layer's size. Of several:
            their maps, each divided by its maximum and brought to the size of the finest, fused.
        per_layer: What the method gave for each layer, ``(R, h, w)`` by name; of methods that
            explain no layer under ``"input"`` or ``"attention"``.
        attributions: Of methods that judge each number of an image: ``(R, C, H, W)``, signed;
            else, and for several layers, None.
        images: ``(R,)``: which image each map belongs to. With S targets an image, the rows of an
            image stand together: ``heatmaps.unflatten(0, (N, S))``.
        targets: ``(R,)``: the explained classes; None where no class was explained.
        scores: ``(R,)``: the scores that were explained.
        logits: What the model said, ``(N, classes)``. Where no class is explained: of whatever
            shape, and the scores ``(N, S)`` if there are no logits in the output.
        predicted: ``(N,)``: the classes of the greatest logits.
        layers: Names of the layers, in the order in which they ran.
        method: Name of the method.
        fusion: How several layers were fused.
        precision: What ran: ``"full"``, ``"fast"`` or ``"bf16"``; if not what was asked for, with
            the reason after a colon.
        flags: By map, what a person should know before believing it:
            ``no_positive_evidence`` (the map is zero), ``constant`` (it is the same everywhere and
            says nothing of where; the heatmap is zero), ``not_finite`` (activations or gradients
            are NaN or infinite; the map is zero), ``batch_dependent`` (the model normalises over
            the batch, so other images have a part in it), ``last_of_3_calls`` (a layer is used
            that often in one forward pass, and its last use is explained).
    """

    heatmaps: Tensor
    raw: Tensor
    per_layer: dict[str, Tensor]
    attributions: Tensor | None
    images: Tensor
    targets: Tensor | None
    scores: Tensor
    logits: Tensor
    predicted: Tensor
    layers: tuple[str, ...]
    method: str
    fusion: str
    precision: str
    flags: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.heatmaps)

    def _repr_html_(self) -> str:
        from fedgaze.xai.notebook import html_of

        return html_of(self)

    def _repr_png_(self) -> bytes:
        from fedgaze.xai.notebook import png_of

        return png_of(self)

    def overlay(self, images: Tensor, *, alpha: float = ALPHA, colormap: str = COLORMAP) -> Tensor:
        """Lay the heatmaps over pictures; see `fedgaze.xai.overlay`.

        Args:
            images: ``(N, C, H, W)``, grey or RGB, in [0, 1] or uint8, of any size: what a person
                should see, so before normalisation.
            alpha: How strongly the hottest pixel is covered, in [0, 1].
            colormap: The name of a Matplotlib colour map.

        Returns:
            uint8 ``(R, H, W, 3)``.
        """
        pictures = images[None] if images.dim() == 3 else images
        if len(pictures) == len(self.predicted):
            pictures = pictures[self.images.to(pictures.device)]
        return overlay(pictures, self.heatmaps, alpha=alpha, colormap=colormap)

    def save(
        self,
        directory: str | Path,
        images: Tensor | None = None,
        *,
        names: Sequence[str] | None = None,
        alpha: float = ALPHA,
        colormap: str = COLORMAP,
    ) -> list[Path]:
        """Write heatmaps, overlays and a manifest. No file that is there is overwritten.

        Args:
            directory: Made if it is not there.
            images: As for `overlay`; without them no overlays are written.
            names: What the files of each map are called, by default ``0000``, ``0001`` …
            alpha: As for `overlay`.
            colormap: As for `overlay`.

        Returns:
            What was written: for each image ``NAME.heatmap.npy`` (float32 ``(H, W)``) and, with
            images, ``NAME.overlay.png``; last ``explanation.json``. Each file is there whole or not
            at all, and the manifest only when all others are.

        Raises:
            FedgazeError: A file is there already, cannot be written, or a name cannot be used.
        """
        import numpy as np
        from PIL import Image

        folder = Path(directory)
        stems = [f"{i:04d}" for i in range(len(self))] if names is None else list(names)
        self._check_names(stems)
        writers: dict[str, Callable[[BinaryIO], object]] = {}
        for stem, heatmap in zip(stems, self.heatmaps.detach().float().cpu().numpy(), strict=True):
            writers[f"{stem}.heatmap.npy"] = partial(np.save, arr=heatmap)
        if images is not None:
            overlays = self.overlay(images, alpha=alpha, colormap=colormap).cpu().numpy()
            for stem, pixels in zip(stems, overlays, strict=True):
                picture = Image.fromarray(pixels)
                writers[f"{stem}.overlay.png"] = partial(picture.save, format="png")
        manifest = json.dumps(self._manifest(stems), indent=2, allow_nan=False).encode()
        writers[MANIFEST] = lambda file: file.write(manifest)
        for path in (folder / name for name in writers):
            if path.exists():
                raise FedgazeError(f"{path} is there already; choose another directory or name")
        return [_publish(folder / name, write) for name, write in writers.items()]

    def _check_names(self, names: Sequence[str]) -> None:
        if len(names) != len(self) or len(set(names)) != len(names):
            raise FedgazeError(
                f"there are {len(set(names))} different names for {len(self)} maps; give one each"
            )
        for name in names:
            if not name or name != Path(name).name:
                raise FedgazeError(f"{name!r} cannot name a file; allowed is a name without a path")

    def _manifest(self, names: Sequence[str]) -> dict[str, Any]:
        scores = [score if math.isfinite(score) else None for score in self.scores.tolist()]
        targets = [None] * len(self) if self.targets is None else self.targets.tolist()
        # For an output such as a mask's, one predicted class an image does not exist.
        several = self.predicted.dim() != 1
        predicted = [None] * len(self) if several else self.predicted[self.images].tolist()
        return {
            "method": self.method,
            "layers": list(self.layers),
            "fusion": self.fusion,
            "precision": self.precision,
            "images": [
                {
                    "name": name,
                    "image": image,
                    "target": target,
                    "predicted": best,
                    "score": score,
                    "flags": flags,
                }
                for name, image, target, best, score, flags in zip(
                    names, self.images.tolist(), targets, predicted, scores, self.flags, strict=True
                )
            ],
        }


def _publish(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Give a file its name once it is whole, and only if nobody else took the name meanwhile."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            write(file)
        try:
            # Unlike a renaming, a link fails where another program has just taken the name.
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            part.rename(path)
    except OSError as error:
        raise FedgazeError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return path
