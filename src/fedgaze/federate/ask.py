"""Ask a model of a run where it looks in a picture: a client's own model, or a merged one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from PIL import Image

from fedgaze.config import parse_task
from fedgaze.data import fit_picture, read_image
from fedgaze.errors import FedgazeError
from fedgaze.federate.exchange import fingerprint
from fedgaze.federate.setup import Setup, prepare
from fedgaze.measure import border_mass, entropy
from fedgaze.store import load_tensors
from fedgaze.train import LearnerProtocol
from fedgaze.xai import logits_of, overlay

__all__ = ["Answer", "Question", "answer", "ask_record", "read_answer", "read_question"]

PICTURE_LIMIT = 1024
"""Pixels of the longer side of a picture that is sent."""


@dataclass(frozen=True, eq=False)
class Question:
    """A picture, and which class to look for.

    Attributes:
        picture: uint8 ``(H, W, 3)``.
        target: A class index; None for the predicted one.
        version: Of which round the model is to be; None for the last.
    """

    picture: NDArray[np.uint8]
    target: int | None = None
    version: int | None = None

    @classmethod
    def of_file(cls, path: Path, target: int | None = None, version: int | None = None) -> Any:
        """Ask about a picture in a file, which is made smaller where it is large.

        Raises:
            FedgazeError: It cannot be read.
        """
        picture = read_image(path)
        picture.thumbnail((PICTURE_LIMIT, PICTURE_LIMIT))
        return cls(np.asarray(picture), target, version)

    def packed(self) -> RecordDict:
        """As the content of a message."""
        asked: dict[str, int] = {}
        if self.target is not None:
            asked["target"] = self.target
        if self.version is not None:
            asked["version"] = self.version
        arrays = ArrayRecord({"picture": Array(self.picture)})
        return RecordDict({"picture": arrays, "question": ConfigRecord({**asked})})


def read_question(content: RecordDict) -> Question:
    """Read what :meth:`Question.packed` made.

    Raises:
        FedgazeError: It is no question.
    """
    try:
        picture = content.array_records["picture"]["picture"].numpy()
        asked: Mapping[str, Any] = content.config_records["question"]
        target, version = (asked.get(key) for key in ("target", "version"))
    except (KeyError, ValueError, TypeError) as error:
        raise FedgazeError(f"the question lacks something: {error}") from None
    right = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    whole = all(each is None or isinstance(each, int) for each in (target, version))
    if not right or not 0 < picture.size <= 3 * PICTURE_LIMIT**2 or not whole:
        raise FedgazeError("the question holds no picture (H, W, 3) of bytes, or no whole numbers")
    return Question(picture, target, version)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says of a picture.

    Attributes:
        facts: ``predicted``, ``explained``, ``probability`` (of the explained class), ``entropy``,
            ``border_mass``, ``weights_sha256``, ``method``, ``layers``, ``shared``.
        heatmap: ``(h, w)`` in [0, 1]; None where the client shares no maps.
        size: ``(channels, h, w)`` as the model sees the picture.
    """

    facts: dict[str, Any]
    heatmap: NDArray[np.float32] | None
    size: tuple[int, int, int]

    def overlay(self, question: Question) -> Image.Image | None:
        """The picture as the model sees it, with the heatmap over it."""
        if self.heatmap is None:
            return None
        channels, height, width = self.size
        seen = fit_picture(Image.fromarray(question.picture), (height, width), channels)
        factor = max(1, round(384 / max(height, width)))
        large = seen.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        maps = torch.nn.functional.interpolate(
            torch.from_numpy(self.heatmap)[None, None], large.shape[1:], mode="bilinear"
        )
        return Image.fromarray(overlay(large[None], maps[0])[0].cpu().numpy())

    def packed(self) -> RecordDict:
        """As the content of a message."""
        numbers = {
            key: value for key, value in self.facts.items() if isinstance(value, float | int)
        }
        words = {key: value for key, value in self.facts.items() if isinstance(value, str)}
        lists = {key: value for key, value in self.facts.items() if isinstance(value, list)}
        content = RecordDict(
            {
                "numbers": MetricRecord({**numbers}),
                "words": ConfigRecord({**words, **lists, "size": list(self.size)}),
            }
        )
        if self.heatmap is not None:
            content["heatmap"] = ArrayRecord({"heatmap": Array(self.heatmap)})
        return content


def read_answer(content: RecordDict) -> Answer:
    """Read what :meth:`Answer.packed` made; it comes from elsewhere.

    Raises:
        FedgazeError: It is no answer.
    """
    try:
        words: dict[str, Any] = dict(content.config_records["words"])
        size = tuple(int(side) for side in words.pop("size"))
        numbers: dict[str, Any] = dict(content.metric_records["numbers"])
        heatmap = None
        if "heatmap" in content.array_records:
            heatmap = content.array_records["heatmap"]["heatmap"].numpy()
    except (KeyError, ValueError, TypeError) as error:
        raise FedgazeError(f"the client's answer lacks something: {error}") from None
    if len(size) != 3 or not all(0 < side <= 4096 for side in size):
        raise FedgazeError(f"the client's answer is of a size {size} that no picture has")
    if heatmap is not None and (
        heatmap.shape != size[1:] or heatmap.dtype != np.float32 or not np.isfinite(heatmap).all()
    ):
        raise FedgazeError("the client's heatmap does not fit the picture")
    return Answer({**words, **numbers}, heatmap, (size[0], size[1], size[2]))


def answer(setup: Setup, learner: LearnerProtocol, question: Question, share: str) -> Answer:
    """Let a model say where it looks.

    Args:
        setup: The task and its images, which say what pictures look like.
        learner: The model.
        question: The picture.
        share: What may be said: ``profile``, or ``maps`` and ``overlays`` for the map as well.

    Raises:
        FedgazeError: There is no such class, or nothing may be said.
    """
    if share == "none":
        raise FedgazeError("this client shares nothing (xai.share=none)")
    channels, height, width = setup.dataset.test[torch.tensor([0])].shape[1:]
    picture = Image.fromarray(question.picture)
    image = fit_picture(picture, (height, width), channels)[None].to(setup.device)
    with torch.no_grad():
        predicted = int(logits_of(learner.predict(image)).argmax())
    target = predicted if question.target is None else question.target
    if not 0 <= target < len(setup.dataset.classes):
        raise FedgazeError(
            f"there is no class {target}: there are 0 to {len(setup.dataset.classes) - 1}"
        )
    explained = learner.explain(image, torch.tensor([target], device=setup.device))
    maps = explained.heatmaps
    facts = {
        "predicted": predicted,
        "explained": target,
        "probability": explained.logits.softmax(1)[0, target].item(),
        "entropy": entropy(maps)[0].item(),
        "border_mass": border_mass(maps)[0].item(),
        "weights_sha256": fingerprint(learner.get_parameters()),
        "method": explained.method,
        "layers": list(explained.layers),
        "shared": share,
    }
    facts = {key: value for key, value in facts.items() if value == value}  # noqa: PLR0124 - NaN
    heatmap = maps[0].float().cpu().numpy() if share in ("maps", "overlays") else None
    return Answer(facts, heatmap, (channels, height, width))


def ask_record(folder: Path, question: Question) -> Answer:
    """Ask a merged model of a run, by its record.

    Args:
        folder: The run's.
        question: Its ``version`` is the round.

    Raises:
        FedgazeError: There is no record, or no such round.
    """
    try:
        values = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        rounds = len(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["rounds"])
    except FileNotFoundError:
        raise FedgazeError(f"{folder} holds no record of a run") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedgazeError(f"the record in {folder} cannot be read: {error}") from None
    version = rounds if question.version is None else question.version
    if not 0 <= version <= rounds:
        raise FedgazeError(f"--round {version}: {folder.name} has the rounds 0 to {rounds}")
    directory = values["directory"]
    setup = prepare(parse_task(values["task"], Path(directory) if directory else None))
    learner = setup.new_learner()
    learner.set_parameters(load_tensors(folder / "checkpoints" / f"round_{version}.safetensors"))
    return answer(setup, learner, question, "overlays")
