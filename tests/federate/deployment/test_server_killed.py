"""The server killed at random moments: it comes back and goes on after the last whole round."""

import random
import time

import psutil
import pytest
from tests.federate.deployment.conftest import Farm, wait_for

from fedgaze.store import load_tensors

ROUNDS = 35


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_random_moments(farm: Farm) -> None:
    """A seed draws when, and whom: all of the server, its SuperLink, or the run's own process."""
    draw = random.Random(20)
    task = farm.task(
        task_id="killed",
        model={"_target_": "fedgaze.models.DigitsNet"},
        dataset={"name": "digits", "partition": "iid", "classes": ["1", "4"]},
        strategy={"_target_": "FedAdam", "eta": 0.01},
        num_clients=2,
        num_rounds=ROUNDS,
        round_timeout=60,
        join_timeout=120,
        xai={"run_location": "server", "samples_per_class": 1, "layer": "conv3"},
    )
    farm.start("--task", task)
    farm.join("a")
    farm.join("b")
    path = farm.folder / "runs" / "killed" / "summary.json"
    whole: list[dict[str, object]] = []
    victims = ["all"] * 4 + ["superlink"] * 3 + ["flwr-serverapp"] * 3
    draw.shuffle(victims)
    for number, victim in enumerate(victims):
        if number % 3:  # within a round; else at whatever it does, which mostly is to begin
            begun = farm.log("killed").count(": clients ")
            wait_for(
                lambda begun=begun: farm.log("killed").count(": clients ") > begun, 150, "a round"
            )
        time.sleep(draw.uniform(0, 4))
        assert farm.rounds("killed") < ROUNDS, "there is nothing left to disturb"
        if victim == "all":
            farm.kill(farm.server)
        else:
            owner = farm.owner(farm.server)
            assert owner is not None
            for each in owner.children(recursive=True):
                try:
                    if any(victim in word for word in each.cmdline()):
                        each.kill()
                except psutil.NoSuchProcess:
                    continue
        record = farm.record("killed")  # readable at any moment
        assert record["rounds"][: len(whole)] == whole, "a finished round was lost or changed"
        whole = record["rounds"]
        for each in range(1, len(whole) + 1):
            load_tensors(path.parent / "checkpoints" / f"round_{each}.safetensors")
        if victim == "all":
            farm.start()
    wait_for(lambda: farm.record("killed")["status"] == "complete", 300, "the end")
    assert "not finished" not in (path.parent / "report.html").read_text()
    record = farm.record("killed")
    assert record["rounds"][: len(whole)] == whole
    assert [each["round"] for each in record["rounds"]] == list(range(1, ROUNDS + 1))
    assert all(len(each["clients"]) == 2 for each in record["rounds"][-1:])
    assert record["rounds"][-1]["global"]["accuracy"] > 0.9
    left = [each.name for each in path.parent.rglob(".*") if each.name != ".lock"]
    assert left == [], "something half-written is left"
