"""What the record says of who holds which images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgaze.config import parse_task
from fedgaze.data import load_digits
from fedgaze.federate import prepare
from fedgaze.federate.client import Client
from fedgaze.federate.division import describe_split
from fedgaze.federate.setup import Setup
from fedgaze.store import Run

SCHEMES: list[dict[str, Any]] = [
    {"partition": "iid"},
    {"partition": "dirichlet", "alpha": 0.3},
    {"partition": "shards", "shards_per_client": 1},
    {"partition": "quantity", "alpha": 0.5},
]


@pytest.mark.parametrize("dataset", SCHEMES, ids=lambda each: str(each["partition"]))
def test_counts_are_those_of_the_clients_themselves(
    small: Callable[..., dict[str, Any]], tmp_path: Path, dataset: dict[str, Any]
) -> None:
    setup = prepare(parse_task(small(dataset=dataset)))
    split = describe_split(setup)
    assert split is not None
    assert [each["client"] for each in split["clients"]] == [0, 1, 2]
    for each in split["clients"]:
        client = Client(setup, each["client"], tmp_path)
        assert each["training"] == len(client.training.labels)
        assert each["validation"] == len(client.validation.labels)
        both = torch.cat([client.training.labels, client.validation.labels])
        assert each["classes"] == [(both == label).sum().item() for label in range(3)]
        assert "groups" not in each
    every = load_digits(seed=42).keep(["1", "4", "7"]).train.labels
    whole = torch.tensor([each["classes"] for each in split["clients"]]).sum(0)
    assert whole.tolist() == [(every == label).sum().item() for label in range(3)]


def test_the_record_has_it_from_the_start_and_keeps_it(
    carry_out: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    honest = Client.train

    def watched(self: Client, *arguments: Any) -> Any:
        started.append(json.loads((self.home / "summary.json").read_text()))
        return honest(self, *arguments)

    monkeypatch.setattr(Client, "train", watched)
    run = carry_out(num_rounds=1, dataset={"partition": "shards"}, xai={"enabled": False})
    split = run.summary["split"]
    assert started[0]["rounds"] == []
    assert started[0]["split"] == split
    samples = [each["samples"] for each in run.summary["rounds"][0]["clients"]]
    assert [each["training"] for each in split["clients"]] == samples
    assert "What each client holds" in (run.path / "report.html").read_text(encoding="utf-8")


def test_groups_of_a_natural_split_are_named(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "data_preparation.py").write_text(
        "from dataclasses import replace\n"
        "from fedgaze.data import load_digits\n"
        "def load(root, seed):\n"
        "    digits = load_digits(root, seed)\n"
        "    groups = [f'w{i % 5}' for i in range(len(digits.train.labels))]\n"
        "    return replace(digits, groups=groups)\n"
    )
    values = {"name": "data_preparation.load", "partition": "natural", "classes": None}
    split = describe_split(prepare(parse_task(small(dataset=values), tmp_path)))
    assert split is not None
    groups = [each["groups"] for each in split["clients"]]
    assert sorted(name for own in groups for name in own) == ["w0", "w1", "w2", "w3", "w4"]
    assert sorted(map(len, groups)) == [1, 2, 2]
    for each in split["clients"]:
        assert sum(each["classes"]) == each["training"] + each["validation"]
    values["partition"] = "iid"
    split = describe_split(prepare(parse_task(small(dataset=values), tmp_path)))
    assert split is not None
    assert all("groups" not in each for each in split["clients"])


def test_what_clients_bring_themselves_is_not_told(small: Callable[..., dict[str, Any]]) -> None:
    task = parse_task(small(dataset={"partition": "own"}))
    assert describe_split(Setup(task, load_digits(), torch.device("cpu"))) is None
