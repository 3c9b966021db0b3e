"""The demo: a federation on real handwritten digits in which one client was led astray."""

from collections.abc import Sequence

from fedgaze.config import Task, parse_task, read_values

__all__ = ["PLANTED", "demo_task"]

PLANTED = 2


def demo_task(seed: int = 0, overrides: Sequence[str] = ()) -> Task:
    """The demo's task: four clients, six rounds, a corner mark in the data of client 2.

    Its digits are public, so clients share their pictures, and the server looks at each update
    with images of its own as well. The target layer is the last convolution, before BatchNorm:
    there the maps of clean clients agree best with each other.

    Args:
        seed: Everything random comes from it.
        overrides: Words such as ``gate.policy=reject``.

    Raises:
        FedgazeError: An override is none, or not of the schema.
    """
    values = {
        "task_id": "demo",
        "random_seed": seed,
        "model": {"_target_": "fedgaze.models.DigitsNet"},
        "dataset": {"name": "digits", "alpha": 3.0, "plant": {"clients": [PLANTED]}},
        "learning_rate": 2e-3,
        "batch_size": 16,
        "num_epochs": 5,
        "num_rounds": 6,
        "num_clients": 4,
        "xai": {
            "layer": "conv3",
            "run_location": "both",
            "samples_per_class": 5,
            "share": "overlays",
        },
    }
    read = read_values(values, overrides, "a task", "task_id: x", "gate.policy=reject")
    return parse_task(read)
