"""FedBN: normalisation layers stay at each client, and everything copes with that."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d
from typer.testing import CliRunner

from fedgaze import explain
from fedgaze.cli.app import app
from fedgaze.config import parse_task
from fedgaze.data import Images, hold_back, load_digits, partition
from fedgaze.errors import FedgazeError
from fedgaze.federate import prepare
from fedgaze.federate.client import Client
from fedgaze.federate.exchange import pack
from fedgaze.federate.kept import Kept
from fedgaze.federate.setup import seeded, threads
from fedgaze.models import DigitsNet
from fedgaze.store import Run, load_tensors
from fedgaze.train import evaluate, normalisation, train

CarryOut = Callable[..., Run]
Small = Callable[..., dict[str, Any]]
NORMS = {
    f"norm{i}.{name}"
    for i in (1, 2, 3)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


class ConvNextLayerNorm(nn.Module):
    """As another library has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


def test_normalisation_layers_are_found() -> None:
    resnet = models.resnet18()
    found = normalisation(resnet)
    assert found == {name for name in resnet.state_dict() if ".bn" in name or name[:2] == "bn"} | {
        name for name in resnet.state_dict() if "downsample.1" in name
    }
    vit = models.vit_b_16()
    assert normalisation(vit) == {
        name for name in vit.state_dict() if ".ln" in name or "ln." in name
    }
    several = nn.Sequential(
        nn.GroupNorm(1, 2),
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
        nn.RMSNorm(2),
        FrozenBatchNorm2d(2),
        ConvNextLayerNorm(),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        nn.Linear(2, 2),
    )
    assert {name.partition(".")[0] for name in normalisation(several)} == set("01234")
    assert normalisation(nn.Linear(2, 2)) == frozenset()


def parts(clients: int) -> list[tuple[Images, Images]]:
    """What each client of a small task trains on and validates with."""
    digits = load_digits(seed=42).keep(["1", "4", "7"]).train
    result = []
    for own in partition(digits.labels, clients, "dirichlet", 1.0, 42):
        images = digits.select(own, digits.labels[own])
        kept, held = hold_back(images.labels, 0.2, 42)
        result.append(tuple(images.select(part, images.labels[part]) for part in (kept, held)))
    return result  # type: ignore[return-value]


def test_a_run_is_algorithm_1(carry_out: CarryOut) -> None:
    """Li et al. 2021, Algorithm 1, written out: each client's layers go on where they were."""
    run = carry_out(strategy="fedbn", xai={"enabled": False})
    with seeded(42):
        first = DigitsNet(num_classes=3).state_dict()
    clients = [dict(first) for _ in range(3)]
    for number in (1, 2):
        trained: list[dict[str, Tensor]] = []
        for client, (images, _) in enumerate(parts(3)):
            model = DigitsNet(num_classes=3)
            model.load_state_dict(clients[client])
            # A bias before BatchNorm has no gradient but rounding, of which Adam makes steps: sums
            # have to be the same to the last bit.
            with threads(1), seeded(42, number, client):
                train(model, images, epochs=1, batch_size=32, learning_rate=0.003)
            trained.append(model.state_dict())
        counts = [len(images.labels) for images, _ in parts(3)]
        merged = {
            name: sum(
                (n / sum(counts) * each[name] for n, each in zip(counts, trained, strict=True)),
                start=torch.zeros(()),
            )
            for name in first
            if name not in NORMS
        }
        clients = [{**each, **merged} for each in trained]
        written = load_tensors(run.checkpoint(number))
        assert set(written) == set(merged)
        for name, value in merged.items():
            torch.testing.assert_close(written[name], value, rtol=1e-4, atol=1e-6)
        scores, sizes = [], []
        for state, (_, held) in zip(clients, parts(3), strict=True):
            model = DigitsNet(num_classes=3)
            model.load_state_dict(state)
            scores.append(evaluate(model, held).accuracy * len(held.labels))
            sizes.append(len(held.labels))
        said = run.summary["rounds"][number - 1]["global"]
        assert said["judged_by"] == "clients"
        assert said["accuracy"] == pytest.approx(sum(scores) / sum(sizes))
    assert run.summary["initial"] == {}


def test_nothing_of_a_normalisation_layer_travels(small: Small, tmp_path: Path) -> None:
    setup = prepare(parse_task(small(strategy="fedbn")))
    learner = setup.new_learner()
    assert not NORMS & set(learner.get_parameters())
    assert set(learner.get_kept()) == NORMS
    reply = Client(setup, 0, tmp_path).train(pack(learner.get_parameters()), 1)
    assert set(reply.array_records) == {"arrays"}
    assert not NORMS & set(reply.array_records["arrays"])
    home = tmp_path / "clients" / "client_0"
    assert set(load_tensors(home / "layers" / "round_1.safetensors")) == NORMS
    [whole] = home.glob("local_model/small/*.safetensors")
    assert set(load_tensors(whole)) == set(DigitsNet().state_dict())


def test_the_look_before_training_has_the_layers_from_before(carry_out: CarryOut) -> None:
    """In round 2 the received model is the merged weights with the client's layers of round 1."""
    run = carry_out(strategy="fedbn")
    state = load_tensors(run.checkpoint(1))
    layers = run.path / "clients" / "client_1" / "layers" / "round_1.safetensors"
    model = DigitsNet(num_classes=3)
    model.load_state_dict(state | load_tensors(layers))
    _, held = parts(3)[1]
    folder = run.path / "heatmaps" / "round_2" / "client_1"
    manifest = json.loads((folder / "manifest.json").read_text())
    received = [each for each in manifest["maps"] if each["weights"] == "received"]
    assert received
    for each in received:
        image = held[torch.tensor([each["sample"]])]
        chance = explain(model, image, "gradcam", each["class"], "conv3").logits.softmax(1)
        assert each["probability"] == pytest.approx(chance[0, each["class"]].item(), rel=1e-4)


def test_who_never_trained_does_not_judge(carry_out: CarryOut) -> None:
    run = carry_out(
        strategy="fedbn",
        num_rounds=1,
        selection={"by": "explicit", "clients": [1]},
        gate={"floor": 1},
        xai={"enabled": False},
    )
    model = DigitsNet(num_classes=3)
    layers = run.path / "clients" / "client_1" / "layers" / "round_1.safetensors"
    model.load_state_dict(load_tensors(run.checkpoint(1)) | load_tensors(layers))
    alone = evaluate(model, parts(3)[1][1])
    said = run.summary["rounds"][0]["global"]
    assert said["accuracy"] == pytest.approx(alone.accuracy)
    assert said["loss"] == pytest.approx(alone.loss, rel=1e-5)


def test_a_round_that_was_not_merged_does_not_count(
    carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 2 has one update, fewer than the floor: client 0 goes on from its layers of round 1."""
    honest, orders = Client.train, []

    def sometimes(self: Client, arrays: Any, number: int, order: Any) -> Any:
        if self.number == 0:
            orders.append(order.last)
        elif number == 2:
            raise RuntimeError("no")
        return honest(self, arrays, number, order)

    monkeypatch.setattr(Client, "train", sometimes)
    run = carry_out(strategy="fedbn", num_rounds=4, xai={"enabled": False})
    assert orders == [0, 1, 1, 3]
    kept = run.path / "clients" / "client_0" / "layers"
    assert {path.name for path in kept.iterdir()} == {
        "round_3.safetensors",
        "round_4.safetensors",
    }


def test_kept_states_by_round(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "layers")
    assert kept.load(5) == {}
    for number, last in ((1, 0), (2, 1), (4, 2), (5, 2)):
        kept.save(number, {"a": torch.tensor(float(number))}, last)
    names = {path.stem for path in (tmp_path / "layers").iterdir()}
    assert names == {"round_2", "round_5"}
    assert [kept.load(last).get("a") for last in (1, 2, 4, 5)] == [None, 2.0, 2.0, 5.0]
    (tmp_path / "layers" / "round_5.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(FedgazeError, match=r"round_5\.safetensors cannot be read"):
        kept.load(5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"xai": {"run_location": "both"}}, "run_location=both: with FedBN .*set xai.run_location"),
        ({"strategy": {"_target_": "FedBN", "fraction_evaluate": 0}}, "leaves nobody to judge"),
        ({"model": {"_target_": "models.Net"}}, "the model Net has none: use FedAvg"),
    ],
)
def test_what_fedbn_cannot_do_is_said(
    small: Small, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    (tmp_path / "models.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    values = small(**({"strategy": "fedbn", "xai": {"layer": "auto"}} | changes))
    with pytest.raises(FedgazeError, match=said):
        prepare(parse_task(values, tmp_path))


def test_table_and_report_say_who_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text(
        "{task_id: t, model: {_target_: fedgaze.models.DigitsNet}, num_clients: 2, num_rounds: 1,"
        " dataset: {classes: ['1', '7']}, strategy: fedbn, xai: {enabled: false}}"
    )
    result = CliRunner().invoke(app, ["run", "task.yaml"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "(judged by the clients)" in result.output
    page = Path("runs/t/report.html").read_text()
    assert "mean over the clients, each with its own normalisation layers" in page
    assert "tested on images that nobody trained on" not in page
