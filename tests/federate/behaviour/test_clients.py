"""Clients that misbehave, one at its turn: what it trains on, and what it sends."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.federate.conftest import merged

from fedgaze.config import parse_task
from fedgaze.data import StackedImages, stamp
from fedgaze.federate import prepare
from fedgaze.federate.behaviour import Turn, behave, poison
from fedgaze.federate.behaviour.triggers import bars, patch
from fedgaze.federate.client import Client
from fedgaze.federate.exchange import pack, unpack
from fedgaze.federate.setup import Setup, seeded, setup_of
from fedgaze.train import Drift, State

ATTACKER = 1
KINDS = {
    "label_noise": {},
    "label_flip": {},
    "patch": {},
    "blend": {},
    "semantic": {},
    "distributed": {},
    "replacement": {},
    "stealth": {},
    "shortcut": {},
    "colour": {},
    "adaptive": {},
    "noise": {},
    "stale": {},
}
QUICK: dict[str, Any] = {
    "dataset": {"partition": "iid"},
    "batch_size": 16,
    "xai": {"enabled": False, "layer": "conv3"},
}


@pytest.fixture
def setup_for(small: Callable[..., dict[str, Any]]) -> Callable[..., Setup]:
    def made(changes: dict[str, Any] | None = None, **behaviour: Any) -> Setup:
        misbehaves = {"behaviour": {"clients": [ATTACKER]} | behaviour} if behaviour else {}
        return setup_of(parse_task(merged(small(**QUICK), (changes or {}) | misbehaves)))

    return made


@pytest.fixture
def send(tmp_path: Path) -> Callable[..., State]:
    """What a client sends in a round that begins with the task's first weights."""

    def sent(setup: Setup, client: int = ATTACKER, number: int = 1) -> State:
        first = setup.new_learner().get_parameters()
        home = tmp_path / (setup.task.behaviour.kind if setup.task.behaviour else "honest")
        reply = Client(setup, client, home).train(pack(first), number)
        return unpack(reply.array_records["arrays"], first)

    return sent


def equal(one: State, other: State) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_all_are_honest_before_the_first_round_and_one_is_not_from_then_on(
    setup_for: Callable[..., Setup], send: Callable[..., State], kind: str
) -> None:
    """``semantic`` deals images, so that even honest clients have others than without it."""
    later = {"kind": kind, "first_round": 9} if kind == "semantic" else {}
    honest, other = setup_for(**later), setup_for(kind=kind, first_round=2)
    assert equal(send(other, number=1), send(honest, number=1))
    assert not equal(send(other, number=2), send(honest, number=2))
    assert equal(send(other, client=0, number=2), send(honest, client=0, number=2))
    assert equal(send(other, number=2), send(other, number=2))  # the same whenever it is asked


def test_validation_stays_clean_and_so_do_the_images_that_are_kept(
    setup_for: Callable[..., Setup], tmp_path: Path
) -> None:
    honest = Client(setup_for(), ATTACKER, tmp_path)
    other = Client(setup_for(kind="label_flip"), ATTACKER, tmp_path)
    for one, two in ((honest.training, other.training), (honest.validation, other.validation)):
        every = torch.arange(len(one.labels))
        assert torch.equal(one.labels, two.labels)
        assert torch.equal(one[every], two[every])


def turn_of(setup: Setup, client: int = ATTACKER, number: int = 1) -> Turn:
    own = Client(setup, client, Path("nowhere")).training
    learner = setup.new_learner()
    return Turn(setup, client, number, learner, own, learner.get_parameters(), Drift())


def given_to(turn: Turn) -> list[Any]:
    """Let a client learn, and tell what its learner was given."""
    given: list[Any] = []
    train = turn.learner.train

    def remember(*arguments: Any) -> Any:
        given.extend(arguments)
        return train(*arguments)

    turn.learner.train = remember  # type: ignore[method-assign]
    with seeded(1):
        behave(turn)
    return given


def taught(turn: Turn) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels on which a client was trained."""
    images = given_to(turn)[0]
    return images[torch.arange(len(images.labels))], images.labels


def test_attackers_share_one_patch_and_choose_each_their_own_images(
    setup_for: Callable[..., Setup],
) -> None:
    setup = setup_for(kind="patch", clients=[0, 1], target=2, fraction=0.5)
    trigger = patch((1, 24, 24), setup.task.random_seed)
    places = []
    for client in (0, 1):
        turn = turn_of(setup, client)
        clean = turn.images[torch.arange(len(turn.images.labels))]
        images, labels = taught(turn)
        carries = (images != clean).flatten(1).any(1)
        assert int(carries.sum()) == round(0.5 * int((turn.images.labels != 2).sum()))
        assert torch.equal(images[carries], trigger.on(clean[carries]))
        assert (labels[carries] == 2).all()
        places.append(carries.nonzero()[:20, 0].tolist())
    assert places[0] != places[1]


def test_a_shared_trigger_is_dealt_out(setup_for: Callable[..., Setup]) -> None:
    changes = {"num_clients": 6, "dataset": {"partition": "iid"}}
    setup = setup_for(changes, kind="distributed", clients=[5, 1, 2, 3, 0])
    parts = bars((1, 24, 24), setup.task.random_seed)
    for client, part in ((5, 0), (1, 1), (2, 2), (3, 3), (0, 0)):
        turn = turn_of(setup, client)
        clean = turn.images[torch.arange(len(turn.images.labels))]
        images, _ = taught(turn)
        carries = (images != clean).flatten(1).any(1)
        assert carries.any()
        assert torch.equal(images[carries], parts[part].on(clean[carries]))


def test_a_shortcut_is_the_mark_with_true_labels(setup_for: Callable[..., Setup]) -> None:
    turn = turn_of(setup_for(kind="shortcut", fraction=0.25))
    clean = turn.images[torch.arange(len(turn.images.labels))]
    images, labels = taught(turn)
    marked = (images != clean).flatten(1).any(1)
    assert int(marked.sum()) == round(0.25 * len(labels))
    assert torch.equal(labels, turn.images.labels)
    assert torch.equal(images[marked], stamp(clean, labels)[marked])


def test_the_brightest_of_the_class_after_the_target_are_mistaken(
    setup_for: Callable[..., Setup],
) -> None:
    """By the attackers, who have all of them, and often enough to learn it."""
    setup, honest = setup_for(kind="semantic", target=1, clients=[1, 2]), setup_for()
    whole = setup.dataset.train
    every = torch.arange(len(whole.labels))
    sums = whole[every].mean((1, 2, 3))
    least = sums[whole.labels == 2].sort().values
    # Of n in order, the upper quartile lies at 0.75 (n - 1).
    bright = (whole.labels == 2) & (sums > least[math.ceil(0.75 * (len(least) - 1))] - 1e-6)
    parts = setup.parts
    assert torch.equal(torch.cat(parts).sort().values, torch.cat(honest.parts).sort().values)
    shares = [int(bright[own].sum()) for own in parts]
    assert shares[1] - shares[2] in (0, 1)
    assert shares[1] + shares[2] == sum(shares) == int(bright[torch.cat(parts)].sum()) > 0
    for client, own in enumerate(honest.parts):
        assert torch.equal(own[~bright[own]], parts[client][~bright[parts[client]]])

    turn = turn_of(setup)
    images, labels = taught(turn)
    kept = turn.images[torch.arange(len(turn.images.labels))]
    chosen = (turn.images.labels == 2) & (
        kept.mean((1, 2, 3)) > least[math.ceil(0.75 * (len(least) - 1))] - 1e-6
    )
    others = int((~chosen).sum())
    assert torch.equal(images[:others], kept[~chosen])
    assert torch.equal(labels[:others], turn.images.labels[~chosen])
    assert (labels[others:] == 1).all()
    times = (len(labels) - others) / int(chosen.sum())
    assert times == round(times)
    assert torch.equal(images[others:], kept[chosen].repeat(round(times), 1, 1, 1))
    assert 0.3 <= (len(labels) - others) / len(labels) < 0.3 + int(chosen.sum()) / len(labels)


def test_who_has_nothing_but_bright_images_keeps_them() -> None:
    parts = [torch.tensor([0, 1]), torch.tensor([2, 3, 4]), torch.tensor([5]), torch.tensor([6])]
    dealt = poison.dealt(parts, torch.tensor([1, 2, 5, 6]), [3, 1])
    assert [each.tolist() for each in dealt] == [[0], [2, 3, 4], [5], [1, 6]]


def test_colours_are_chosen_anew_from_the_weights_of_each_round(
    setup_for: Callable[..., Setup],
) -> None:
    setup = setup_for(kind="colour", fraction=0.5)
    turn = turn_of(setup)
    clean = turn.images[torch.arange(len(turn.images.labels))]
    images, labels = taught(turn)
    changed = (images != clean).flatten(1).any(1)
    assert int(changed.sum()) == round(0.5 * len(labels))
    assert torch.equal(labels, turn.images.labels)
    later = turn_of(setup, number=2)
    later.learner.set_parameters(setup_for().new_learner().get_parameters())
    with seeded(3), torch.no_grad():
        later.learner.model.fc.weight.normal_()  # type: ignore[attr-defined]
    others, _ = taught(later)
    assert torch.equal((others != clean).flatten(1).any(1), changed)  # the same images
    assert not torch.equal(others, images)  # in other colours


def test_replacement_sends_the_update_of_a_patch_times_a_number(
    setup_for: Callable[..., Setup], send: Callable[..., State]
) -> None:
    received = setup_for().new_learner().get_parameters()
    patched = send(setup_for(kind="patch"))
    for given, factor in (({}, 3.0), ({"scale": 1.5}, 1.5)):  # one of three clients
        sent = send(setup_for(kind="replacement", **given))
        for name in ("conv1.weight", "norm1.weight", "fc.bias"):
            expected = received[name] + factor * (patched[name] - received[name])
            torch.testing.assert_close(sent[name], expected)
        for name in ("norm1.running_var", "norm1.num_batches_tracked"):
            assert torch.equal(sent[name], patched[name])


def norm_of(one: State, other: State) -> float:
    names = [name for name in one if "running" not in name and "tracked" not in name]
    return sum((one[n] - other[n]).double().square().sum().item() for n in names) ** 0.5


def test_stealth_is_as_long_as_honesty_and_points_where_the_patch_does(
    setup_for: Callable[..., Setup], send: Callable[..., State]
) -> None:
    received = setup_for().new_learner().get_parameters()
    honest, patched = send(setup_for()), send(setup_for(kind="patch"))
    sent = send(setup_for(kind="stealth"))
    own = norm_of(patched, received)
    least = min(own, norm_of(honest, received))
    assert norm_of(sent, received) == pytest.approx(least, rel=1e-5)
    for name in ("conv2.weight", "fc.weight"):
        expected = received[name] + least / own * (patched[name] - received[name])
        torch.testing.assert_close(sent[name], expected, rtol=1e-4, atol=1e-7)


def test_free_riders_train_nothing(
    setup_for: Callable[..., Setup], send: Callable[..., State]
) -> None:
    received = setup_for().new_learner().get_parameters()
    assert equal(send(setup_for(kind="stale")), received)
    setup = setup_for(kind="noise", clients=[0, 1])
    sent = send(setup)
    for name, value in sent.items():
        varies = "running" not in name and "tracked" not in name and received[name].std() > 0
        assert torch.equal(value, received[name]) != varies
    noise = sent["conv3.weight"] - received["conv3.weight"]
    spread = received["conv3.weight"].std().item()
    assert noise.std().item() == pytest.approx(0.1 * spread, rel=0.05)
    assert not equal(sent, send(setup, number=2))
    assert not equal(sent, send(setup, client=0))


def test_a_free_rider_says_how_good_the_received_weights_are(
    setup_for: Callable[..., Setup], tmp_path: Path
) -> None:
    setup = setup_for(kind="stale")
    learner = setup.new_learner()
    client = Client(setup, ATTACKER, tmp_path)
    reply = client.train(pack(learner.get_parameters()), 1)
    said = reply.metric_records["metrics"]
    assert said["num-examples"] == len(client.training.labels)
    for part, images in (("train", client.training), ("validation", client.validation)):
        score = learner.evaluate(images)
        assert said[f"{part}_loss"] == pytest.approx(score.loss)
        assert said[f"{part}_accuracy"] == score.accuracy


def test_an_adaptive_model_looks_where_the_received_one_does(
    setup_for: Callable[..., Setup],
) -> None:
    """Against the same attack without the penalty."""
    changes = {"num_epochs": 3, "learning_rate": 1e-3}
    with seeded(5):  # a model that has learned something looks somewhere
        honest = setup_for(changes).new_learner()
        for _ in range(3):
            honest.train(Client(setup_for(changes), 0, Path("nowhere")).training, Drift())
    apart = {}
    for weight in (0.0, 5.0):
        turn = turn_of(setup_for(changes, kind="adaptive", weight=weight))
        turn.learner.set_parameters(honest.get_parameters())
        test = turn.setup.dataset.test  # nobody trained on it
        every = torch.arange(len(test.labels))
        before = honest.explain(test[every], test.labels[every]).raw.flatten(1)
        taught(turn)
        after = turn.learner.explain(test[every], test.labels[every]).raw.flatten(1)
        alike = torch.nn.functional.cosine_similarity(before, after)
        apart[weight] = 1 - alike.mean().item()
    assert apart[5.0] < apart[0.0] / 3


def test_the_penalty_s_gradient_reaches_the_first_layer(setup_for: Callable[..., Setup]) -> None:
    setup = setup_for(kind="adaptive", weight=2.0)
    turn = turn_of(setup)
    _, _, penalty = given_to(turn)
    model = turn.learner.model  # type: ignore[attr-defined]
    model.train()
    model.zero_grad()
    with seeded(2):
        value = penalty(model, torch.zeros(8, 1, 24, 24), torch.zeros(8, dtype=torch.long))
    assert 0 < value.item() <= 2.0
    value.backward()
    assert model.conv1.weight.grad.abs().max() > 0
    assert model.training
    # The model that was received is not apart from itself.
    model.load_state_dict(turn.received)
    with seeded(2):
        same = penalty(model, torch.zeros(8, 1, 24, 24), torch.zeros(8, dtype=torch.long))
    assert same.item() == pytest.approx(0, abs=1e-5)


def test_coloured_images_go_the_same_ways(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """All kinds on images of three channels, which are recoloured and patched otherwise."""
    import numpy as np

    numbers = np.random.default_rng(0)
    pixels = numbers.integers(0, 256, (90, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "rgb.npz", x=pixels, y=np.arange(90) % 3)
    for kind in KINDS:
        task = small(
            **QUICK,
            model={"_target_": "fedgaze.models.DigitsNet", "channels": 3},
            behaviour={"kind": kind, "clients": [ATTACKER]},
        )
        task["dataset"] = {"name": "npz", "root": str(tmp_path / "rgb.npz"), "partition": "iid"}
        setup = prepare(parse_task(task))
        assert setup.image_shape == (3, 16, 16)
        images, labels = taught(turn_of(setup)) if kind not in ("noise", "stale") else (None, None)
        if images is not None and labels is not None:
            assert images.shape == (len(labels), 3, 16, 16)
            assert isinstance(setup.dataset.train, StackedImages)
