"""A federation carried out: what is merged, what is written, what leaves a client."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.federate.conftest import Silent

from fedgaze import explain
from fedgaze.config import parse_task
from fedgaze.data import hold_back, load_digits, partition
from fedgaze.errors import FedgazeError
from fedgaze.federate import prepare, start
from fedgaze.federate.client import Client
from fedgaze.federate.exchange import pack
from fedgaze.models import DigitsNet
from fedgaze.store import Run, load_tensors

CarryOut = Callable[..., Run]


def local_models(run: Run, number: int) -> list[dict[str, torch.Tensor]]:
    pattern = f"clients/client_*/local_model/small/DigitsNet_local_model_V{number}.safetensors"
    return [load_tensors(path) for path in sorted(run.path.glob(pattern))]


def test_fedavg_is_the_mean_weighted_by_samples(carry_out: CarryOut) -> None:
    run = carry_out()
    for record in run.summary["rounds"]:
        merged = load_tensors(run.checkpoint(record["round"]))
        samples = [entry["samples"] for entry in record["clients"]]
        models = local_models(run, record["round"])
        assert len(models) == len(samples) == 3
        for name, value in merged.items():
            parts = zip(samples, models, strict=True)
            mean = sum(n / sum(samples) * model[name].double() for n, model in parts)
            assert isinstance(mean, torch.Tensor)
            expected = mean if value.dtype.is_floating_point else mean.round()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        assert "norm1.running_mean" in merged  # BatchNorm's buffers are part of the exchange
        assert merged["norm1.num_batches_tracked"].dtype == torch.int64


def test_what_a_round_leaves_behind(carry_out: CarryOut) -> None:
    run = carry_out(xai={"samples_per_class": 2})
    assert run.summary["status"] == "complete"
    assert (run.path / "report.html").stat().st_size > 1000
    for number in (1, 2):
        for client in range(3):
            folder = run.path / "heatmaps" / f"round_{number}" / f"client_{client}"
            manifest = json.loads((folder / "manifest.json").read_text())
            assert set(manifest["weights_sha256"]) == {"trained", "received"}
            assert {each["class_name"] for each in manifest["maps"]} == {"1", "4", "7"}
            for each in manifest["maps"]:
                assert Image.open(folder / each["picture"]).size == (192, 192)
                assert np.load(folder / each["raw_map"]).shape == (12, 12)
                assert each["layers"] == ["conv3"]
                assert 0 <= each["probability"] <= 1
            names = {path.name for path in folder.iterdir()}
            assert {
                "gradcam_class_0.jpg",
                "gradcam_class_0_0_received.jpg",
                "gradcam_class_0_1.jpg",
                "gradcam_class_0_1_received.jpg",
            } <= names
            expected = {each[key] for each in manifest["maps"] for key in ("picture", "raw_map")}
            assert names == expected | {"manifest.json"}
    assert not list(run.path.rglob("*.tmp")) + list(run.path.rglob(".client_*"))


def test_samples_are_those_that_a_client_trained_on(carry_out: CarryOut) -> None:
    entries = carry_out(num_rounds=1).summary["rounds"][0]["clients"]
    digits = load_digits(seed=42).keep(["1", "4", "7"])
    labels = digits.train.labels
    assert sum(entry["samples"] for entry in entries) == pytest.approx(0.8 * len(labels), rel=0.02)
    for entry, own in zip(entries, partition(labels, 3, "dirichlet", 1.0, 42), strict=True):
        held = sum(max(round(0.2 * n), 1) for n in labels[own].bincount().tolist() if n > 1)
        assert entry["samples"] == len(own) - held


def test_maps_are_of_the_weights_that_they_name(carry_out: CarryOut) -> None:
    run = carry_out(num_rounds=1)
    digits = load_digits(seed=42).keep(["1", "4", "7"])
    own = partition(digits.train.labels, 3, "dirichlet", 1.0, 42)[1]
    _, held = hold_back(digits.train.labels[own], 0.2, 42)
    folder = run.path / "heatmaps" / "round_1" / "client_1"
    weights = {
        "received": load_tensors(run.checkpoint(0)),
        "trained": local_models(run, 1)[1],
    }
    for each in json.loads((folder / "manifest.json").read_text())["maps"]:
        model = DigitsNet(num_classes=3)
        model.load_state_dict(weights[each["weights"]])
        image = digits.train[own[held[each["sample"]]][None]]
        expected = explain(model, image, "gradcam", each["class"], "conv3")
        np.testing.assert_allclose(
            np.load(folder / each["raw_map"]), expected.raw[0], rtol=1e-4, atol=1e-6
        )
        probability = expected.logits.softmax(1)[0, each["class"]].item()
        assert each["probability"] == pytest.approx(probability, rel=1e-4)


def test_hashes_tell_who_had_which_weights(carry_out: CarryOut) -> None:
    run = carry_out()
    hashes = [
        json.loads(path.read_text())["weights_sha256"]
        for path in sorted(run.path.glob("heatmaps/round_1/client_*/manifest.json"))
    ]
    assert len({each["received"] for each in hashes}) == 1  # all were sent the same
    assert len({each["trained"] for each in hashes}) == 3
    later = json.loads(
        (run.path / "heatmaps" / "round_2" / "client_0" / "manifest.json").read_text()
    )
    assert later["weights_sha256"]["received"] != hashes[0]["received"]


def test_measures_in_the_summary_are_the_means_of_those_in_the_manifest(
    carry_out: CarryOut,
) -> None:
    run = carry_out(num_rounds=1)
    for entry in run.summary["rounds"][0]["clients"]:
        folder = run.path / entry["explanation"]["folder"]
        maps = json.loads((folder / "manifest.json").read_text())["maps"]
        trained = [each["measures"] for each in maps if each["weights"] == "trained"]
        for name in ("entropy", "border_mass", "object_mass", "object_drop", "region_drop"):
            values = [each[name] for each in trained if name in each]
            assert entry["explanation"][name] == pytest.approx(np.mean(values))
            assert entry["explanation"]["n"][name] == len(values)
            assert entry["explanation"]["quartiles"][name][1] == pytest.approx(np.median(values))
        assert 0 <= entry["explanation"]["agreement"] <= 1


@pytest.mark.parametrize(
    ("share", "has_profile", "endings"),
    [
        ("none", False, set()),
        ("profile", True, set()),
        ("maps", True, {"npy"}),
        ("overlays", True, {"npy", "jpg"}),
    ],
)
def test_only_what_may_leaves_a_client(
    small: Callable[..., dict[str, Any]],
    tmp_path: Path,
    share: str,
    has_profile: bool,
    endings: set[str],
) -> None:
    setup = prepare(parse_task(small(xai={"share": share})))
    reply = Client(setup, 0, tmp_path).train(pack(setup.new_learner().get_parameters()), 1)
    files = reply.config_records.get("shared", {})
    assert {str(name).rpartition(".")[2] for name in files} == endings
    assert ("profile" in reply.metric_records) == has_profile
    assert sorted(reply.array_records) == ["arrays"]
    assert list((tmp_path / "heatmaps" / "round_1" / "client_0").glob("*.jpg"))  # at home


def test_heatmaps_of_another_run_are_not_replaced(carry_out: CarryOut, tmp_path: Path) -> None:
    maps = str(tmp_path / "maps")
    carry_out(num_rounds=1, xai={"save_dir": maps})
    before = (tmp_path / "maps" / "round_1" / "client_0" / "manifest.json").read_bytes()
    with pytest.raises(FedgazeError, match="holds heatmaps of another run"):
        carry_out(name="b", num_rounds=1, random_seed=9, xai={"save_dir": maps})
    assert (tmp_path / "maps/round_1/client_0/manifest.json").read_bytes() == before
    assert not (tmp_path / "b").exists()


def test_each_round_and_each_client_draws_anew_and_a_repetition_does_not(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    setup = prepare(parse_task(small(xai={"enabled": False})))
    weights = pack(setup.new_learner().get_parameters())

    def trained(client: int, number: int) -> bytes:
        reply = Client(setup, client, tmp_path).train(weights, number)
        return reply.array_records["arrays"]["fc.weight"].numpy().tobytes()

    assert trained(0, 1) == trained(0, 1)
    assert len({trained(0, 1), trained(0, 2), trained(1, 1)}) == 3


@pytest.mark.parametrize("where", ["client", "server", "both"])
def test_where_explanations_run(carry_out: CarryOut, where: str) -> None:
    run = carry_out(num_rounds=1, xai={"run_location": where})
    entry = run.summary["rounds"][0]["clients"][0]
    assert ("explanation" in entry) == (where != "server")
    assert ("server_explanation" in entry) == (where != "client")
    folder = run.path / "heatmaps" / "round_1"
    assert (folder / "client_0").exists() == (where != "server")
    assert (folder / "server" / "client_0").exists() == (where != "client")


@pytest.mark.parametrize(
    ("method", "options", "layers"),
    [("occlusion", {"window": 6, "stride": 6}, []), ("scorecam", {}, ["conv3"])],
)
def test_any_method_explains_updates(
    carry_out: CarryOut, method: str, options: dict[str, Any], layers: list[str]
) -> None:
    run = carry_out(num_rounds=1, num_clients=2, xai={"method": method, "options": options})
    manifest = json.loads((run.path / "heatmaps/round_1/client_0/manifest.json").read_text())
    assert all(each["layers"] == layers for each in manifest["maps"])
    raw = np.load(run.path / "heatmaps/round_1/client_0" / manifest["maps"][0]["raw_map"])
    assert raw.shape == ((24, 24) if method == "occlusion" else (12, 12))
    if method == "occlusion":  # the options arrive: windows of 6 × 6 that do not overlap
        np.testing.assert_allclose(raw, np.kron(raw[::6, ::6], np.ones((6, 6))), atol=1e-6)
    measures = run.summary["rounds"][0]["clients"][0]["explanation"]
    assert 0 <= measures["entropy"] <= 1


def test_without_explanations_nothing_is_explained(carry_out: CarryOut) -> None:
    run = carry_out(num_rounds=1, xai={"enabled": False})
    assert "explanation" not in run.summary["rounds"][0]["clients"][0]
    assert not (run.path / "heatmaps").exists()


def test_a_failing_explanation_ends_no_training(
    carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of heat")

    monkeypatch.setattr("fedgaze.federate.client.look", broken)
    run = carry_out(xai={"run_location": "both"})
    last = run.summary["rounds"][-1]
    for entry in last["clients"]:
        assert entry["explanation"] == {"failed": "RuntimeError: out of heat"}
        assert 0 <= entry["server_explanation"]["entropy"] <= 1
    assert last["global"]["accuracy"] > 0.3


def test_a_failing_client_concerns_itself_only(
    carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Client.train

    def sometimes(self: Client, *arguments: Any) -> Any:
        if self.number == 1:
            raise RuntimeError("disk is full")
        return honest(self, *arguments)

    monkeypatch.setattr(Client, "train", sometimes)
    run = carry_out()
    for record in run.summary["rounds"]:
        assert [entry["client"] for entry in record["clients"]] == [0, 2]
        assert record["failures"] == [{"client": 1, "reason": "RuntimeError: disk is full"}]


def test_a_round_without_any_update_stops_the_run(
    carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Client, "train", never)
    with pytest.raises(FedgazeError, match="round 1 has no update to merge: client 0: RuntimeE"):
        carry_out()


def test_too_few_updates_are_not_merged(
    carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Client.train

    def only_the_first(self: Client, *arguments: Any) -> Any:
        if self.number:
            raise RuntimeError("no")
        return honest(self, *arguments)

    monkeypatch.setattr(Client, "train", only_the_first)
    run = carry_out(num_rounds=1)
    assert run.summary["rounds"][0]["not_merged"] == "1 updates are fewer than gate.floor=2"
    before, after = (load_tensors(run.checkpoint(number)) for number in (0, 1))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_planted_client_carries_the_mark_and_the_server_sees_it(carry_out: CarryOut) -> None:
    run = carry_out(
        num_rounds=3,
        num_epochs=5,
        dataset={"plant": {"clients": [1]}},
        xai={"run_location": "server", "samples_per_class": 5},
    )
    looks = [each["server_explanation"] for each in run.summary["rounds"][-1]["clients"]]
    drops = [each["mark_drop"] for each in looks]
    assert max(drops) == drops[1]
    assert drops[1] > 3 * max(drops[0], drops[2])


def test_clients_of_a_round_are_chosen_by_seed(carry_out: CarryOut) -> None:
    def chosen(seed: int, name: str) -> list[list[int]]:
        run = carry_out(
            name=name, num_rounds=4, clients_per_round=2, random_seed=seed, xai={"enabled": False}
        )
        return [[e["client"] for e in record["clients"]] for record in run.summary["rounds"]]

    first = chosen(1, "a")
    assert first == chosen(1, "b")
    assert all(len(clients) == 2 for clients in first)
    assert len({tuple(clients) for clients in first + chosen(2, "c")}) > 1


def test_the_observer_is_told_everything(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    watch = Silent()
    start(parse_task(small(num_rounds=1)), tmp_path / "r", watch)
    assert watch.told[0] == ("run", 1, 0)
    assert watch.told[-1] == ("done", 1)
    assert ("round", 1, [0, 1, 2]) in watch.told
    assert {("client", number, "train") for number in range(3)} < {
        item for item in watch.told if item[0] == "client"
    }


def test_federated_evaluation_happens_when_asked_for(carry_out: CarryOut) -> None:
    run = carry_out(num_rounds=1, server={"strategy": {"fraction_evaluate": 1.0}})
    record = run.summary["rounds"][0]
    assert 0 <= record["evaluation"]["accuracy"] <= 1
    assert "evaluation" not in carry_out(name="b", num_rounds=1).summary["rounds"][0]


def test_a_probe_folder_of_the_servers_own(carry_out: CarryOut, tmp_path: Path) -> None:
    for name in ("1", "7"):
        (tmp_path / "probe" / name).mkdir(parents=True)
        Image.new("RGB", (50, 50), "white").save(tmp_path / "probe" / name / "x.png")
    probe = str(tmp_path / "probe")
    run = carry_out(num_rounds=1, xai={"run_location": "server", "probe": probe})
    folder = run.path / "heatmaps" / "round_1" / "server" / "client_0"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [each["class_name"] for each in manifest["maps"]] == ["1", "7"]
    (tmp_path / "probe" / "nine").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "probe" / "nine" / "x.png")
    with pytest.raises(FedgazeError, match="a class 'nine' that digits has not"):
        carry_out(name="b", xai={"run_location": "server", "probe": probe})


def test_a_tasks_own_metrics_stand_in_the_record(carry_out: CarryOut, tmp_path: Path) -> None:
    """`test_torch` counts the images that it saw: the record has the number for each client."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "models.py").write_text(
        "from fedgaze.models import DigitsNet as Net\n"
        "def test_torch(model, loader, cfg):\n"
        "    return 0.5, 0.75, {'seen': sum(len(labels) for _, labels in loader)}\n"
    )
    run = carry_out(own, model={"_target_": "models.Net"}, num_rounds=1)
    record = run.summary["rounds"][0]
    assert record["global"]["seen"] == len(load_digits(None, 42).keep(["1", "4", "7"]).test.labels)
    for entry in record["clients"]:
        assert entry["validation"]["accuracy"] == 0.75
        assert entry["validation"]["seen"] == pytest.approx(entry["samples"] / 4, abs=2)


@pytest.mark.parametrize(("share", "pictures"), [("maps", False), ("overlays", True)])
def test_the_report_shows_only_pictures_that_were_shared(
    carry_out: CarryOut, share: str, pictures: bool
) -> None:
    run = carry_out(num_rounds=1, xai={"share": share, "run_location": "client"})
    page = (run.path / "report.html").read_text()
    sheets = re.findall(r"data:image/webp;base64,([\w+/=]*)", page)
    assert (sum(map(len, sheets)) > 1000) == pictures, "an empty sheet has no pictures on it"
    assert ("kept at the client" in page) != pictures
