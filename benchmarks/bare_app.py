"""A Flower app as its users write one: train, send the weights back, judge the merged model.

A module of its own, since the processes of Flower's simulation import it.
"""

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn
from torch.nn import functional as F

from common import DATA

CLIENTS, BATCH, RATE = 2, 64, 1e-3
Clock = Callable[[], float]


@lru_cache(maxsize=1)
def images(count: int) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """The clients' training images and the test images, as float32 and labels."""
    from fedgaze.data import load_dataset, partition

    data = load_dataset("mnist", DATA / "mnist", 42)
    parts = partition(data.train.labels[: CLIENTS * count], CLIENTS, "iid", seed=42)
    # fedgaze keeps a fifth for validation: the same number is trained on.
    own = [part[: count * 4 // 5] for part in parts]
    trained = [(data.train[part], data.train.labels[part]) for part in own]
    return trained, (data.test[torch.arange(len(data.test.labels))], data.test.labels)


def network() -> nn.Module:
    from fedgaze.models import DigitsNet

    torch.manual_seed(42)
    return DigitsNet()


def client(count: int) -> ClientApp:
    """Trains from the weights it gets."""
    app = ClientApp()

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        pixels, labels = images(count)[0][int(context.node_config["partition-id"])]
        torch.set_num_threads(1)
        model = network()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
        model.train()
        for chosen in torch.randperm(len(labels)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(pixels[chosen]), labels[chosen]).backward()
            optimiser.step()
        metrics = MetricRecord({"num-examples": len(labels)})
        arrays = ArrayRecord(model.state_dict())
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def serve(grid: Grid, count: int, rounds: int, clock: Clock = time.perf_counter) -> list[float]:
    """Carry out rounds, and return when each was over.

    Raises:
        RuntimeError: The clients learned nothing, so nothing was measured.
    """
    pixels, labels = images(count)[1]
    over: list[float] = []
    accuracy = 0.0

    def judge(number: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal accuracy
        model = network()
        model.load_state_dict(arrays.to_torch_state_dict())
        model.eval()
        with torch.no_grad():
            hits = sum(
                int((model(part).argmax(1) == known).sum())
                for part, known in zip(pixels.split(256), labels.split(256), strict=True)
            )
        accuracy = hits / len(labels)
        over.append(clock())
        return MetricRecord({"accuracy": accuracy, "round": number})

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    strategy.start(grid, ArrayRecord(network().state_dict()), num_rounds=rounds, evaluate_fn=judge)
    if accuracy < 0.5:
        raise RuntimeError(f"the bare app reached an accuracy of {accuracy} only")
    return over
