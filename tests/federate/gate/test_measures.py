"""The evidence, each measure worked by hand on a round of made-up models."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgaze.config import GateSpec
from fedgaze.federate.gate import Gate, Seen, Sight, measures
from fedgaze.federate.gate.marks import Found, Patch, Pattern
from fedgaze.federate.gate.merges import Certainty, Merges
from fedgaze.federate.look import Look, Probe
from fedgaze.xai import Explanation

NAN = math.nan


def sight(
    chances: Tensor,
    raw: Tensor,
    labels: Tensor,
    *,
    pulls: list[list[float]] | None = None,
    **values: Any,
) -> Sight:
    """What is seen of a model that gives these probabilities and these maps."""
    explanation = Explanation(
        heatmaps=raw,
        raw=raw,
        per_layer={},
        attributions=None,
        images=torch.arange(len(raw)),
        targets=labels,
        scores=labels.float(),
        logits=chances.log(),
        predicted=chances.argmax(1),
        layers=("x",),
        method="gradcam",
        fusion="mean",
        precision="full",
        flags=((),) * len(raw),
    )
    probe = Probe(torch.zeros(len(raw), 1, 4, 4), labels, torch.arange(len(raw)), None)
    look = Look(probe, explanation, {k: torch.tensor(v) for k, v in values.items()})
    return Sight(look, torch.tensor(pulls or [[0.0], [0.0]]))


def seen(
    *sights: Sight | None,
    received: Sight,
    vectors: Tensor | None = None,
    moved: Tensor | None = None,
    merges: Merges | None = None,
) -> Seen:
    count = len(sights)
    steps = torch.eye(count) if vectors is None else vectors
    norms = torch.ones(count, 1) if moved is None else moved
    found = (
        Found(Patch(torch.ones(1, 3, 3), 3, "in the middle"), 0),
        Found(Pattern(torch.ones(1, 4, 4)), 1),
    )
    clients = tuple(range(count))
    return Seen(clients, steps, norms, sights, received.look, [{}] * count, [found] * count, merges)


LABELS = torch.tensor([0, 0, 1])
EVEN = torch.full((3, 2), 0.5)
MAPS = torch.tensor([[[1.0, 0], [0, 0]], [[1, 1], [0, 0]], [[1, 1], [1, 1]]])
RECEIVED = sight(EVEN, MAPS, LABELS)


def test_a_class_counts_as_far_as_it_is_known() -> None:
    """Image 0 is known by 0.9, image 1 by 0.1: their mean is 0.9 · 1 + 0.1 · 2 over 1."""
    chances = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    one = sight(chances, MAPS, LABELS, entropy=[1.0, 2.0, 3.0])
    found = measures.class_means(s := seen(one, received=RECEIVED), s.measured("entropy"))
    assert found[0, 0].item() == pytest.approx(1.1)
    assert found[0, 1].isnan(), "class 1 is known by 0.1, which is too little"


def test_what_is_not_defined_for_an_image_is_left_out() -> None:
    one = sight(EVEN, MAPS, LABELS, entropy=[NAN, 2.0, 3.0])
    found = measures.class_means(s := seen(one, received=RECEIVED), s.measured("entropy"))
    assert found[0].tolist() == [2.0, 3.0]


def test_an_update_that_was_not_seen_has_no_value() -> None:
    one = sight(EVEN, MAPS, LABELS, entropy=[1.0, 2.0, 3.0])
    round_ = seen(one, None, one, received=RECEIVED)
    assert measures.class_means(round_, round_.measured("entropy"))[1].isnan().all()
    assert measures.accuracy(round_)[1].isnan()
    assert measures.loss(round_)[1].isnan()


def test_an_output_that_is_no_number_clears_nobody() -> None:
    broken = torch.full((3, 2), NAN)
    rest = [sight(EVEN, MAPS, LABELS, pulls=[[0.0] * 4] * 2) for _ in range(3)]
    round_ = seen(*rest, sight(broken, MAPS, LABELS, pulls=[[0.0] * 4] * 2), received=RECEIVED)
    decisions = Gate(GateSpec(policy="reject"), ("a", "b")).judge(round_)
    assert [each.factor for each in decisions] == [1, 1, 1, 0]
    assert decisions[3].reasons[0] == "the server could not look at it"


def test_agreement_with_the_received_model() -> None:
    other = MAPS.flip(2)
    round_ = seen(sight(EVEN, other, LABELS), received=RECEIVED)
    alike = measures.agreement(round_, ranks=False, with_received=True)
    assert alike[0].tolist() == pytest.approx([0.0, 1.0, 1.0])


def test_agreement_with_the_others() -> None:
    """The others' mean of two maps that lie left and right is even over both."""
    left, right = MAPS[:1].expand(3, 2, 2), MAPS[:1].flip(2).expand(3, 2, 2)
    round_ = seen(*(sight(EVEN, m, LABELS) for m in (left, right, left)), received=RECEIVED)
    alike = measures.agreement(round_, ranks=False, with_received=False)
    assert alike[:, 0].tolist() == pytest.approx([0.5, 0.0, 0.5])


def test_maps_that_say_nothing() -> None:
    maps = torch.tensor([[[0.0, 0], [0, 0]], [[2, 2], [2, 2]], [[5, 0], [0, 0]]])
    round_ = seen(sight(EVEN, maps, LABELS), sight(EVEN, MAPS + 0.1, LABELS), received=RECEIVED)
    assert measures.degenerate(round_).tolist() == [[1, 1, 1], [0, 0, 1]]


def test_unevenness_is_the_gini_index() -> None:
    """One cell of four: 1 - 1/4; two of four: 1/2; all alike: 0."""
    round_ = seen(sight(EVEN, MAPS, LABELS), received=RECEIVED)
    assert measures.unevenness(round_)[0].tolist() == pytest.approx([0.75, 0.5, 0.0])


def test_doubt_is_the_entropy_of_the_predictions() -> None:
    """Even ones: ln 2; of 1 and 0: none; of 0.9 and 0.1: 0.325 nats."""
    sure = torch.tensor([[0.9, 0.1], [1.0, 0.0], [0.0, 1.0]])
    round_ = seen(sight(EVEN, MAPS, LABELS), sight(sure, MAPS, LABELS), None, received=RECEIVED)
    found = measures.doubt(round_)
    assert found[:2].tolist() == pytest.approx([math.log(2), 0.32508 / 3], abs=1e-4)
    assert found[2].isnan()


def test_confusion_is_the_most_of_any_other_class() -> None:
    chances = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.8, 0.0], [0.5, 0.1, 0.4], [0.3, 0.1, 0.6]])
    labels = torch.tensor([0, 1, 2, 2])
    maps = torch.ones(4, 2, 2)
    round_ = seen(sight(chances, maps, labels), received=sight(chances, maps, labels))
    # for class 0: 0.2 of class 1, 0.4 of class 2; for 1: 0.3 of 0; for 2: 0.1 of 0
    assert measures.confusion(round_)[0].tolist() == pytest.approx([0.4, 0.3, 0.1])


def test_accuracy_and_loss() -> None:
    chances = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])
    round_ = seen(sight(chances, MAPS, LABELS), received=RECEIVED)
    assert measures.accuracy(round_).tolist() == pytest.approx([1 / 3])
    expected = (math.log(2) + 2 * math.log(4)) / 3
    assert measures.loss(round_).tolist() == pytest.approx([expected], rel=1e-5)


def test_pulls_are_by_update_and_mark() -> None:
    """An attacker stands apart at the mark found for it; the reason names mark and class."""
    patches = torch.tensor([[0.9, 0.1, 0.0, 0.1]] + [[0.0, 0.1, 0.0, 0.1]] * 3)
    patterns = torch.zeros(4, 4)
    patterns[1, 2] = 0.8
    rows = torch.stack([patches, patterns], 1).tolist()
    received = sight(EVEN, MAPS, LABELS, pulls=[[0.0] * 4] * 2)
    round_ = seen(*(sight(EVEN, MAPS, LABELS, pulls=row) for row in rows), received=received)
    assert measures.pull(round_, 0).tolist() == pytest.approx([0.9, 0.0, 0.0, 0.0])
    assert measures.pull(round_, 1).tolist() == pytest.approx([0.0, 0.8, 0.0, 0.0])
    decisions = Gate(GateSpec(measures=["pull", "pattern"]), ("a", "b")).judge(round_)
    assert decisions[0].reasons[0] == (
        "a small white square in the middle pulls it to class a: 0.90 of probability, "
        "the others 0.00"
    )
    assert decisions[1].reasons[0] == (
        "a faint pattern all over the image pulls it to class b: 0.80 of probability, "
        "the others 0.00"
    )
    assert not decisions[2].reasons


def certainty(plain: float, light: float) -> Certainty:
    return Certainty(torch.full((3,), float(plain)), torch.full((2, 2), float(light)))


def test_harm_and_light_compare_the_merge_with_that_of_the_others() -> None:
    """Three clients. Without the first the merge is surer by 0.2 nats."""
    merges = Merges(certainty(-1, -0.9), [certainty(-0.8, -0.8), certainty(-1.1, -0.9), None])
    round_ = seen(None, None, None, received=RECEIVED, merges=merges)
    harm, light = measures.harm(round_), measures.light(round_)
    assert harm[:2].tolist() == pytest.approx([2 * 0.2, -2 * 0.1], abs=1e-6)
    assert light[:2].tolist() == pytest.approx([2 * -0.1, 0.0], abs=1e-6)
    assert harm[2].isnan()
    assert measures.harm(seen(None, received=RECEIVED)).isnan().all(), "there was no merge"


def test_help_is_the_gain_in_the_better_half_of_the_classes() -> None:
    """Two classes, images 0 and 1 of the first: it takes 0.4 nats off the first, adds 1 to both."""
    whole = Certainty(torch.tensor([-1.0, -2.0, -3.0]), torch.zeros(2, 2))
    rest = [
        Certainty(torch.tensor([-1.4, -2.4, -2.0]), torch.zeros(2, 2)),
        Certainty(torch.tensor([-0.0, -1.0, -2.0]), torch.zeros(2, 2)),
    ]
    round_ = seen(None, None, received=RECEIVED, merges=Merges(whole, rest))
    assert measures.help_(round_).tolist() == pytest.approx([0.4, -1.0])
    assert measures.harm(round_).tolist() == pytest.approx([0.2 / 3, 1.0])


def test_layers_compare_how_a_step_is_divided() -> None:
    """Twice as long everywhere is the same; of three tensors one moved e times as far is not."""
    moved = torch.tensor([[1.0, 1, 1], [2, 2, 2], [1, 1, 1], [math.e, 1, 1]])
    found = measures.layers(seen(*[None] * 4, received=RECEIVED, moved=moved))
    assert found.tolist() == pytest.approx([0, 0, 0, 1 / 3], abs=1e-6)
    still = torch.zeros(3, 2)
    assert measures.layers(seen(*[None] * 3, received=RECEIVED, moved=still)).tolist() == [0, 0, 0]


def test_length_and_direction_of_steps() -> None:
    vectors = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    round_ = seen(*[None] * 4, received=RECEIVED, vectors=vectors)
    assert measures.length(round_).exp().tolist() == pytest.approx([5, 1, 1, 2])
    turned = measures.direction(round_).tolist()
    # the last one is held against the medians (1, 0) of the others
    assert turned[3] == pytest.approx(1.0)
    assert turned[1] == pytest.approx(1 - 1 / math.sqrt(1 + 2**2))
    # (0, 2) is the root of 5 away from (1, 0), and the second, (1, 0), is 2 away from (1, 2)
    apart = measures.distance(round_).exp().tolist()
    assert (apart[3], apart[1]) == pytest.approx((math.sqrt(5), 2))


def test_a_step_of_length_zero_is_no_nan() -> None:
    round_ = seen(*[None] * 3, received=RECEIVED, vectors=torch.zeros(3, 2))
    assert measures.length(round_).isfinite().all()
    assert measures.direction(round_).tolist() == [1.0, 1.0, 1.0]
