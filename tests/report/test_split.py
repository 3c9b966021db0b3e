"""The grid of who holds what, and the table that says the same."""

import re
from collections.abc import Callable
from typing import Any

import pytest

HELD = {
    "clients": [
        {"client": 0, "training": 40, "validation": 10, "classes": [50, 0, 0]},
        {"client": 1, "training": 80, "validation": 20, "classes": [10, 40, 50]},
        {"client": 2, "training": 20, "validation": 5, "classes": [1, 12, 12]},
        {"client": 7, "training": 20, "validation": 5, "classes": [5, 10, 10]},
    ]
}


def with_split(run: Any, split: Any = HELD, **dataset: Any) -> Any:
    run.summary["split"] = split
    run.summary["task"]["dataset"] |= dataset
    return run


def steps(page: Any) -> list[list[int]]:
    """Strengths of the colours, row by row: all together, the clients, and the key below."""
    strengths = [
        int(about["class"][1:])
        for tag, about in page.tags
        if tag == "i" and re.fullmatch(r"s\d+", about.get("class") or "")
    ]
    key = strengths[-11:]
    assert key == list(range(11))
    cells = strengths[:-11]
    return [cells[i : i + 3] for i in range(0, len(cells), 3)]


def test_numbers_and_colours(make_run: Callable[..., Any]) -> None:
    page = with_split(make_run(drawn=False)).page()
    assert page.headings["split"] == "What each client holds"
    assert page.table("Images of each client") == [
        ["Client", "Training", "Validation", "cat", "dog", "emu"],
        ["Client 0", "40", "10", "50", "0", "0"],
        ["Client 1", "80", "20", "10", "40", "50"],
        ["Client 2", "20", "5", "1", "12", "12"],
        ["Client 7", "20", "5", "5", "10", "10"],
    ]
    # Of 200 images 66, 62, 72; the strongest colour is all of client 0's images being cats.
    assert steps(page) == [[4, 4, 4], [10, 0, 0], [1, 4, 5], [1, 5, 5], [2, 4, 4]]
    assert "100 % of a client’s images" in page.words
    titles = [about["title"] for tag, about in page.tags if tag == "i" and "title" in about]
    assert titles[7].replace("\N{NO-BREAK SPACE}", " ") == "dog: 40, 40.0 %"
    bars = [
        float(about["width"] or 0)
        for tag, about in page.tags
        if tag == "rect" and about.get("class") == "fill"
    ][:4]
    assert bars == [50, 100, 25, 25]


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({"partition": "iid", "alpha": None}, "dealt out evenly, in random order"),
        ({"partition": "dirichlet", "alpha": 0.3}, "Dirichlet distribution with alpha 0.3"),
        ({"partition": "shards", "shards_per_client": 2}, "each client was dealt 2."),
        ({"partition": "quantity", "alpha": 2.0}, "how many each client has was drawn"),
        ({"partition": "natural", "partition_by": "hospital"}, "whole groups by hospital."),
        ({"partition": "natural"}, "holds whole groups. A row"),
        ({"partition": "unheard of"}, "A row is a client"),
    ],
)
def test_how_images_were_dealt_out(
    make_run: Callable[..., Any], dataset: dict[str, Any], said: str
) -> None:
    page = with_split(make_run(drawn=False), **dataset).page()
    assert said in page.words
    assert "None" not in page.words


def test_groups_are_named(make_run: Callable[..., Any]) -> None:
    split = {"clients": [dict(each) for each in HELD["clients"]]}
    split["clients"][0]["groups"] = ["Oslo <west>"]
    split["clients"][1]["groups"] = [f"w{i}" for i in range(15)]
    page = with_split(make_run(drawn=False), split, partition="natural").page()
    column = [row[-1] for row in page.table("Images of each client")]
    many = "w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11 and 3 more"
    assert column == ["Groups", "Oslo <west>", many, "", ""]
    assert "15 groups" in page.words


@pytest.mark.parametrize(
    "split",
    [
        None,
        {},
        {"clients": []},
        {"clients": "?"},
        {"clients": [{"client": 0, "training": 3, "validation": 1, "classes": [1, 2]}]},
        {"clients": [{"client": 0, "classes": [0, 0, 0]}]},
        {"clients": [{"client": None, "classes": [1, 2, 3]}, 7]},
    ],
)
def test_without_a_split_nothing_is_said_of_it(make_run: Callable[..., Any], split: Any) -> None:
    page = with_split(make_run(drawn=False), split).page()
    assert "split" not in page.headings
    assert page.headings["learning"]


def test_holes_in_it_are_dashes(make_run: Callable[..., Any]) -> None:
    entry = {"client": 0, "training": None, "classes": [1, None, -3]}
    page = with_split(make_run(drawn=False), {"clients": [entry]}).page()
    assert page.table("Images of each client")[1] == ["Client 0", "–", "–", "1", "0", "0"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("clients", "classes"), [(4, 3), (100, 100), (30, 10), (3, 30)])
def test_the_grid_fits_whatever_its_size(
    make_run: Callable[..., Any],
    visit: Callable[..., Any],
    clients: int,
    classes: int,
    scheme: str,
) -> None:
    run = make_run(drawn=False)
    run.summary["classes"] = [f"a class of number {i}" for i in range(classes)]
    held = [
        {"client": c, "training": 80, "validation": 20, "classes": [c + 1] * classes}
        for c in range(clients)
    ]
    file = with_split(run, {"clients": held}).write()
    for width in (390, 1280):
        page = visit(file, viewport={"width": width, "height": 740}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        boxes = page.locator(".split .grid tbody tr").nth(clients).locator(".cells i")
        assert boxes.count() == classes
        first, last = boxes.first.bounding_box(), boxes.last.bounding_box()
        assert first["width"] >= 1
        assert first["width"] == pytest.approx(last["width"], abs=0.1)
        # Where all classes have a part, all cells have a colour.
        strong = boxes.first.evaluate("cell => getComputedStyle(cell).opacity")
        assert float(strong) == 1
        page.locator(".split summary").click()
        table = page.locator(".split .numbers")
        assert table.locator("tbody tr").nth(clients - 1).inner_text().startswith("Client ")
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_hostile_names_of_groups_and_classes_run_nothing(
    make_run: Callable[..., Any], visit: Callable[..., Any]
) -> None:
    evil = '"><img src=x onerror="document.body.dataset.evil=\'1\'">'
    run = make_run(drawn=False)
    run.summary["classes"] = [evil, "dog", "emu"]
    split = {"clients": [{**HELD["clients"][0], "groups": [evil]}]}  # type: ignore[dict-item]
    page = visit(with_split(run, split, partition="natural", partition_by=evil).write())
    page.locator(".split summary").click()
    assert page.locator(".split .numbers td").last.inner_text() == evil
    assert page.evaluate("document.body.dataset.evil") is None
    assert page.locator("img[src=x]").count() == 0
