"""The page of methods is complete, and the script that measures it would notice a wrong method."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgaze.xai import list_methods

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def agreement() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("agreement")


@pytest.fixture
def resnet(agreement: Any) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield agreement.random_cases()[0]
    torch.set_num_threads(threads)


def names() -> list[str]:
    return [each.name for each in list_methods() if each.compute.__module__.startswith("fedgaze")]


def test_every_method_has_an_oracle_and_an_equation(agreement: Any) -> None:
    assert agreement.missing() == []
    assert set(agreement.ORACLES) == set(agreement.EQUATIONS) == set(names())


@pytest.mark.parametrize("name", names())
def test_every_method_has_a_row(name: str) -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    block = page.partition("<!-- measured: begin -->")[2].partition("<!-- measured: end -->")[0]
    (row, *_) = [line for line in block.splitlines() if line.startswith(f"| `{name}` |")]
    cells = [each.strip() for each in row.strip("|").split("|")]
    assert len(cells) == 6
    assert all(cells[:4])
    told = [float(each) for each in cells[4:] if each]
    assert told
    assert max(told) <= (0.03 if name == "random" else 1e-4)


@pytest.mark.parametrize("name", ["gradcam", "layercam", "cam"])
def test_maps_are_measured(agreement: Any, resnet: Any, name: str) -> None:
    for found in agreement.measure(name, [resnet]):
        assert found.deviations["ResNet-18"] < 1e-5
        assert found.fits


def test_another_method_would_be_noticed(agreement: Any, resnet: Any) -> None:
    (oracle, *_) = agreement.ORACLES["hirescam"]
    ours = agreement.ours(resnet, "gradcam", oracle)
    # Behind the last stage comes a mean: there the two are the same.
    assert agreement.deviation(ours, oracle.maps(resnet), oracle) < 1e-5
    (oracle, *_) = agreement.ORACLES["layercam"]
    assert agreement.deviation(ours, oracle.maps(resnet), oracle) > 0.1


def test_deviation_by_hand(agreement: Any) -> None:
    oracle = agreement.Oracle("", lambda _: None, ())
    ours, theirs = np.array([[1.0, 2.0], [0.0, 4.0]]), np.array([[1.0, 4.0], [0.0, 4.0]])
    assert agreement.deviation(ours, theirs, oracle) == 0.5
    any_sign = agreement.Oracle("", lambda _: None, (), any_sign=True)
    assert agreement.deviation(-theirs, theirs, any_sign) == 0
    assert agreement.deviation(-theirs, theirs, oracle) == 2
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement.deviation(ours, theirs[:1], oracle)


def test_a_map_that_is_not_a_number_does_not_fit(agreement: Any) -> None:
    oracle = agreement.Oracle("", lambda _: None, ())
    value = agreement.deviation(np.array([[np.nan, 1.0]]), np.array([[1.0, 1.0]]), oracle)
    assert not agreement.Found("x", oracle, {"case": value}).fits


def test_only_what_is_between_the_marks_is_replaced(agreement: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{agreement.BEGIN}\nold\n{agreement.END}\nafter\n", encoding="utf-8")
    agreement.write(page, "new")
    assert page.read_text(encoding="utf-8") == (
        f"before\n{agreement.BEGIN}\n\nnew\n\n{agreement.END}\nafter\n"
    )
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has no marks"):
        agreement.write(page, "new")
    assert page.read_text(encoding="utf-8") == "no marks"
    assert list(tmp_path.iterdir()) == [page]
