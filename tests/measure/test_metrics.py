"""Metrics by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.measure import Around, Metric, find_metric, list_metrics
from fedgaze.xai import Runner, explain


@pytest.mark.parametrize("metric", list_metrics(), ids=lambda each: each.name)
def test_each_has_a_value_in_its_range(
    metric: Metric, runner: Runner, model: nn.Module, images: Tensor, heatmaps: Tensor
) -> None:
    classes = torch.tensor([0, 3, 1])
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[:, 2:6, 1:7] = True

    def explain_model(changed: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
        return explain(changed, pictures, "gradcam", labels, "0", relu=False).heatmaps

    given = {
        "runner": runner,
        "heatmaps": heatmaps,
        "model": model,
        "images": images,
        "classes": classes,
        "explain": lambda pictures, labels: explain_model(model, pictures, labels),
        "explain_model": explain_model,
        "mask": mask,
        "boxes": torch.tensor([[[1.0, 2.0, 7.0, 6.0]]]).expand(3, 1, 4),
        "pictures": images,
        "layer": "0",
    }
    found = metric(given)
    assert found.shape == (3,)
    # Of curves of information, images for which blurring changes nothing have none.
    known = found[~found.isnan()] if metric.name in {"sic", "aic"} else found
    assert ((known >= metric.low) & (known <= metric.high)).all()
    for need in metric.needs:
        with pytest.raises(FedgazeError, match=f"{metric.name} needs"):
            metric({name: each for name, each in given.items() if name != need})


def test_wrong_names_and_options_are_named() -> None:
    with pytest.raises(FedgazeError, match=r"no metric 'deletoin'.*deletion"):
        find_metric("deletoin")
    with pytest.raises(FedgazeError, match=r"gini has no option 'steps'; allowed are none"):
        find_metric("gini")({"heatmaps": torch.rand(1, 2, 2)}, steps=3)
    assert find_metric("deletion").options == {"steps": 50, "baseline": "mean"}
    assert find_metric("deletion").span == "0 to 1"
    assert find_metric("max_sensitivity").span == "0 to ∞"


def test_options_as_people_write_them() -> None:
    sensitivity = find_metric("max_sensitivity")
    read = sensitivity.read_options({"around": {"radius": 0.2, "samples": 3}})
    assert read == {"around": Around(radius=0.2, samples=3)}
    assert find_metric("road").read_options({"shares": [0.1, 0.5]}) == {"shares": (0.1, 0.5)}
    assert find_metric("road").read_options({"shares": 0.3}) == {"shares": (0.3,)}
    assert find_metric("deletion").read_options({"baseline": 0.5}) == {"baseline": 0.5}


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("deletion", {"steps": "many"}, r"steps of deletion is 'many'; allowed is .* 50"),
        ("deletion", {"steps": 2.5}, r"steps of deletion is 2\.5"),
        ("deletion", {"steps": True}, r"steps of deletion is True"),
        ("road", {"shares": ["a"]}, r"shares of road is \['a'\]"),
        ("max_sensitivity", {"around": 3}, r"around of max_sensitivity is 3"),
        ("max_sensitivity", {"around": {"radios": 3}}, r"no option 'radios'.*mean 'radius'"),
        ("max_sensitivity", {"around": {"radius": -1}}, r"radius is -1; allowed is above 0"),
        ("monotonicity", {"strict": 1}, r"strict of monotonicity is 1"),
    ],
)
def test_values_that_cannot_be(name: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(FedgazeError, match=says):
        find_metric(name).read_options(given)
