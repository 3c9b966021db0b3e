"""What the outputs of a classifier are called."""

import json
from pathlib import Path
from typing import Any

from fedgaze.errors import FedgazeError, nearest

__all__ = ["find_class", "imagenet_classes", "read_classes"]


def imagenet_classes() -> tuple[str, ...]:
    """Return the 1,000 names of ImageNet in the order of a model's outputs."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names from a file.

    The file is a text with one name a line, a JSON list, or a JSON object from index to name as it
    goes round for ImageNet: ``{"0": ["n01440764", "tench"], …}`` or ``{"0": "tench", …}``.

    Raises:
        FedgazeError: There is no such file, or it is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FedgazeError(f"the class names {path} cannot be read: {error}") from error
    if text.lstrip()[:1] not in ("[", "{"):
        names: list[Any] = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            held = json.loads(text)
        except json.JSONDecodeError as error:
            raise FedgazeError(f"{path} is not valid JSON: {error}") from error
        names = held if isinstance(held, list) else _by_index(held, path)
    if not names or not all(isinstance(name, str) for name in names):
        raise FedgazeError(
            f"{path} holds no class names: it should have one a line, or be a JSON list of names "
            "or an object from index to name"
        )
    return tuple(names)


def find_class(word: str, classes: tuple[str, ...], outputs: int | None = None) -> int:
    """Find a class by its name or its index.

    A name that fits exactly comes first (a class may well be called ``3``), then an index, then a
    name in other letters' case.

    Args:
        word: A name or an index.
        classes: The names by index; may be empty.
        outputs: How many classes there are where there are no names; None if it is not known.

    Raises:
        FedgazeError: No class, or more than one, is called so, or the index is out of range.
    """
    exact = [index for index, name in enumerate(classes) if name == word]
    folded = [index for index, name in enumerate(classes) if name.casefold() == word.casefold()]
    count = len(classes) or outputs
    for found in (exact, [] if word.isdecimal() else folded):
        if len(found) > 1:
            raise FedgazeError(
                f"more than one class is called '{word}': give one of the indices "
                f"{', '.join(map(str, found))}"
            )
        if found:
            return found[0]
    if word.isdecimal():
        if count is not None and int(word) >= count:
            raise FedgazeError(f"class {word} does not exist: the classes are 0 to {count - 1}")
        return int(word)
    if not classes:
        raise FedgazeError(
            f"the model's classes have no names here, so '{word}' must be an index; give their "
            "names with --classes"
        )
    raise FedgazeError(f"no class is called '{word}'{nearest(word, classes)}")


def _by_index(held: dict[str, Any], path: Path) -> list[Any]:
    try:
        by_index = {int(key): value for key, value in held.items()}
    except ValueError as error:
        raise FedgazeError(f"{path} does not map each index to a name: {error}") from error
    if sorted(by_index) != list(range(len(by_index))):
        raise FedgazeError(f"{path} does not name every class from 0 to {len(by_index) - 1}")
    # The common ImageNet index gives [WordNet id, name].
    ordered = [by_index[index] for index in range(len(by_index))]
    return [value[-1] if isinstance(value, list) and value else value for value in ordered]
