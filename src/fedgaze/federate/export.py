"""A run's model as files that others can load: weights, ONNX, code, and a card that says it all."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedgaze import __version__
from fedgaze.config import ModelSpec, Task, parse_task
from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.exchange import fingerprint
from fedgaze.federate.rebuild import LOGITS, Rebuilt, configuration, rebuild, tried, without_paths
from fedgaze.models import OnnxCheck, check_onnx, check_onnx_packages, export_onnx
from fedgaze.report import Card, Contents, Record, model_card, read_record
from fedgaze.store import (
    checkpoint_of,
    load_tensors,
    save_tensors,
    task_directory,
    write_bytes,
    write_folder,
    write_json,
    write_text,
)
from fedgaze.train import State

__all__ = ["FORMATS", "Exported", "export_run"]

FORMATS = {
    "safetensors": "model.safetensors",
    "onnx": "model.onnx",
    "state-dict": "state_dict.pt",
}
"""The weights' files by the formats' names."""
CARD, CLASSES, PREPROCESS, CONFIG = "README.md", "classes.json", "preprocess.json", "config.json"


@dataclass(frozen=True)
class Exported:
    """An export.

    Attributes:
        folder: Where it lies.
        round: After which round the weights are.
        files: What each file is, by name.
        pictures: How many heatmaps the card shows.
        onnx: How far the ONNX file agrees with the model; None without one.
        left_out: Why a format is not there, by its name.
        missing: What the model's code lacks to be built from the folder; None where nothing.
        unfinished: Whether the run has rounds to go.
    """

    folder: Path
    round: int
    files: dict[str, str]
    pictures: int
    onnx: OnnxCheck | None
    left_out: dict[str, str]
    missing: str | None
    unfinished: bool


def export_run(
    run: Path,
    *,
    which: str = "last",
    formats: Sequence[str] | None = None,
    output: Path | None = None,
    directory: Path | None = None,
    pictures: bool = True,
) -> Exported:
    """Write a run's merged model after a round as files for others, all or nothing.

    The data set need not be at hand, and the run may be going on.

    Args:
        run: The run's folder.
        which: The round: its number, ``"last"`` (the last whole one), or ``"best"`` (by accuracy on
            the server's held-out images).
        formats: Of ``FORMATS``; None for all that can be made of this model.
        output: The folder to make, by default ``export/round_<r>`` in the run's. A name that is
            taken is left alone, and ``-2``, ``-3`` … is added.
        directory: The task's own directory, where it has moved since the run.
        pictures: Whether the card shows heatmaps.

    Raises:
        FedgazeError: There is no such round or format, a format that was asked for cannot be made,
            or the folder cannot be written.
    """
    _check(formats)
    record = read_record(run)
    number = _round(record, which)
    own = directory.resolve() if directory is not None else task_directory(run)
    task = parse_task(dict(record.task), own)
    job = _Job(record, number, task, formats)
    folder = write_folder(
        output or run / "export" / f"round_{number}",
        lambda part: job.fill(part, pictures=pictures),
    )
    return Exported(
        folder=folder,
        round=number,
        files=job.files,
        pictures=job.pictures,
        onnx=job.onnx,
        left_out=job.left_out,
        missing=job.missing,
        unfinished=record.summary.get("status") != "complete",
    )


def _check(formats: Sequence[str] | None) -> None:
    """Find out before any work whether formats that were asked for can be had."""
    for each in formats or ():
        if each not in FORMATS:
            raise FedgazeError(
                f"there is no format {each!r}; allowed are {', '.join(FORMATS)}"
                f"{nearest(each, FORMATS)}"
            )
    if formats is not None and "onnx" in formats:
        check_onnx_packages()


def _round(record: Record, which: str) -> int:
    """The number of the round that a word asks for."""
    rounds = record.rounds
    if not rounds:
        raise FedgazeError(f"{record.path} has no whole round yet, so there is no model to export")
    if which == "last":
        return rounds[-1]
    if which == "best":
        return _best(record)
    if not which.isdecimal() or int(which) not in rounds:
        span = f"1 to {rounds[-1]}" if len(rounds) > 1 else "1"
        raise FedgazeError(
            f"there is no round {which!r}; allowed are {span}, last and best"
            f"{nearest(which, ('last', 'best'))}"
        )
    return int(which)


def _best(record: Record) -> int:
    """The round of the highest accuracy; of several, that of the lowest loss, then the last."""

    def key(number: int) -> tuple[float, float, int]:
        values = record.merged(number)
        loss = values.get("loss")
        return values["accuracy"], -loss if loss is not None else float("-inf"), number

    known = [each for each in record.rounds if record.merged(each).get("accuracy") is not None]
    if not known:
        raise FedgazeError(f"no round of {record.path} has an accuracy: name a round, or last")
    return max(known, key=key)


class _Job:
    """One export at work.

    Args:
        record: The run.
        number: The round.
        task: The run's task.
        asked: The formats that were asked for; None for all that can be made.

    Attributes:
        files: What was written, and what it is.
        pictures: How many heatmaps the card shows.
        onnx: The check of the ONNX file.
        left_out: Why a format is not there.
        missing: What the model's code lacks to be built from the folder.
    """

    def __init__(
        self, record: Record, number: int, task: Task, asked: Sequence[str] | None
    ) -> None:
        self.record = record
        self.number = number
        self.task = task
        self.asked = asked
        self.state: State = load_tensors(checkpoint_of(record.path, number))
        self.sha256 = fingerprint(self.state)
        self.shape = _shape(record)
        self.logits = LOGITS
        self.files: dict[str, str] = {}
        self.pictures = 0
        self.onnx: OnnxCheck | None = None
        self.left_out: dict[str, str] = {}
        self.missing: str | None = None

    def fill(self, folder: Path, *, pictures: bool) -> None:
        """Write everything into a folder."""
        origin = f"the checkpoint of round {self.number}"
        built = rebuild(self.task, len(self.record.classes), self.state, origin)
        formats = FORMATS if self.asked is None else self.asked
        if "safetensors" in formats:
            name = FORMATS["safetensors"]
            save_tensors(folder / name, self.state, {"format": "pt", **self._about()})
            self.files[name] = "the weights; reading them runs no code"
        if "state-dict" in formats:
            name, buffer = FORMATS["state-dict"], io.BytesIO()
            torch.save(self.state, buffer)
            write_bytes(folder / name, buffer.getvalue())
            self.files[name] = "the weights as PyTorch writes them: a plain state dict"
        if "onnx" in formats:
            self._write_onnx(folder / FORMATS["onnx"], built)
        self.missing = built.trouble
        if built.script is not None:
            self._write_code(folder, built, built.script)
        self._write_words(folder, built, pictures=pictures)

    def _about(self) -> dict[str, str]:
        """What a file of weights says of itself."""
        return {
            "fedgaze": __version__,
            "task": self.record.name,
            "round": str(self.number),
            "classes": json.dumps(self.record.classes, ensure_ascii=False),
            "sha256": self.sha256,
        }

    def _write_onnx(self, path: Path, built: Rebuilt) -> None:
        try:
            check_onnx_packages()
            if built.model is None:
                raise FedgazeError(str(built.trouble))
            if self.shape is None:
                raise FedgazeError(
                    "the run’s record does not say how large its images are: an older fedgaze "
                    "wrote it"
                )
            about = {**self._about(), "preprocessing": _preprocess(self.shape)}
            write_bytes(path, export_onnx(built.model, self.shape, about))
            self.onnx = check_onnx(built.model, self.shape, path)
        except FedgazeError as error:
            if self.asked is not None:
                others = " and ".join(each for each in FORMATS if each != "onnx")
                raise FedgazeError(f"{error}; without onnx, {others} can be had") from error
            path.unlink(missing_ok=True)
            self.left_out["onnx"] = without_paths(str(error), self.task)
        else:
            self.files[path.name] = "the model for ONNX runtimes: weights and architecture"

    def _write_code(self, folder: Path, built: Rebuilt, script: str) -> None:
        for name, content in built.own.items():
            write_bytes(folder / name, content)
            self.files[name] = "the task’s own code"
        name = f"{built.module}.py"
        write_text(folder / name, script)
        self.files[name] = "builds the model, for the weights to be loaded into"
        if built.model is None:
            return
        if built.library == "transformers":
            write_json(folder / CONFIG, configuration(built.model, self.record.classes))
            self.files[CONFIG] = "the configuration, for transformers"
        try:
            self.logits = tried(folder, built.module, self.state, self.shape)
        except FedgazeError as error:
            self.missing = str(error)

    def _write_words(self, folder: Path, built: Rebuilt, *, pictures: bool) -> None:
        write_json(folder / CLASSES, self.record.classes)
        self.files[CLASSES] = "the names of the classes, in the order of the logits"
        if self.shape and self.shape[0] in (1, 3):
            write_json(folder / PREPROCESS, _preprocess(self.shape))
            self.files[PREPROCESS] = "how fedgaze prepares a picture"
        card = self._card(built, pictures=pictures)
        for name, content in card.pictures.items():
            write_bytes(folder / name, content)
        self.pictures = len(card.pictures)
        write_text(folder / CARD, card.text)
        self.files[CARD] = "the model card"

    def _card(self, built: Rebuilt, *, pictures: bool) -> Card:
        packages = {"fedgaze": __version__, "PyTorch": str(torch.__version__)}
        if self.onnx:
            packages |= {"onnx": version("onnx"), "onnxruntime": version("onnxruntime")}
        model = built.model
        contents = Contents(
            round=self.number,
            architecture=_words(self.task.model),
            library=built.library,
            parameters=None if model is None else sum(each.numel() for each in model.parameters()),
            sha256=self.sha256,
            image_shape=self.shape,
            files=self.files,
            script=None if built.script is None else built.module,
            logits=self.logits,
            missing=self.missing,
            onnx=vars(self.onnx) if self.onnx else {},
            left_out=self.left_out,
            versions=packages,
        )
        return model_card(self.record, contents, pictures=pictures)


def _shape(record: Record) -> tuple[int, int, int] | None:
    """Channels, height and width of a run's images; None where the record does not say."""
    shape = record.summary.get("image_shape")
    if not shape:
        return None
    channels, height, width = shape
    return channels, height, width


def _preprocess(shape: tuple[int, int, int]) -> dict[str, Any]:
    """How a picture becomes one of the images, in the words of ``--preprocess``."""
    channels, height, width = shape
    size = height if height == width else [height, width]
    return {"size": size, "mean": 0.0, "std": 1.0, "channels": channels}


def _words(model: ModelSpec) -> str:
    """The architecture as a task names it; of a path, only its end."""

    def end(value: Any) -> Any:
        local = isinstance(value, str) and value.startswith(("/", "~", "."))
        return Path(value).name if local else value

    given = ", ".join(f"{key}={end(value)!r}" for key, value in model.arguments.items())
    name = model.target or str(model.name)
    if name.startswith("hf:"):
        name = f"hf:{end(name.removeprefix('hf:'))}"
    return f"{name}({given})"
