"""What classes are called, and how one is found by its name."""

import json
from pathlib import Path

import pytest

from fedgaze.errors import FedgazeError
from fedgaze.models import find_class, imagenet_classes, read_classes


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\n\nköter\n",
        "\ufeffcat\r\ndog\r\nköter",
        '["cat", "dog", "köter"]',
        '{"0": "cat", "2": "köter", "1": "dog"}',
        '{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "köter"]}',
    ],
)
def test_files_of_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert read_classes(tmp_path / "names") == ("cat", "dog", "köter")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no class names"),
        ("[1, 2]", "holds no class names"),
        ("[", "not valid JSON"),
        ('{"a": "cat"}', "does not map each index"),
        ('{"0": "cat", "2": "dog"}', "does not name every class from 0 to 1"),
    ],
)
def test_files_that_name_nothing(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(FedgazeError, match=why):
        read_classes(tmp_path / "names")
    with pytest.raises(FedgazeError, match="cannot be read"):
        read_classes(tmp_path / "nowhere")


def test_imagenets_names_are_in_the_order_of_its_index(real_data: Path) -> None:
    index = json.loads((real_data / "imagenet_class_index.json").read_text())
    names = imagenet_classes()
    assert len(names) == len(index) == 1000
    same = [
        index[str(place)][1].replace("_", " ").casefold() == name.casefold()
        for place, name in enumerate(names)
    ]
    # torchvision spells a few differently ("Ibizan hound", two cranes); a shifted list has none.
    assert sum(same) > 950


def test_a_class_is_found_by_name_or_index() -> None:
    classes = ("cat", "Dog", "3", "crane", "crane")
    assert find_class("cat", classes) == 0
    assert find_class("DOG", classes) == 1
    assert find_class("3", classes) == 2
    assert find_class("4", classes) == 4
    assert find_class("7", ()) == 7
    for word, why in [
        ("crane", "indices 3, 4"),
        ("cst", "did you mean 'cat'"),
        ("5", "the classes are 0 to 4"),
        ("-1", "no class is called"),
    ]:
        with pytest.raises(FedgazeError, match=why):
            find_class(word, classes)
    with pytest.raises(FedgazeError, match="the classes are 0 to 2"):
        find_class("3", (), 3)
    with pytest.raises(FedgazeError, match="--classes"):
        find_class("cat", ())
