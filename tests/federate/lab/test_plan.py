"""Which runs an experiment is made of, and what tells the same run from another."""

from pathlib import Path
from typing import Any, get_args

import pytest

from fedgaze.config import BehaviourSpec
from fedgaze.errors import FedgazeError
from fedgaze.federate.lab import BEHAVIOURS, Cell, parse_plan, plan, read_plan
from fedgaze.federate.lab.presets import PRESETS

TOY: dict[str, Any] = {
    "name": "toy",
    "dataset": {"name": "digits", "limit": 300},
    "model": {"_target_": "fedgaze.models.DigitsNet"},
    "num_rounds": 2,
    "xai": {"layer": "conv3"},
}


def only(**keys: Any) -> Cell:
    """The one cell of an experiment."""
    one = {"splits": "iid", "behaviours": "patch", "seeds": 0, "defences": "krum"}
    (cell,) = parse_plan({"data": [TOY], **one, **keys}).cells
    return cell


def test_without_a_file_a_small_trial_is_planned() -> None:
    made = read_plan(None)
    assert len(made.cells) == 2 * 3 * 2 * 2  # splits, behaviours, seeds, defences
    ids = [each.id for each in made.cells]
    assert len(set(ids)) == 24
    assert ids[0] == "digits_iid_none_3of10_none_seed0"
    assert ids[-1] == "digits_dirichlet-0.5_shortcut_3of10_gate_seed1"
    assert {each.task.num_rounds for each in made.cells} == {5}
    assert {each.task.num_rounds for each in read_plan(None, ["seeds=0"]).cells} == {8}
    # Who stops half-way has a whole experiment of one seed.
    assert {each.seed for each in made.cells[:12]} == {0}


def test_every_combination_is_one_run_and_none_is_made_twice() -> None:
    made = parse_plan(
        {
            "data": ["digits", TOY],
            "splits": ["iid", "dirichlet-0.5", "dirichlet-0.1"],
            "behaviours": ["none", {"kind": "patch", "target": 3}, "patch"],
            "clients": [10, 12],
            "attackers": [0.1, 0.3, 0.31],  # 1, 3 and 3 of 10; 1, 4 and 4 of 12
            "seeds": "0-2,7",
            "defences": ["none", "gate", "gate+krum"],
        }
    )
    assert len(made.cells) == 2 * 3 * 3 * (2 + 2) * 4 * 3
    assert len({each.id for each in made.cells}) == len(made.cells)
    assert {each.seed for each in made.cells} == {0, 1, 2, 7}
    assert "toy_dirichlet-0.1_patch,target=3_4of12_gate+krum_seed7" in {x.id for x in made.cells}


def test_a_cell_is_the_task_that_it_says() -> None:
    cell = only(
        splits="dirichlet-0.1", defences="gate+trimmed_mean", attackers=0.3, rounds=5, seeds=4
    )
    task = cell.task
    assert (task.random_seed, task.num_rounds, task.num_clients) == (4, 5, 10)
    assert (task.dataset.partition, task.dataset.alpha, task.dataset.limit) == (
        "dirichlet", 0.1, 300,
    )  # fmt: skip
    assert task.server.strategy.target == "FedTrimmedAvg"
    assert task.server.strategy.arguments == {"beta": 0.325}
    assert (task.gate.policy, task.gate.floor) == ("reject", 1)
    assert (task.xai.enabled, task.xai.run_location, task.xai.pictures) == (True, "server", False)
    assert (task.xai.samples_per_class, task.xai.layer) == (5, "conv3")
    assert task.behaviour is not None
    assert task.behaviour.kind == "patch"
    # Nobody looks where no defence needs it.
    assert not only(defences="krum").task.xai.enabled
    assert only(defences="krum").task.gate.policy == "report"
    assert only(defences="probe_accuracy").task.xai.enabled
    assert only(defences="median").task.server.strategy.target == "FedMedian"
    assert only(behaviours="none").task.behaviour is None


def test_the_seed_draws_who_attacks_and_nothing_else_does() -> None:
    drawn = {
        tuple(only(seeds=5, **keys).attackers)
        for keys in (
            {},
            {"defences": "none"},
            {"behaviours": "stale"},
            {"splits": "dirichlet-0.5"},
            {"data": ["digits"]},
        )
    }
    assert len(drawn) == 1
    (who,) = drawn
    assert len(who) == len(set(who)) == 3
    assert set(who) <= set(range(10))
    assert len({tuple(only(seeds=seed).attackers) for seed in range(20)}) > 10
    everybody = {client for seed in range(40) for client in only(seeds=seed).attackers}
    assert everybody == set(range(10))


@pytest.mark.parametrize(
    "other",
    [
        {"seeds": 1},
        {"defences": "multi_krum"},
        {"splits": "dirichlet-0.5"},
        {"behaviours": "blend"},
        {"behaviours": {"kind": "patch", "fraction": 0.3}},
        {"behaviours": "none"},
        {"clients": 9},
        {"attackers": 0.2},
        {"rounds": 3},
        {"data": [TOY | {"learning_rate": 0.01}]},
        {"data": [TOY | {"dataset": {"name": "digits", "limit": 301}}]},
        {"data": [TOY | {"xai": {"layer": "conv2"}}]},
    ],
)
def test_what_decides_a_result_is_in_its_fingerprint(other: dict[str, Any]) -> None:
    assert only().fingerprint == only().fingerprint
    assert only(**other).fingerprint != only().fingerprint


def test_krum_is_told_how_many_attackers_even_where_there_are_none() -> None:
    few, many = (only(behaviours="none", attackers=share) for share in (0.1, 0.3))
    assert few.task == many.task
    assert few.fingerprint != many.fingerprint
    assert few.id != many.id


def test_other_weights_of_the_gate_are_another_result_where_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("none", "gate", "gate+krum", "krum", "probe_accuracy")
    before = {name: only(defences=name).fingerprint for name in names}
    monkeypatch.setattr(plan, "HEIGHT", plan.HEIGHT - 1)
    after = {name: only(defences=name).fingerprint for name in names}
    assert {name for name in names if before[name] != after[name]} == {"none", "gate", "gate+krum"}
    monkeypatch.setattr(plan, "__version__", "another")
    assert all(only(defences=name).fingerprint != after[name] for name in names)


def test_every_behaviour_of_a_task_can_be_tried() -> None:
    kinds = get_args(BehaviourSpec.model_fields["kind"].annotation)
    assert list(BEHAVIOURS) == ["none", *sorted(kinds, key=list(BEHAVIOURS).index)]
    cells = parse_plan({"behaviours": list(BEHAVIOURS), "seeds": 0, "splits": "iid"}).cells
    found = {each.task.behaviour.kind for each in cells if each.task.behaviour}
    assert found == set(kinds)


def test_a_file_and_what_overrules_it(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(
        "data:\n- {name: small, preset: digits, dataset: {limit: 200}, batch_size: 8}\n"
        "splits: [iid]\nbehaviours: [none, {kind: replacement, scale: 2.5}]\n"
        "seeds: 0-9\ndefences: [none]\n"
    )
    made = read_plan(file, ["seeds=3", "attackers=0.2", "defences=[none,gate+median]"])
    assert [each.id for each in made.cells] == [
        "small_iid_none_2of10_none_seed3",
        "small_iid_none_2of10_gate+median_seed3",
        "small_iid_replacement,scale=2.5_2of10_none_seed3",
        "small_iid_replacement,scale=2.5_2of10_gate+median_seed3",
    ]
    task = made.cells[-1].task
    assert (task.dataset.name, task.dataset.limit, task.batch_size) == ("digits", 200, 8)
    assert task.learning_rate == PRESETS["digits"]["learning_rate"]
    assert task.behaviour is not None
    assert task.behaviour.scale == 2.5
    assert task.directory == tmp_path


def test_local_files_lie_where_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("mnist", "arrays/cifar10_test_jpeg_2000.npz", "weights/resnet20-12fca82f.th"):
        (tmp_path / path).mkdir(parents=True)
    monkeypatch.delenv("FEDGAZE_DATA", raising=False)
    with pytest.raises(FedgazeError) as told:
        parse_plan({"data": "mnist"})
    assert str(told.value) == (
        "data=mnist needs local files: say where they lie with FEDGAZE_DATA, or with "
        "data=[{name: mnist, root: FOLDER}]"
    )
    named = parse_plan({"data": [{"name": "mnist", "root": str(tmp_path)}]})
    assert named.cells[0].task.dataset.root == tmp_path / "mnist"
    monkeypatch.setenv("FEDGAZE_DATA", str(tmp_path))
    task = parse_plan({"data": "cifar10"}).cells[0].task
    assert task.dataset.root == tmp_path / "arrays" / "cifar10_test_jpeg_2000.npz"
    assert task.model.arguments["weights"] == str(tmp_path / "weights" / "resnet20-12fca82f.th")
    with pytest.raises(FedgazeError, match=f"data=fashion_mnist needs {tmp_path}/fashion_mnist,"):
        parse_plan({"data": "fashion_mnist"})
    # A place of its own needs none of these.
    own = parse_plan({"data": [{"name": "fashion_mnist", "dataset": {"root": "here"}}]})
    assert own.cells[0].task.dataset.root == Path("here")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": 1}, "unknown key 'seed'=1; did you mean 'seeds'?"),
        ({"seeds": []}, "seeds=[]: at least one is needed"),
        ({"splits": "shards"}, "splits.0='shards': "),
        ({"behaviours": "pacth"}, "behaviours: there is no 'pacth'; there are none, "),
        ({"behaviours": ["pacth"]}, "did you mean 'patch'?"),
        (
            {"behaviours": {"kind": "patch", "scale": 2}},
            "behaviours: 'scale' belongs to kind=replacement, noise, not to kind=patch",
        ),
        (
            {"behaviours": {"kind": "patch", "clients": [1]}},
            "behaviours: 'clients' are drawn by the seed; say how many in attackers",
        ),
        ({"behaviours": ["patch", "patch"]}, "behaviours: each needs a name of its own"),
        ({"data": ["digits", "digits"]}, "data: each needs a name of its own"),
        (
            {"data": "digit"},
            "data: digit is none of digits, scenes, mnist, fashion_mnist, cifar10, so it needs ",
        ),
        (
            {"data": {"name": "digits", "dataset": {"partition": "iid"}}},
            "data: digits sets dataset.partition, which is the experiment's",
        ),
        (
            {"data": {"name": "digits", "layer": 1}},
            "data: unknown key 'layer'=1; allowed are batch_size, dataset",
        ),
        ({"data": {"name": "digits", "batch_size": 0}}, "batch_size=0: "),
        ({"defences": "krumm"}, "there is no defence 'krumm'; there are "),
        ({"defences": "krum+gate"}, "'krum+gate' is none: allowed are NAME, gate and gate+NAME"),
        ({"defences": "gate+none"}, "'gate+none' is none: allowed are NAME, gate and gate+NAME"),
        ({"defences": "gate+oracle"}, "'gate+oracle' is none: allowed are NAME, gate and"),
        (
            {"defences": "gate+krum", "attackers": 0.4},
            "defences: gate+krum can do nothing: Krum with num_malicious_nodes=4 needs 11 updates",
        ),
        ({"defences": "trimmed_mean", "attackers": 0.5}, "trimmed_mean leaves nothing of 10"),
        ({"attackers": 0.01}, "attackers=0.01 of 10 clients makes 0: at least 1"),
        ({"attackers": 0.99}, "attackers=0.99 of 10 clients makes 10: "),
        ({"attackers": 0}, "attackers.0=0: "),
    ],
)
def test_one_sentence_says_what_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(FedgazeError) as told:
        _ = parse_plan(given).cells
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_where_nobody_attacks_no_attacker_is_needed() -> None:
    made = parse_plan({"behaviours": "none", "attackers": 0.01, "seeds": 0, "splits": "iid"})
    assert [each.attackers for each in made.cells] == [[], []]
