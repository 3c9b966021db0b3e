"""The schema of a task: what it accepts, and what it says of what it does not."""

import json
import re
from pathlib import Path

import pytest

from fedgaze.config import Task, load_task, parse_task
from fedgaze.errors import FedgazeError

MODEL = {"model": {"_target_": "fedgaze.models.DigitsNet"}}

CLASSIC = """
random_seed: 7
task_id: chest
model_type: Pytorch
model:
  _target_: models.Net
  output_size: 10
dataset:
  name: mnist
  validation_split: 0.25
  partition: iid
learning_rate: 0.01
batch_size: 64
num_epochs: 2
num_rounds: 3
num_clients: 6
clients_per_round: 3
xai:
  enabled: true
  run_location: both
  method: gradcam
  target_layer_index: -1
  output_dir: outputs
  save_path: elsewhere
  samples_per_class: 1
server:
  strategy:
    _target_: flwr.server.strategy.FedAvg
    fraction_fit: 0.5
wandb:
  use: false
  key: sesame
  account: me
  project: ${dataset.name}_${task_id}
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_classic_file_is_read_whole(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "conf" / "config.yaml", CLASSIC))
    assert task.wandb.project == "mnist_chest"
    assert task.model.target == "models.Net"
    assert task.model.arguments == {"output_size": 10}
    assert task.server.strategy.arguments == {"fraction_fit": 0.5}
    assert task.xai.layer == -1
    assert task.xai.save_dir == Path("outputs")
    assert task.directory == tmp_path.resolve()


def test_newer_keys_win_over_older_ones() -> None:
    xai = parse_task(
        MODEL
        | {
            "xai": {
                "layer": "conv2",
                "target_layer_index": 0,
                "save_path": "c",
                "output_dir": "b",
                "save_dir": "a",
            }
        }
    ).xai
    assert (xai.layer, str(xai.save_dir)) == ("conv2", "a")


def test_overrides_win_and_interpolation_sees_them(tmp_path: Path) -> None:
    file = write(tmp_path / "task.yaml", CLASSIC)
    task = load_task(file, ["task_id=lungs", "xai.layer=conv2", "num_rounds=9"])
    assert (task.wandb.project, task.xai.layer, task.num_rounds) == ("mnist_lungs", "conv2", 9)
    assert task.directory == tmp_path.resolve()


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "fedavg"},
        {"server": {"strategy": "fedavg"}},
        {"strategy": {"_target_": "fedavg"}},
    ],
)
def test_strategy_in_one_word(given: dict[str, object]) -> None:
    assert parse_task(MODEL | given).server.strategy.target == "fedavg"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_rounds": -1}, "num_rounds=-1: .*greater than or equal to 1"),
        ({"num_rounds": "many"}, "num_rounds='many': .*integer"),
        ({"num_round": 3}, "unknown key 'num_round'=3; did you mean 'num_rounds'"),
        ({"xai": {"layr": "x"}}, "unknown key 'xai.layr'='x'; did you mean 'layer'"),
        ({"xai": {"run_location": "serve"}}, "xai.run_location=serve: .*did you mean 'server'"),
        ({"xai": {"save_dir": "../mine"}}, "save_dir.*../mine.*a path inside the run's folder"),
        ({"engine": "ray"}, "engine=ray: allowed are local, simulation, deployment"),
        ({"device": "gpu"}, "device='gpu': allowed are auto, cpu"),
        ({"task_id": "../up"}, r"task_id='../up': a name of letters, digits"),
        ({"xai": {"layer": {"a": 1}}}, r"xai.layer={'a': 1}: a name, a whole number or a list"),
        ({"resources": {"memory": "lots"}}, "resources.memory='lots': a size such as"),
        ({"dataset": {"alpha": 0}}, "dataset.alpha=0: .*greater than 0"),
        ({"dataset": {"partition": "shard"}}, "dataset.partition=shard: .*did you mean 'shards'"),
        (
            {"dataset": {"partition": "shards", "alpha": 0.3}},
            "dataset.alpha=0.3: goes with partition dirichlet or quantity, not shards; leave it",
        ),
        ({"dataset": {"shards_per_client": 3}}, "=3: goes with partition shards, not dirichlet"),
        (
            {"dataset": {"partition": "quantity", "partition_by": "hospital"}},
            "partition_by='hospital': goes with partition natural, not quantity",
        ),
        (
            {"dataset": {"partition": "shards", "shards_per_client": 0}},
            "greater than or equal to 1",
        ),
        ({"dataset": 3}, "dataset=3: a mapping of keys to values"),
        ({"clients_per_round": 5}, "clients_per_round=5 is more than num_clients=4"),
        ({"dataset": {"plant": {"clients": [4]}}}, "counted from 0 to 3"),
        ({"gate": {"policy": "reject"}}, "gate.policy=reject needs the server's own look"),
        ({"strategy": "a", "server": {"strategy": "b"}}, "given twice"),
        ({"model": {}}, "model._target_"),
    ],
)
def test_one_sentence_names_key_and_value(given: dict[str, object], said: str) -> None:
    with pytest.raises(FedgazeError) as caught:
        parse_task(MODEL | given)
    assert re.search(said, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_missing_model_is_named() -> None:
    with pytest.raises(FedgazeError, match="the key 'model' is missing"):
        parse_task({})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", "is not YAML"),
        ("- 1\n- 2\n", "a task is a mapping"),
        ("task_id: ${nowhere.at_all}", "nowhere"),
        ("", "the key 'model' is missing"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FedgazeError, match=said):
        load_task(write(tmp_path / "task.yaml", text))


def test_missing_file_and_bad_override(tmp_path: Path) -> None:
    with pytest.raises(FedgazeError, match="no such file"):
        load_task(tmp_path / "none.yaml")
    with pytest.raises(FedgazeError, match="'rounds' is not of the form key=value"):
        load_task(write(tmp_path / "task.yaml", CLASSIC), ["rounds"])


@pytest.mark.parametrize("given", [{"key": "sesame"}, {"kye": "sesame"}, {"key": ["sesame"]}])
def test_secrets_are_shown_nowhere(given: dict[str, object]) -> None:
    shown = ""
    try:
        task = parse_task(MODEL | {"wandb": given})
        shown = json.dumps(task.public()) + repr(task) + str(task)
    except FedgazeError as error:
        shown = str(error)
    assert "wandb" in shown
    assert "sesame" not in shown


def test_what_is_recorded_reads_back_as_the_same_task() -> None:
    task = parse_task(MODEL | {"resources": {"memory": "1GiB"}, "xai": {"layer": ["a", 2]}})
    assert parse_task(json.loads(json.dumps(task.public()))) == task
    assert task.resources.memory == 2**30


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        ("dirichlet", (1.0, None, None)),
        ("iid", (None, None, None)),
        ("shards", (None, 2, None)),
        ("quantity", (1.0, None, None)),
        ("natural", (None, None, None)),
    ],
)
def test_keys_of_a_partition_are_there_only_where_they_mean_something(
    partition: str, expected: tuple[object, ...]
) -> None:
    task = parse_task(MODEL | {"dataset": {"partition": partition}})
    spec = task.dataset
    assert (spec.alpha, spec.shards_per_client, spec.partition_by) == expected
    assert parse_task(json.loads(json.dumps(task.public()))) == task
    # On the command line, null takes back what a file says.
    nothing = {"alpha": None, "shards_per_client": None, "partition_by": None}
    assert parse_task(MODEL | {"dataset": {"partition": partition, **nothing}}) == task


def test_every_key_but_the_model_has_a_default() -> None:
    required = [name for name, field in Task.model_fields.items() if field.is_required()]
    assert required == ["model"]
