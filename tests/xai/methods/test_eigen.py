"""The principal components of layers, plain and under kernels."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.eigen import eigen_cam, eigen_grad_cam, eigen_smooth, first_component
from fedgaze.xai.methods.kpca import KERNELS, kpca_cam
from fedgaze.xai.methods.spectral import SMALL, top_eigenvector

Array = NDArray[np.float64]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads, by far on a machine that is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layer(seed: int, *shape: int, relu: bool = True) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.relu() if relu else drawn


def svd_maps(x: Tensor, *, centred: bool) -> tuple[Array, Array]:
    """``O V_1`` of each image by a full SVD in float64 ``(N, P)``, and the singular values."""
    maps, sizes = [], []
    for image in x.double().flatten(2).numpy():
        o = image.T
        if centred:
            o = o - o.mean(axis=0)
        _, s, vt = np.linalg.svd(o, full_matrices=False)
        maps.append(o @ vt[0])
        sizes.append(s)
    return np.stack(maps), np.stack(sizes)


def signed(maps: Array, towards: Array) -> Array:
    """Each map with the sign in which it agrees."""
    agreement = (maps * towards.reshape(maps.shape)).sum(axis=1, keepdims=True)
    return np.where(agreement < 0, -maps, maps)


def off(found: Tensor, expected: Array) -> float:
    """The largest difference, relative to the largest value."""
    flat = found.flatten(1).double().numpy()
    return float((np.abs(flat - expected).max(axis=1) / np.abs(expected).max(axis=1)).max())


SHAPES = [
    (3, 64, 7, 7),  # positions are fewer
    (3, 8, 7, 6),  # channels are fewer
    (2, 10, 40),
    (2, 6, 3, 4, 5),
    (1, 2048, 7, 7),
    (2, 260, 17, 17),  # too large to be decomposed whole
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_eigen_cam_is_the_papers_svd(shape: tuple[int, ...], relu: bool, centred: bool) -> None:
    x = layer(0xB1, *shape, relu=relu)
    maps, _ = svd_maps(x, centred=centred)
    expected = signed(maps, x.double().abs().sum(1).numpy())
    assert off(eigen_cam(x, centred=centred), expected) < 1e-5


@pytest.mark.parametrize("centred", [True, False])
def test_eigen_grad_cam_is_the_component_of_the_product(centred: bool) -> None:
    a, g = layer(0xB2, 3, 20, 5, 4), layer(0xB3, 3, 20, 5, 4, relu=False)
    product = a.double() * g.double()
    expected = signed(svd_maps(product, centred=centred)[0], product.sum(1).numpy())
    assert off(eigen_grad_cam(a, g, centred=centred), expected) < 1e-5


def test_eigen_smoothing_takes_weights_of_channels() -> None:
    a, w = layer(0xB4, 2, 9, 5, 4), layer(0xB5, 2, 9, 1, 1, relu=False)
    assert torch.equal(eigen_smooth(a, w), eigen_smooth(a, w.expand_as(a)))
    product = a.double() * w.double()
    expected = signed(svd_maps(product, centred=True)[0], product.sum(1).numpy())
    assert off(eigen_smooth(a, w), expected) < 1e-5


def test_eigen_cam_by_hand() -> None:
    # One channel: V_1 = 1, and the map is the activations.
    one = torch.tensor([[[1.0, 0.0, 2.0]]])
    assert eigen_cam(one).tolist() == [pytest.approx([1.0, 0.0, 2.0])]
    # Rank one, u v^T with |v| = 5: the map is 5 u.
    u, v = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 4.0])
    assert eigen_cam(torch.outer(v, u)[None]).tolist() == [pytest.approx([5.0, 10.0, 0.0])]
    # Centred: 5 (u - 1).
    found = eigen_cam(torch.outer(v, u)[None], centred=True)
    assert found.tolist() == [pytest.approx([0.0, 5.0, -5.0])]


def test_singular_values_that_are_close_do_not_hurt() -> None:
    rng = np.random.default_rng(0xB6)
    for places, channels in ((49, 256), (400, 300)):
        side = min(places, channels)
        u = np.linalg.qr(rng.standard_normal((places, side)))[0]
        v = np.linalg.qr(rng.standard_normal((channels, side)))[0]
        s = 0.5 ** np.arange(side)
        s[1] = 0.9999
        o = (u * s) @ v.T
        x = torch.from_numpy(o.T[None].copy())
        expected = signed((u[:, 0] * s[0])[None], np.abs(o).sum(axis=1))
        assert off(eigen_cam(x), expected) < 1e-6
        # In float32 what is decomposed is another matrix, which has its own answer.
        rounded = x.float()
        expected = signed(svd_maps(rounded, centred=False)[0], np.abs(o).sum(axis=1))
        assert off(eigen_cam(rounded), expected) < 1e-4


def test_a_cluster_larger_than_a_block_is_resolved() -> None:
    # Nine eigenvalues within 1 % at the top of a matrix that is not decomposed whole.
    values = torch.cat([torch.linspace(1, 0.99, 9), torch.linspace(0.9, 0, SMALL)]).double()
    drawn = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(1))
    basis = torch.linalg.qr(drawn.double())[0]
    vector, value = top_eigenvector(((basis * values) @ basis.T)[None], torch.zeros(1))
    assert abs(float((vector[0] * basis[:, 0]).sum())) == pytest.approx(1, abs=1e-9)
    assert value.item() == pytest.approx(1)


def test_the_sign_does_not_depend_on_the_solver() -> None:
    x = layer(0xB7, 4, 30, 6, 6)
    maps = eigen_cam(x)
    # Without negative activations there are no negative values (Perron and Frobenius).
    assert (maps > -1e-6).all()
    strength = x.sum(1)
    assert ((maps * strength).sum((1, 2)) > 0).all()
    # The same channels in another order, mirrored, or of the other sign: the same map.
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    for changed in (x[:, order], -x, x * (torch.arange(30) % 2 * 2 - 1)[:, None, None]):
        for centred in (True, False):
            same = eigen_cam(x, centred=centred)
            assert torch.allclose(eigen_cam(changed, centred=centred), same, atol=1e-5)
    assert torch.allclose(eigen_cam(x.flip(3)).flip(2), maps, atol=1e-5)


def test_the_sign_is_that_of_the_largest_value_where_nothing_else_tells() -> None:
    # Two positions of equal strength: nothing speaks for either.
    x = torch.tensor([[[3.0, -3.0, 1.0, -1.0]]])
    found = first_component(x, torch.ones(1, 4))
    assert found.tolist() == [pytest.approx([3.0, -3.0, 1.0, -1.0])]
    found = first_component(torch.tensor([[[-3.0, 2.0, 1.0]]]), torch.ones(1, 3))
    assert found.tolist() == [pytest.approx([3.0, -2.0, -1.0])]


def test_evidence_against_the_score_does_not_look_like_evidence_for_it() -> None:
    a, g = layer(0xB8, 2, 9, 5, 4) + 0.1, -layer(0xB9, 2, 9, 5, 4) - 0.1
    assert (eigen_grad_cam(a, g, centred=False) < 0).all()


METHODS: list[Callable[[Tensor], Tensor]] = [
    eigen_cam,
    lambda x: eigen_cam(x, centred=True),
    lambda x: eigen_grad_cam(x, x),
    lambda x: eigen_grad_cam(x, -x, centred=False),
    *(lambda x, name=name: kpca_cam(x, kernel=name) for name in KERNELS),
    *(lambda x, name=name: kpca_cam(x, kernel=name, centred=False) for name in KERNELS),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2, 12, 3, 3), (2, 4, 3, 3)])
@pytest.mark.parametrize("value", [0.0, -1.0, 1 / 3])
def test_flat_layers_are_flat_and_never_nan(
    method: Callable[[Tensor], Tensor], shape: tuple[int, ...], value: float
) -> None:
    flat = torch.full(shape, value) * torch.linspace(0.1, 1, shape[1])[:, None, None]
    flat.requires_grad_()
    maps = method(flat)
    spread = maps.flatten(1).amax(1) - maps.flatten(1).amin(1)
    assert (spread <= 1e-6 * maps.abs().flatten(1).amax(1)).all()
    (back,) = torch.autograd.grad(maps.sum(), flat)
    assert back.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 512, 4, 4), (1, 5, 9, 9)])
def test_what_rounding_did_to_a_flat_layer_is_no_evidence(shape: tuple[int, ...]) -> None:
    noisy = torch.rand(shape[:2])[..., None, None] * (1 + 1e-7 * layer(0xBA, *shape))
    assert (noisy.amax((2, 3)) > noisy.amin((2, 3))).any()
    assert not eigen_cam(noisy, centred=True).any()
    assert not kpca_cam(noisy, kernel="cosine").any()


def test_an_image_that_is_nan_leaves_the_others_alone() -> None:
    x = layer(0xBB, 3, 12, 4, 4)
    expected = eigen_cam(x)
    x[1, 0, 0, 0] = torch.nan
    found = eigen_cam(x)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert found[1].isnan().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2, 5, 2, 2), (2, 2, 1, 3)])
def test_maps_can_be_differentiated_twice(
    method: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    x = layer(0xBC, *shape, relu=False).double().requires_grad_()
    assert torch.autograd.gradcheck(method, x)
    assert torch.autograd.gradgradcheck(method, x)


def test_empty_positions_do_not_spoil_the_gradient() -> None:
    # Several eigenvalues are exactly zero: torch's own gradient of eigh is NaN.
    x = layer(0xBD, 1, 12, 4, 4).double()
    x[..., 2:] = 0
    x.requires_grad_()
    (back,) = torch.autograd.grad(eigen_cam(x).square().sum(), x)
    assert back.isfinite().all()
    assert back.any()


def test_a_component_that_is_not_the_first_alone_has_no_gradient() -> None:
    x = torch.eye(2).reshape(1, 2, 2).requires_grad_()
    (back,) = torch.autograd.grad(eigen_cam(x)[0, 0], x)
    assert back.isfinite().all()


def test_arguments_and_random_state_are_left_alone() -> None:
    x = layer(0xBE, 1, 260, 17, 17)
    before, state = x.clone(), torch.get_rng_state()
    maps = eigen_cam(x)
    kpca_cam(x)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(eigen_cam(x), maps)


@pytest.mark.parametrize("shape", [(2, 64, 5, 5), (2, 6, 5, 5)])
def test_low_precision_is_decomposed_in_high_precision(shape: tuple[int, ...]) -> None:
    x = layer(0xBF, *shape).bfloat16()
    for method in (eigen_cam, kpca_cam):
        found = method(x)
        assert found.dtype == torch.float32
        assert torch.allclose(found, method(x.float()), atol=1e-5 * float(found.max()))


# Kernels.

PAPER_KERNELS: dict[str, Callable[[Array, Array, float], float]] = {
    "sigmoid": lambda x, y, gamma: math.tanh(gamma * float(x @ y) + 1),
    "rbf": lambda x, y, gamma: math.exp(-gamma * float((x - y) @ (x - y))),
    "poly": lambda x, y, gamma: (gamma * float(x @ y) + 1) ** 3,
    "cosine": lambda x, y, _: float(x @ y) / math.sqrt(float(x @ x) * float(y @ y)),
    "linear": lambda x, y, _: float(x @ y),
}


def paper_kpca(x: Tensor, name: str, *, centred: bool) -> Array:
    """Kernel, centring, eigenvector and projection, in float64 loops."""
    maps = []
    for image in x.double().flatten(2).numpy():
        o = image.T - image.T.mean(axis=0) * centred
        count = len(o)
        k = np.zeros((count, count))
        for i in range(count):
            for j in range(count):
                k[i, j] = PAPER_KERNELS[name](o[i], o[j], 1 / image.shape[0])
        ones = np.full((count, count), 1 / count)
        k = k - ones @ k - k @ ones + ones @ k @ ones
        values, vectors = np.linalg.eigh(k)
        maps.append(math.sqrt(values[-1]) * vectors[:, -1])
    return signed(np.stack(maps), x.double().abs().sum(1).numpy())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shape", [(2, 12, 4, 5), (2, 3, 4, 5), (1, 3, 2, 3, 2)])
def test_kpca_cam_is_the_papers_formula(name: str, centred: bool, shape: tuple[int, ...]) -> None:
    x = layer(0xC1, *shape) + 0.01
    expected = paper_kpca(x, name, centred=centred)
    assert off(kpca_cam(x, kernel=name, centred=centred), expected) < 1e-5


@pytest.mark.parametrize(
    "options",
    [{}, {"gamma": 0.3, "coef0": 0.5}, *({"kernel": name} for name in KERNELS)],
)
@pytest.mark.parametrize("shape", [(1, 64, 7, 7), (1, 40, 17, 16)])
def test_kpca_cam_is_that_of_scikit_learn(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = layer(0xC2, *shape)
    o = x[0].flatten(1).double().numpy().T
    theirs = decomposition.KernelPCA(1, **{"kernel": "sigmoid", **options})
    expected = theirs.fit_transform(o - o.mean(axis=0)).T
    found = kpca_cam(x, **options)
    assert off(found, signed(expected, found.numpy())) < 1e-5


def test_the_linear_kernel_is_eigen_cam() -> None:
    x = layer(0xC3, 2, 9, 5, 5)
    assert torch.allclose(kpca_cam(x, kernel="linear"), eigen_cam(x, centred=True), atol=1e-5)


def test_kpca_cam_by_hand() -> None:
    # Two positions 3 apart: K = [[1, e], [e, 1]] with e = exp(-9 / 9), centred (1 - e)/2 [1, -1].
    x = torch.tensor([[[4.0, 1.0]]])
    value = math.sqrt((1 - math.exp(-1)) / 2)
    found = kpca_cam(x, kernel="rbf", gamma=1 / 9)
    assert found.tolist() == [pytest.approx([value, -value])]


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(FedgazeError, match=r"'sigmoyd'; allowed are sigmoid, .*mean 'sigmoid'"):
        kpca_cam(torch.zeros(1, 2, 3), kernel="sigmoyd")


# Peers.


@pytest.mark.parametrize(
    ("peer", "method"),
    [
        ("EigenCAM", lambda a, _: eigen_cam(a, centred=True)),
        ("EigenGradCAM", eigen_grad_cam),
        ("KPCA_CAM", kpca_cam),
    ],
)
def test_maps_are_those_of_pytorch_grad_cam_but_for_the_sign(
    peer: str, method: Callable[[Tensor, Tensor], Tensor]
) -> None:
    peers = pytest.importorskip("pytorch_grad_cam")
    a, g = layer(0xC4, 2, 32, 6, 6), layer(0xC5, 2, 32, 6, 6, relu=False)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    theirs = getattr(peers, peer)(net, [net[0]])
    expected = theirs.get_cam_image(None, None, None, a.numpy(), g.numpy(), False)
    found = method(a, g)
    expected = signed(expected.astype(np.float64).reshape(2, -1), found.numpy())
    assert off(found, expected) < 1e-4


def test_eigen_smoothing_is_that_of_pytorch_grad_cam_but_for_the_sign() -> None:
    peers = pytest.importorskip("pytorch_grad_cam")
    a, g = layer(0xC6, 2, 32, 6, 6), layer(0xC7, 2, 32, 6, 6, relu=False)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    theirs = peers.GradCAM(net, [net[0]])
    expected = theirs.get_cam_image(None, None, None, a.numpy(), g.numpy(), True)
    found = eigen_smooth(a, g.mean((2, 3), keepdim=True))
    expected = signed(expected.astype(np.float64).reshape(2, -1), found.numpy())
    assert off(found, expected) < 1e-4
