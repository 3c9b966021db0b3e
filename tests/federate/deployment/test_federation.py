"""The whole of it on real digits: four clients, one killed and back, the server killed and back."""

import time
from pathlib import Path

import pytest
from tests.federate.deployment.conftest import Farm, Network, wait_for

from fedgaze.store import load_tensors

NAMES = ["a", "b", "c", "d"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_federation_outlives_its_parts(farm: Farm, real_data: Path) -> None:
    """`make federation`: what issue 5 asks for."""
    mnist = str(real_data / "mnist")
    task = farm.task(
        task_id="mnist",
        model={"_target_": "fedgaze.models.DigitsNet"},
        dataset={"name": "mnist", "root": mnist, "partition": "iid"},
        learning_rate=2e-3,
        batch_size=64,
        num_epochs=2,
        num_clients=4,
        num_rounds=5,
        join_timeout=300,
        round_timeout=300,
        xai={"layer": "conv3", "samples_per_class": 1, "run_location": "both"},
    )
    farm.start("--task", task)
    for name in NAMES:
        farm.join(name, "--data", mnist)

    wait_for(
        lambda: "round 2: clients a (0), b (1), c (2), d (3)" in farm.log("mnist"), 300, "round 2"
    )
    time.sleep(3)  # until the client is at work on it
    farm.kill(farm.client("c"))
    wait_for(
        lambda: "round 3: clients a (0), b (1), d (3)" in farm.log("mnist"),
        200,
        "round 3 without client 2",
    )
    time.sleep(3)
    farm.kill(farm.server)
    assert farm.rounds("mnist") == 2
    farm.start()
    wait_for(lambda: farm.log("mnist").count("round 3: clients") == 2, 200, "round 3 again")
    farm.call("client", "start", "c")
    folder = farm.folder / "runs" / "mnist"
    wait_for(lambda: farm.record("mnist")["status"] == "complete", 400, "the end")

    summary = farm.record("mnist")
    rounds = summary["rounds"]
    assert summary["names"] == {"0": "a (0)", "1": "b (1)", "2": "c (2)", "3": "d (3)"}
    assert summary["status"] == "complete"
    assert [each["round"] for each in rounds] == [1, 2, 3, 4, 5]
    trained = [sorted(entry["client"] for entry in each["clients"]) for each in rounds]
    assert trained[0] == [0, 1, 2, 3]
    assert trained[1] == trained[2] == [0, 1, 3]
    assert trained[4] == [0, 1, 2, 3], "the client is back under its number"
    [lost] = [each for each in rounds[1]["failures"] if each["client"] == 2]
    assert "heartbeat" in lost["reason"] or "no answer" in lost["reason"]
    assert rounds[2]["failures"] == [
        {"client": 2, "reason": "was not connected when the round began"}
    ]
    assert rounds[4]["global"]["accuracy"] >= 0.97

    assert (folder / "report.html").stat().st_size > 100_000
    for number in range(6):
        load_tensors(folder / "checkpoints" / f"round_{number}.safetensors")
    for each in rounds:
        for client in [entry["client"] for entry in each["clients"]]:
            server = folder / "heatmaps" / f"round_{each['round']}" / "server" / f"client_{client}"
            assert len(list(server.glob("gradcam_class_?.jpg"))) == 10
            [home] = farm.client(NAMES[client]).glob("runs/mnist-*")
            own = home / "heatmaps" / f"round_{each['round']}" / f"client_{client}"
            assert len(list(own.glob("gradcam_class_?.jpg"))) == 10
    assert not list(folder.rglob("*.part")), "nothing half-written is left"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_machines_of_their_own(network: Network) -> None:
    """The same in network namespaces, on smaller data; the client's cable is pulled and put back.

    Within a round its answer is cut off in the middle; nobody waits for it beyond the timeout.
    """
    task = network.task(
        task_id="wide",
        model={"_target_": "fedgaze.models.DigitsNet"},
        dataset={"name": "digits", "partition": "iid"},
        learning_rate=3e-3,
        num_epochs=2,
        num_clients=4,
        num_rounds=8,
        join_timeout=200,
        round_timeout=60,
        xai={"layer": "conv3", "samples_per_class": 1, "run_location": "both"},
    )
    network.start("--task", task)
    names = ["north", "east", "south", "west"]
    for name in names:
        network.join(name)

    wait_for(lambda: "round 2: clients north (0), east" in network.log("wide"), 300, "round 2")
    network.cable("south", "down")
    wait_for(
        lambda: "round 3: clients north (0), east (1), west (3)" in network.log("wide"),
        200,
        "round 3 without it",
    )
    network.kill(network.server)
    done = network.rounds("wide")
    network.start()
    wait_for(lambda: network.rounds("wide") > done, 200, "the end of the next round")
    network.cable("south", "up")
    wait_for(lambda: network.record("wide")["status"] == "complete", 400, "the end")
    summary = network.record("wide")
    trained = [sorted(entry["client"] for entry in each["clients"]) for each in summary["rounds"]]
    assert [each["round"] for each in summary["rounds"]] == list(range(1, 9))
    assert trained[0] == [0, 1, 2, 3]
    assert all(each == [0, 1, 3] for each in trained[1 : done + 1])
    assert trained[-1] == [0, 1, 2, 3], "the client is back under its number"
    assert summary["rounds"][-1]["global"]["accuracy"] >= 0.9
