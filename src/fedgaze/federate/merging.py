"""What of an update a strategy merges, and what is merged beside it."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedgaze.federate.exchange import pack, settle, weights_of
from fedgaze.federate.replies import Update
from fedgaze.federate.scaffold import Scaffold
from fedgaze.train import State

__all__ = ["Aggregate", "Merging"]

Aggregate = Callable[[list[Message]], ArrayRecord | None]
"""A strategy's own merge of the messages of a round."""

# These take steps along the mean update, or measure it as a gradient.
STEPPING = (
    flower.FedAdagrad,
    flower.FedAdam,
    flower.FedAvgM,
    flower.FedYogi,
    flower.QFedAvg,
    Scaffold,
)
BY_DISTANCE = (flower.Bulyan, flower.Krum, flower.MultiKrum)
ROBUST = (*BY_DISTANCE, flower.FedMedian, flower.FedTrimmedAvg)


class Merging:
    """How updates are merged by a strategy.

    Some of a model's state is no weight but counted along: BatchNorm's running mean and variance
    and its number of batches. Whole numbers are never the strategy's affair: at Krum, or where an
    update's norm counts, a client's number of batches would outweigh all of its weights. Where a
    strategy takes steps of its own (FedAdam and its like, FedAvgM, q-FedAvg), statistics are no
    part of that either. They become the mean over the clients, weighted by their samples, or the
    median with a strategy that is to withstand clients that lie.

    Krum and its like are given updates instead of weights, in float64. They do not mind the shift,
    and Flower's ``|x|² + |y|² - 2xy`` in float32 loses small distances between large weights.

    With differential privacy every update counts the same, and whole numbers stay as they are: no
    clipping and no noise would make sense of them.

    Args:
        kind: The strategy's class.
        like: A state of the model.
        statistics: Names of what is counted along.
        private: Whether the task asks for differential privacy.
    """

    def __init__(
        self,
        kind: type[FedAvg],
        like: State,
        statistics: Collection[str],
        *,
        private: bool = False,
    ) -> None:
        self._like = like
        self._private = private
        stepping = issubclass(kind, STEPPING)
        self._own = list(weights_of(like, statistics if stepping else ()))
        self._aside = [name for name in like if name not in set(self._own)]
        self._shifted = issubclass(kind, BY_DISTANCE)
        self._robust = issubclass(kind, ROBUST)

    def part(self, arrays: Mapping[str, Array]) -> ArrayRecord:
        """What the strategy works on."""
        return ArrayRecord({name: arrays[name] for name in self._own})

    def merge(
        self,
        aggregate: Aggregate,
        updates: Sequence[Update],
        received: State,
    ) -> ArrayRecord | None:
        """Merge updates.

        Args:
            aggregate: The strategy's own; it may consume the messages that it gets.
            updates: At least one.
            received: What the clients were sent.

        Returns:
            The merged state as :func:`fedgaze.federate.exchange.pack` makes it; None where the
            strategy merged nothing.
        """
        merged = aggregate([self._message(update, received) for update in updates])
        if merged is None:
            return None
        if self._shifted:
            merged = ArrayRecord(
                {name: self._back(array, received[name]) for name, array in merged.items()}
            )
        beside = received if self._private else self._beside(updates)
        together = {**merged, **pack({name: beside[name] for name in self._aside})}
        return settle(ArrayRecord({name: together[name] for name in self._like}), self._like)

    def _message(self, update: Update, received: State) -> Message:
        """A message with the strategy's part of an update, which the strategy may take apart."""
        arrays = self.part(update.message.content.array_records["arrays"])
        if self._shifted:
            state = update.state
            arrays = pack({name: state[name].double() - received[name] for name in arrays})
        content = RecordDict({**update.message.content, "arrays": arrays})
        metrics = MetricRecord(dict(content.metric_records["metrics"]))
        if self._private:
            metrics["num-examples"] = 1
        content["metrics"] = metrics
        return Message(content, update.message.metadata.src_node_id, "train")

    def _back(self, array: Array, received: Tensor) -> Array:
        value = torch.from_numpy(array.numpy())
        return Array((value + received.double().reshape(value.shape)).numpy())

    def _beside(self, updates: Sequence[Update]) -> State:
        samples = [update.entry["samples"] for update in updates]
        shares = torch.tensor(samples, dtype=torch.float64) / sum(samples)
        merged = {}
        for name in self._aside:
            values = torch.stack([update.state[name].double() for update in updates])
            mean: Tensor = torch.tensordot(shares, values, 1)
            merged[name] = values.median(0).values if self._robust else mean
        return merged
