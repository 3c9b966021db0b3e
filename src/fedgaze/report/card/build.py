"""Build the card: what a model is, how it came about, what it was seen to do, how to load it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from fedgaze.report.card.markdown import Markdown, render_markdown
from fedgaze.report.federated.build import FinalTable, final_table
from fedgaze.report.federated.gallery import VIEWS, View, shots_of
from fedgaze.report.federated.heatmaps import Shot
from fedgaze.report.federated.record import Record, mapping, number
from fedgaze.report.federated.verdict import judge
from fedgaze.report.federated.words import MEASURES, Measure, join, shown
from fedgaze.report.pictures import thumbnail

__all__ = ["Card", "Contents", "model_card"]

SIDE = 192
MOST_PICTURES, MOST_CLIENTS, MOST_ROUNDS, MOST_CLASSES = 6, 8, 50, 100
PICTURES = "heatmaps"
"""The folder of the pictures beside the card."""
_LOADERS = (
    (
        "model.safetensors",
        "With safetensors",
        Markdown("from safetensors.torch import load_file"),
        Markdown('load_file("model.safetensors")'),
    ),
    (
        "state_dict.pt",
        "From the state dict",
        "",
        Markdown('torch.load("state_dict.pt", weights_only=True)'),
    ),
)
"""A file, how its section begins, what it imports, and what reads it."""
_PLACES = {"client": "the clients", "server": "the server", "both": "the clients and the server"}


@dataclass(frozen=True)
class Contents:
    """What lies beside the card.

    Attributes:
        round: After which round of the run the weights are.
        architecture: What built the model, in short.
        library: Its library, as the Hugging Face Hub calls it.
        parameters: How many numbers are trained; None where nobody could count.
        sha256: The fingerprint of the weights.
        image_shape: Channels, height and width; None where the record does not say.
        files: What each file is, by name.
        script: The module among them whose ``build()`` makes the model; None without one.
        logits: Python that takes them from the model's output for ``images``.
        missing: What the model's code lacks to be built from this folder; None where nothing.
        onnx: The check of the ONNX file: ``opset``, ``images``, ``difference``; empty without one.
        left_out: Why a format is not there, by its name.
        versions: Of what this was exported with, by name.
    """

    round: int
    architecture: str
    library: str
    parameters: int | None
    sha256: str
    image_shape: tuple[int, int, int] | None
    files: Mapping[str, str]
    script: str | None = None
    logits: str = "model(images)"
    missing: str | None = None
    onnx: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """A card and what it shows.

    Attributes:
        text: Markdown, with YAML front matter.
        pictures: Files by their path beside the card.
    """

    text: str
    pictures: dict[str, bytes]


@dataclass(frozen=True)
class Strip:
    """The same few classes, one row a model.

    Attributes:
        view: Which images.
        classes: Names of the columns.
        rows: Who, and a picture's path a column, None where there is none.
    """

    view: View
    classes: list[str]
    rows: list[tuple[str, list[str | None]]]


def model_card(record: Record, contents: Contents, *, pictures: bool = True) -> Card:
    """Write the card of the merged model after a round.

    Shown are the server's heatmaps and, of clients, only what they shared. A card leaves the house:
    it names clients by their numbers.

    Args:
        record: The run; what came after the round is left out.
        contents: What lies beside the card.
        pictures: Whether heatmaps are shown at all.
    """
    planned = number(record.task.get("num_rounds"))
    unfinished = record.summary.get("status") != "complete"
    record = record.until(contents.round).nameless()
    found: dict[str, bytes] = {}
    strip = _strip(record, found) if pictures else None
    clients = final_table(record)
    looks = _looks(record, clients)
    every = [*([0] if record.merged(0) else []), *record.rounds]
    text = render_markdown(
        "card.md.j2",
        front=Markdown(_front_matter(record, contents)),
        record=record,
        contents=contents,
        planned=planned,
        unfinished=unfinished,
        classes=record.classes[:MOST_CLASSES],
        training=_training(record.task),
        rounds=_spread(every),
        every=every,
        extra=_extra(record),
        clients=clients,
        looks=looks,
        measures=[measure for measure, _ in looks[0][1]] if looks else [],
        verdict=judge(record),
        strip=strip,
        pictures=pictures,
        planted=[f"client {each}" for each in record.planted],
        remarks=clients is not None and any(row.remark for row in clients.rows),
        script=None if contents.script is None else Markdown(contents.script),
        logits=Markdown(contents.logits),
        loaders=_LOADERS,
        number=number,
        shown=shown,
        join=join,
    )
    return Card(re.sub(r"\n{3,}", "\n\n", text), found)


def _front_matter(record: Record, contents: Contents) -> str:
    """What the Hub reads: tags, and the result by task, data set and metric."""
    values = record.merged(contents.round)
    data = " ".join(str(mapping(record.task.get("dataset")).get("name")).split())
    metrics = [
        {"type": kind, "value": value, "name": f"{kind} of the merged model"}
        for kind in ("accuracy", "loss")
        if (value := number(values.get(kind))) is not None
    ]
    front = {
        "library_name": contents.library,
        "pipeline_tag": "image-classification",
        "tags": [
            "image-classification",
            "federated-learning",
            "explainable-ai",
            "fedgaze",
            "flower",
            *(["onnx"] if contents.onnx else []),
        ],
        "metrics": [each["type"] for each in metrics],
        "model-index": [
            {
                "name": " ".join(record.name.split()),
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": data, "type": data, "split": "held-out"},
                        "metrics": metrics,
                    }
                ],
            }
        ],
    }
    # One line a value: a text that went on in a line of its own could end the front matter.
    text: str = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text


def _training(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the model was trained: what, and its value."""
    data, plan = mapping(task.get("dataset")), mapping(mapping(task.get("server")).get("strategy"))
    strategy = str(plan.get("_target_", "")).rpartition(".")[2]
    options = ", ".join(f"{key}={value}" for key, value in plan.items() if key != "_target_")
    split = str(data.get("partition"))
    if split == "dirichlet":
        split = f"Dirichlet, alpha {data.get('alpha')}"
    own = mapping(task.get("xai"))
    clients = task.get("clients_per_round")
    return [
        ("Data", str(data.get("name"))),
        ("Split over the clients", split),
        ("Strategy", f"{strategy} ({options})" if options else strategy),
        (
            "Clients",
            f"{task.get('num_clients')}" + (f", {clients} a round" if clients is not None else ""),
        ),
        ("Local epochs a round", str(task.get("num_epochs"))),
        ("Learning rate, batch size", f"{task.get('learning_rate')}, {task.get('batch_size')}"),
        ("Random seed", str(task.get("random_seed"))),
        (
            "Explanations",
            f"{own.get('method')}, layer {own.get('layer')}, made by "
            f"{_PLACES.get(str(own.get('run_location')), '–')}"
            if own.get("enabled")
            else "none",
        ),
    ]


def _extra(record: Record) -> list[str]:
    """Names of the metrics that the task's own test adds to accuracy and loss."""
    known = ("accuracy", "loss", "explanation")
    names = (name for each in record.rounds for name in record.merged(each) if name not in known)
    return list(dict.fromkeys(names))


def _spread(rounds: list[int]) -> list[int]:
    """The rounds that the table shows: all, or so many evenly spread, the last among them."""
    if len(rounds) <= MOST_ROUNDS:
        return rounds
    step = (len(rounds) - 1) / (MOST_ROUNDS - 1)
    return [rounds[round(i * step)] for i in range(MOST_ROUNDS)]


def _looks(record: Record, table: FinalTable | None) -> list[tuple[str, list[tuple[Measure, str]]]]:
    """What the models of the last round showed: who, and a text a measure."""
    if table is None or not table.measures:
        return []
    rows: list[tuple[str, Mapping[str, Any]]] = [
        (f"Client {each}", record.explanation(table.round, each, table.source))
        for each in record.clients
    ]
    if table.source == "server":
        merged = mapping(record.merged(table.round).get("explanation"))
        rows.insert(0, ("Merged model", merged))
    return [
        (
            who,
            [
                (each, shown(number(values.get(each.name)), each.unit, bare=True))
                for each in MEASURES.values()
                if each in table.measures
            ],
        )
        for who, values in rows
        if any(number(values.get(each.name)) is not None for each in table.measures)
    ]


def _strip(record: Record, found: dict[str, bytes]) -> Strip | None:
    """The pictures of the last round; None where there are none that may leave."""
    if not record.rounds:
        return None
    last = record.rounds[-1]
    suspects = judge(record).suspects
    ordered = [*suspects, *(each for each in record.clients if each not in suspects)]
    clients = [each for each in record.clients if each in ordered[:MOST_CLIENTS]]
    for view in VIEWS[:3]:
        shots: dict[str, list[Shot]] = {}
        if view.source == "server":
            shots["Merged model"] = shots_of(record, record.merged(last).get("explanation"))
        for client in clients:
            explanation = record.explanation(last, client, view.source)
            # In process, a client's own folder is the one that the record names.
            if explanation.get("shared") == "overlays":
                shots[f"Client {client}"] = shots_of(record, explanation)
        firsts = {
            who: {each.label: each for each in some if each.first and each.weights == view.weights}
            for who, some in shots.items()
        }
        if strip := _copied(record, view, firsts, found):
            return strip
    return None


def _copied(
    record: Record, view: View, firsts: Mapping[str, dict[int, Shot]], found: dict[str, bytes]
) -> Strip | None:
    labels = sorted({label for some in firsts.values() for label in some})[:MOST_PICTURES]
    rows: list[tuple[str, list[str | None]]] = []
    for who, some in firsts.items():
        row: list[str | None] = []
        for label in labels:
            picture = thumbnail(some[label].picture, SIDE) if label in some else None
            name = f"{PICTURES}/{re.sub(r'[^a-z0-9]+', '_', who.lower())}_class_{label}.webp"
            row.append(None if picture is None else Markdown(name))
            if picture is not None:
                found[name] = picture
        if any(row):
            rows.append((who, row))
    names = record.classes
    classes = [names[i] if 0 <= i < len(names) else str(i) for i in labels]
    return Strip(view, classes, rows) if rows else None
