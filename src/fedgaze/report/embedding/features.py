"""What layers hold of many pictures: streamed to the disk, a batch in memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedgaze.data import Images, read_folder, read_image
from fedgaze.errors import FedgazeError
from fedgaze.models import Classifier, layers_by_depth
from fedgaze.report.explained import cannot_run
from fedgaze.store import atomic
from fedgaze.timing import timed
from fedgaze.xai import auto_layer, layer_means, predictions

__all__ = ["Embedding", "FolderPictures", "Labelled", "StoredPictures", "embed"]


class Labelled(Protocol):
    """Pictures with labels, fetched one by one."""

    classes: Sequence[str]
    labels: NDArray[np.int64]

    def picture(self, index: int) -> Image.Image:
        """The picture at an index, as a person sees it."""

    def name(self, index: int) -> str:
        """What it is called."""


class FolderPictures:
    """The pictures of a folder with one folder a class.

    Args:
        root: The folder.

    Raises:
        FedgazeError: It or its classes are missing.
    """

    def __init__(self, root: Path) -> None:
        found, classes = read_folder(root, size=1)
        self._root, self._paths = root, found.paths
        self.classes: Sequence[str] = classes
        self.labels: NDArray[np.int64] = found.labels.numpy()

    def picture(self, index: int) -> Image.Image:
        """The picture at an index."""
        return read_image(self._paths[index])

    def name(self, index: int) -> str:
        """Its path below the folder."""
        return self._paths[index].relative_to(self._root).as_posix()


class StoredPictures:
    """The images of a data set.

    Args:
        images: Its images.
        classes: The labels' names.
    """

    def __init__(self, images: Images, classes: Sequence[str]) -> None:
        self._images = images
        self.classes = classes
        self.labels: NDArray[np.int64] = images.labels.numpy()

    def picture(self, index: int) -> Image.Image:
        """The picture at an index."""
        pixels = (self._images[torch.tensor([index])][0] * 255).round().to(torch.uint8)
        return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else _last(pixels))

    def name(self, index: int) -> str:
        """Its number."""
        return f"{index:05d}"


@dataclass(frozen=True)
class Embedding:
    """Features of pictures, layer by layer.

    Attributes:
        layers: By what was asked for, the layers' names.
        files: By what was asked for, a NumPy file of float32 ``(N, K)``.
        labels: ``(N,)``.
        predicted: ``(N,)``.
        kept: Which pictures they are, by index; those that cannot be read are left out.
        failed: What was wrong with the others.
    """

    layers: Mapping[str, str]
    files: Mapping[str, Path]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    kept: NDArray[np.int64]
    failed: Sequence[str] = field(default_factory=list)

    def features(self, word: str, chosen: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """A layer's features ``(n, K)``, of some rows; read from the disk as they are needed."""
        held = np.load(self.files[word], mmap_mode="r")
        return np.asarray(held if chosen is None else held[chosen], dtype=np.float32)


def embed(
    classifier: Classifier,
    pictures: Labelled,
    layers: Sequence[str],
    folder: Path,
    *,
    batch_size: int = 64,
    done: Callable[[int], None] = lambda _: None,
) -> Embedding:
    """Run the model once over all pictures, and keep what its layers hold on average.

    Args:
        classifier: On the device that it runs on.
        pictures: With labels.
        layers: As for `layers_by_depth`.
        folder: Where the features go: ``features.LAYER.npy``.
        batch_size: How many pictures run at once.
        done: Called with how many more are done.

    Raises:
        FedgazeError: A layer does not exist, or no picture can be read.
    """
    found: dict[str, str] = {}
    predicted: list[int] = []
    kept: list[int] = []
    failed: list[str] = []
    sinks: dict[str, _Sink] = {}
    try:
        for indices, images in _batches(classifier, pictures, batch_size, failed):
            try:
                if not found:
                    found = _layers(classifier, layers, images[:1])
                with timed(f"{len(indices)} pictures through {classifier.name}"):
                    means, logits = layer_means(classifier.model, images, list(found.values()))
            except FedgazeError:
                raise
            except RuntimeError as error:
                raise FedgazeError(cannot_run(error, *images.shape[1:])) from error
            if not sinks:
                sinks = {
                    word: _Sink(folder / f"features.{name}.npy") for word, name in found.items()
                }
            for word, name in found.items():
                sinks[word].add(means[name].cpu())
            predicted += predictions(logits).tolist()
            kept += indices
            done(len(indices))
        if not kept:
            raise FedgazeError(f"none of the pictures can be read: {failed[0] if failed else ''}")
        files = {word: sink.close() for word, sink in sinks.items()}
    finally:
        for sink in sinks.values():
            sink.discard()
    rows = np.array(kept, dtype=np.int64)
    return Embedding(
        found, files, pictures.labels[rows], np.array(predicted, dtype=np.int64), rows, failed
    )


def _layers(classifier: Classifier, layers: Sequence[str], images: Tensor) -> dict[str, str]:
    """The layers' names by what was asked for, each once."""
    found: dict[str, str] = {}
    for word, name in layers_by_depth(classifier.model, layers, images).items():
        known = auto_layer(classifier.model, images) if name == "auto" else name
        if known not in found.values():
            found[word] = known
    return found


def _batches(
    classifier: Classifier, pictures: Labelled, size: int, failed: list[str]
) -> Iterator[tuple[list[int], Tensor]]:
    """Pictures of one size, prepared, on the model's device."""
    device = next(classifier.model.parameters(), torch.empty(0)).device
    indices: list[int] = []
    waiting: list[Tensor] = []
    for index in range(len(pictures.labels)):
        try:
            picture = pictures.picture(index)
        except FedgazeError as error:
            failed.append(str(error))
            continue
        preprocess = classifier.preprocess
        tensor = preprocess.tensor(preprocess.view(picture))
        if waiting and (len(waiting) == size or tensor.shape != waiting[0].shape):
            yield indices, torch.stack(waiting).to(device)
            indices, waiting = [], []
        indices.append(index)
        waiting.append(tensor)
    if waiting:
        yield indices, torch.stack(waiting).to(device)


class _Sink:
    """Rows that are written as they come, and become a NumPy file once all are there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("wb")
        self._rows = self._width = 0

    def add(self, rows: Tensor) -> None:
        self._rows += len(rows)
        self._width = rows.shape[1]
        self._file.write(rows.numpy().astype("<f4").tobytes())

    def close(self) -> Path:
        """Put the header before the rows, and the file in its place."""
        from shutil import copyfileobj

        self._file.close()
        header: dict[str, Any] = {
            "descr": "<f4",
            "fortran_order": False,
            "shape": (self._rows, self._width),
        }
        with atomic(self._path) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            with self._part.open("rb") as rows:
                copyfileobj(rows, file)
        return self._path

    def discard(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


def _last(pixels: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy()
    return found
