"""Separation against loops, scikit-learn's own silhouette, and planes that are known."""

import numpy as np
import pytest

from fedgaze.errors import FedgazeError
from fedgaze.measure import neighbours_hit, project, silhouettes


def blobs(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 4
    middles = random.normal(size=(4, 6))
    return (middles[labels] + 0.7 * random.normal(size=(count, 6))).astype(np.float32), labels


@pytest.mark.parametrize("neighbours", [1, 3, 10])
def test_neighbours_vote_without_the_picture_itself(neighbours: int) -> None:
    features, labels = blobs()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = []
    for row in range(len(labels)):
        alike = unit @ unit[row]
        alike[row] = -np.inf
        nearest = np.argsort(-alike)[:neighbours]
        votes = dict.fromkeys(range(4), 0)
        for each in nearest:
            votes[int(labels[each])] += 1
        most = max(votes.values())
        # Of classes with as many votes, that whose neighbours come first.
        best = {label for label, count in votes.items() if count == most}
        places = {
            label: sum(neighbours - i for i, each in enumerate(nearest) if labels[each] == label)
            for label in best
        }
        expected.append(max(places, key=places.__getitem__) == labels[row])
    assert neighbours_hit(features, labels, neighbours=neighbours).tolist() == expected


def test_length_does_not_count() -> None:
    features, labels = blobs()
    longer = features * np.linspace(0.1, 9, len(labels))[:, None].astype(np.float32)
    assert np.array_equal(neighbours_hit(features, labels), neighbours_hit(longer, labels))


def test_silhouettes_worked_by_hand() -> None:
    angles = np.deg2rad([0, 10, 90, 120])
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array([0, 0, 1, 1])

    def far(a: int, b: int) -> float:
        return 1 - float(np.cos(angles[a] - angles[b]))

    own = far(0, 1)
    other = (far(0, 2) + far(0, 3)) / 2
    assert silhouettes(features, labels)[0] == pytest.approx((other - own) / other, abs=1e-5)


def test_the_main_directions_of_a_plane_are_found_again() -> None:
    random = np.random.default_rng(1)
    flat = random.normal(size=(50, 2)) * [5, 2] + 20
    basis, _ = np.linalg.qr(random.normal(size=(7, 7)))
    features = (flat @ basis[:2]).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    plane = project(features, "pca")
    # Distances in the plane are those of the directions, which lie in a plane themselves.
    inner = unit - unit.mean(0)
    expected = np.linalg.norm(inner[:, None] - inner[None], axis=2)
    found = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("how", ["pca", "tsne", "umap"])
def test_a_projection_is_the_same_for_a_seed(how: str) -> None:
    features, _ = blobs()
    first, again = (project(features, how, seed=3) for _ in range(2))  # type: ignore[arg-type]
    assert first.shape == (40, 2)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)


def test_what_cannot_be_used_is_said() -> None:
    features, labels = blobs(8)
    with pytest.raises(FedgazeError, match=r"neighbours is 8; allowed is 1 to 7"):
        neighbours_hit(features, labels, neighbours=8)
    with pytest.raises(FedgazeError, match=r"there is no projection 'pac'.*did you mean 'pca'"):
        project(features, "pac")  # type: ignore[arg-type]


def test_of_two_classes_with_as_many_votes_the_nearer_one_wins() -> None:
    angles = np.deg2rad([0, 10, -20, 180])
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    hits = neighbours_hit(features, np.array([1, 1, 0, 0]), neighbours=2)
    # The first two are next to each other; the last is nearest to the third and then the second.
    assert hits.tolist() == [True, True, False, True]
