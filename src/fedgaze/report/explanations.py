"""The page of `fedgaze explain`: each picture beside its overlays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fedgaze.data import read_image
from fedgaze.models import Classifier
from fedgaze.report.explained import How, shown_picture
from fedgaze.report.html import render
from fedgaze.report.pictures import data_uri, thumbnail, webp
from fedgaze.store import OutputFolder

__all__ = ["write_explanations"]

_SIDE = 288
BUDGET = 3_500_000
"""Characters that the page's pictures may take together."""


def write_explanations(
    folder: OutputFolder, classifier: Classifier, records: Sequence[Mapping[str, Any]], how: How
) -> Path:
    """Write ``explanations.report.html`` beside the overlays. Nothing is overwritten.

    Args:
        folder: Where the overlays lie.
        classifier: The model that was explained.
        records: What `explain_files` said of the pictures.
        how: How they were explained.

    Returns:
        The page's path.
    """
    sections: dict[str, dict[str, Any]] = {}
    size = 0
    left_out: set[str] = set()
    for record in records:
        file = record["file"]
        if "error" in record or file in left_out:
            continue
        if file not in sections:
            if size > BUDGET:
                left_out.add(file)
                continue
            original = _original(Path(file), classifier)
            predicted = record["predicted"]
            sections[file] = {
                "name": Path(file).name,
                "original": original,
                "predicted": predicted,
                "cells": [],
            }
            size += len(original)
        content = thumbnail(folder.folder / record["overlay"], _SIDE)
        cell = {"record": record, "picture": None if content is None else data_uri(content)}
        size += len(cell["picture"] or "")
        sections[file]["cells"].append(cell)
    signed = how.settings.get("relu") is False
    text = render(
        "explanations.html.j2",
        model=classifier.name,
        title=_title(sections, how),
        sections=list(sections.values()),
        failed=[record["error"] for record in records if "error" in record],
        left_out=len(left_out),
        signed=signed or how.colormap is not None,
    )
    return folder.write_together(
        "explanations.report", {".html": lambda file: file.write(text.encode())}
    )[".html"]


def _title(sections: Mapping[str, Any], how: How) -> str:
    pictures = f"{len(sections)} picture{'' if len(sections) == 1 else 's'}"
    return f"{pictures}, explained by {', '.join(how.methods)}"


def _original(file: Path, classifier: Classifier) -> str:
    """What the model sees of a picture, for people."""
    picture = read_image(file)
    preprocess = classifier.preprocess
    shown = shown_picture(preprocess.frame(picture), preprocess.view(picture)).convert("RGB")
    shown.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return data_uri(webp(shown, 80))
