"""A model's arrays as one: Flower makes a request for each array, at each of five stations."""

from collections.abc import Iterable
from contextlib import suppress

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedgaze.errors import FedgazeError
from fedgaze.federate.ordered import ForwardingGrid

__all__ = ["ParcelGrid", "answer_parcels", "opened", "parcelled"]

KEY = "fedgaze.safetensors"
Made = dict[int, ArrayRecord]


def parcelled(content: RecordDict, made: Made | None = None) -> RecordDict:
    """A message's content with each record of several arrays as a record of one.

    That one holds the arrays as a safetensors file; what such a file cannot hold stays as it is.
    Names are numbered: the file keeps no order, and norms, noise and sums hang on it.

    Args:
        content: Is not changed.
        made: Parcels by the ``id`` of what they hold, to make those only once that several
            messages share.
    """
    made = {} if made is None else made
    return RecordDict(
        {
            name: _parcel(each, made) if isinstance(each, ArrayRecord) else each
            for name, each in content.items()
        }
    )


def _parcel(record: ArrayRecord, made: Made) -> ArrayRecord:
    if len(record) < 2:
        return record
    if id(record) not in made:
        try:
            # Of an array in Fortran's order, safetensors would write the bytes as they lie.
            file = save(
                {
                    f"{i:06d} {name}": np.asarray(array.numpy(), order="C")
                    for i, (name, array) in enumerate(record.items())
                }
            )
        except SafetensorError:
            return record
        made[id(record)] = ArrayRecord({KEY: Array(np.frombuffer(file, dtype=np.uint8))})
    return made[id(record)]


def opened(content: RecordDict) -> RecordDict:
    """The content of which :func:`parcelled` made this one.

    Raises:
        FedgazeError: Somebody sent a parcel that cannot be opened.
    """
    return RecordDict(
        {
            name: _open(each) if isinstance(each, ArrayRecord) and list(each) == [KEY] else each
            for name, each in content.items()
        }
    )


def _open(record: ArrayRecord) -> ArrayRecord:
    try:
        found = load(record[KEY].numpy().tobytes())
    except (SafetensorError, ValueError, KeyError, OSError, EOFError, TypeError) as error:
        raise FedgazeError(f"the arrays cannot be read: {error}") from None
    return ArrayRecord({name.partition(" ")[2]: Array(found[name]) for name in sorted(found)})


def answer_parcels(message: Message, context: Context, handle: ClientAppCallable) -> Message:
    """A mod for a ClientApp that gets, and gives, parcels."""
    message.content = opened(message.content)
    reply = handle(message, context)
    if reply.has_content():
        reply.content = parcelled(reply.content)
    return reply


class ParcelGrid(ForwardingGrid):
    """A grid on whose way arrays are parcels; on both sides of it they are not."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; afterwards they hold what they held before."""
        messages = list(messages)
        contents = [message.content for message in messages]
        made: Made = {}
        try:
            for message, content in zip(messages, contents, strict=True):
                message.content = parcelled(content, made)
            return list(self._grid.push_messages(messages))
        finally:
            for message, content in zip(messages, contents, strict=True):
                message.content = content

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers; one that cannot be opened is left as it came, and fits no model."""
        answers = list(self._grid.pull_messages(message_ids))
        for answer in answers:
            if answer.has_content():
                with suppress(FedgazeError):
                    answer.content = opened(answer.content)
        return answers
