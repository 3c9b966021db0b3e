"""Deep feature factorisation, against planted concepts, a peer, loops and real weights."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.concepts import Concepts
from fedgaze.xai.factorise import factorise

CNN = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Planted concepts


class Planted(nn.Module):
    """Two channels of the image become two concepts in four channels."""

    vectors = torch.tensor([[1.0, 2, 0, 0], [0, 0, 3, 1]])

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 4, 1, bias=False)
        self.mix.weight.data = self.vectors.T[..., None, None].clone()
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 3)
        self.head.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 1], [-1, 0, -1, 0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.mix(x)).mean((2, 3)))


@pytest.fixture
def planted() -> tuple[nn.Module, Tensor]:
    images = torch.zeros(2, 2, 4, 4)
    images[0, 0, :2] = torch.tensor([8.0, 4, 4, 4])  # concept 0: above, only in the first
    images[0, 1, 3, 1:] = 2  # concept 1: below
    images[1, 1, :, 3] = 1
    return Planted(), images


def test_planted_concepts_are_found(planted: tuple[nn.Module, Tensor]) -> None:
    model, images = planted
    found = factorise(model, images, "relu", concepts=2)
    assert found.layer == "relu"
    assert found.error < 1e-5
    truth = images / images.amax((0, 2, 3), keepdim=True)
    assert torch.allclose(found.raw, truth, atol=1e-5)
    assert torch.allclose(found.maps, truth, atol=1e-5)
    # At its strongest place, 8 and 2 times the vector.
    assert torch.allclose(found.vectors, torch.tensor([[8.0, 16, 0, 0], [0, 0, 6, 2]]), atol=1e-4)
    # By hand: the mean of the concept's place times the head's weights of its channels.
    means = torch.tensor([[40 / 16, 6 / 16], [0, 4 / 16]])
    shares = torch.tensor([[1.0, 0, -1], [0, 4, -3]])
    assert torch.allclose(found.contributions, means[..., None] * shares, atol=1e-4)
    assert torch.allclose(found.scores, found.contributions.mean(0))
    assert found.labels(["cat", "dog", "car"]) == ("cat", "dog")
    assert found.labels(top=1) == ("class 0", "class 1")


def test_planted_concepts_are_those_of_pytorch_grad_cam(
    planted: tuple[nn.Module, Tensor],
) -> None:
    from pytorch_grad_cam import DeepFeatureFactorization

    model, images = planted
    found = factorise(model, images, "relu", concepts=2)
    vectors, maps = DeepFeatureFactorization(model, model.relu)(images, n_components=2)
    theirs = np.stack(maps)  # (N, k, H, W)
    order = np.argsort(vectors[2])  # which of them is the one of channels 2 and 3
    for concept, other in enumerate(order):
        # It divides the map of each image by its own maximum.
        for image in range(2):
            own = found.maps[image, concept].numpy()
            np.testing.assert_allclose(theirs[image, other], own / max(own.max(), 1e-9), atol=0.02)
        one, two = found.vectors[concept].numpy(), vectors[:, other]
        assert one @ two > 0.999 * np.linalg.norm(one) * np.linalg.norm(two)


def test_contributions_are_the_tail_of_each_concept_alone(make_cnn: CNN) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    tail = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 6 * 8, 5))
    model = nn.Sequential(body, tail).eval()
    images = torch.randn(3, 3, 10, 12)
    found = factorise(model, images, "0", concepts=3)
    for n, j in itertools.product(range(3), range(3)):
        alone = torch.einsum("hw,k->khw", found.raw[n, j], found.vectors[j])
        with torch.no_grad():
            truth = tail(alone[None]) - tail(torch.zeros(1, 6, 8, 10))
        assert torch.allclose(found.contributions[n, j], truth[0], atol=1e-5)


def test_contributions_add_up_where_the_tail_is_linear(make_cnn: CNN) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    images = torch.randn(5, 3, 9, 9)
    found = factorise(model, images, "1", concepts=8)
    rebuilt = torch.einsum("njhw,jk->nkhw", found.raw, found.vectors)
    truth = rebuilt.mean((2, 3)) @ model[4].weight.T
    assert torch.allclose(found.contributions.sum(1), truth, atol=1e-4)
    activations = model[1](model[0](images)).detach()
    error = (activations - rebuilt).norm() / activations.norm()
    assert found.error == pytest.approx(float(error), abs=1e-5)


# How it behaves


def test_of_a_layer_used_twice_the_last_use_is_explained(make_cnn: CNN) -> None:
    model, images = make_cnn(), torch.randn(2, 3, 10, 12)
    found = factorise(model, images, "relu", concepts=2)
    rebuilt = torch.einsum("njhw,jk->njkhw", found.raw, found.vectors)
    truth = rebuilt.mean((3, 4)) @ model.fc.weight.T
    assert torch.allclose(found.contributions, truth, atol=1e-5)


def same(one: Concepts, other: Concepts, tolerance: float = 1e-4) -> bool:
    pairs = ((one.maps, other.maps), (one.vectors, other.vectors), (one.scores, other.scores))
    return all(
        torch.allclose(a.float(), b.float(), atol=tolerance, rtol=tolerance) for a, b in pairs
    )


def test_results_repeat_whatever_the_batches_and_the_random_state(make_cnn: CNN) -> None:
    model, images = make_cnn().train(), torch.randn(7, 3, 10, 12)
    first = factorise(model, images, "relu", concepts=3)
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    assert same(first, factorise(model, images, "relu", concepts=3), 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    for batch_size in (1, 3, 100):
        assert same(first, factorise(model, images, "relu", concepts=3, batch_size=batch_size))
    assert same(first, factorise(model.double(), images, "relu", concepts=3), 2e-3)
    assert model.training
    assert all(not each._forward_hooks for each in model.modules())


def test_concepts_stand_by_their_mass_and_reach_one(make_cnn: CNN) -> None:
    found = factorise(make_cnn(), torch.randn(4, 3, 10, 12), "relu", concepts=4)
    mass = found.raw.sum((0, 2, 3)) * found.vectors.sum(1)
    assert (mass.diff() <= 0).all()
    for maps in (found.maps, found.raw):
        assert maps.min() >= 0
        assert torch.allclose(maps.amax((0, 2, 3)), torch.ones(4))
    assert found.maps.shape == (4, 4, 10, 12)
    assert not found.maps.requires_grad
    assert len(found) == 4


def test_half_precision_is_factored_in_single(make_cnn: CNN) -> None:
    images = torch.randn(4, 3, 10, 12)
    single = factorise(make_cnn(), images, "relu", concepts=3)
    half = factorise(make_cnn().bfloat16(), images, "relu", concepts=3)
    assert half.maps.dtype == torch.float32
    assert half.error == pytest.approx(single.error, abs=0.02)


def test_tokens_and_volumes() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=6)
    nn.init.normal_(vit.heads.head.weight)
    images = torch.randn(3, 3, 32, 32)
    with pytest.raises(FedgazeError, match=r"negative activations \(down to -.*or relu=True"):
        factorise(vit, images)
    found = factorise(vit, images, concepts=3, relu=True)
    assert found.layer == "encoder.layers.encoder_layer_1.ln_1"
    assert found.raw.shape == (3, 3, 4, 4)
    assert found.contributions.shape == (3, 3, 6)
    assert found.contributions.any()
    volumes = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    found = factorise(volumes, torch.randn(2, 1, 5, 6, 7), concepts=2)
    assert found.maps.shape == (2, 2, 5, 6, 7)


def test_a_dead_layer_has_no_concepts_and_no_nan(make_cnn: CNN) -> None:
    model = make_cnn()
    model.bn2.bias.data.fill_(-100)
    found = factorise(model, torch.randn(2, 3, 10, 12), "relu", concepts=2)
    assert not found.maps.any()
    assert not found.scores.any()
    assert found.error == 0
    assert found.labels() == ("", "")


def test_anything_can_be_scored(planted: tuple[nn.Module, Tensor]) -> None:
    model, images = planted
    found = factorise(model, images, "relu", 2, target=lambda logits: logits[:, 1] - logits[:, 0])
    whole = factorise(model, images, "relu", 2)
    assert torch.allclose(found.scores[:, 0], whole.scores[:, 1] - whole.scores[:, 0], atol=1e-5)
    dense = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU())
    with pytest.raises(FedgazeError, match="or a function as target"):
        factorise(dense, images, "1", 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concepts": 0}, "concepts is 0; layer 'relu' has 32 positions .* 4 channels.* 1 to 4"),
        ({"concepts": 5}, "allowed is 1 to 4"),
        ({"layers": ["relu", "mix"]}, "there are 2 layers; concepts are of one layer"),
        ({"layers": "rely"}, "no layer 'rely'.*did you mean 'relu'"),
        ({"batch_size": 0}, "batch_size is 0; allowed is 1 and more"),
    ],
)
def test_what_cannot_be_factored_is_refused(
    planted: tuple[nn.Module, Tensor], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(FedgazeError, match=message):
        factorise(*planted, **{"layers": "relu", "concepts": 2, **change})


def test_nan_is_refused(planted: tuple[nn.Module, Tensor]) -> None:
    model, images = planted
    with pytest.raises(FedgazeError, match="layer 'relu' has activations that are NaN"):
        factorise(model, images * torch.nan, "relu", 2)


# What a person sees


def test_overlay_paints_the_strongest_concept_on_grey(planted: tuple[nn.Module, Tensor]) -> None:
    found = factorise(*planted, "relu", concepts=2)
    pictures = torch.zeros(2, 3, 4, 4)
    pictures[:, 0] = 1  # red, of luminance 0.299
    painted = found.overlay(pictures, alpha=0.5) / 255
    blue, vermillion = torch.tensor([[0, 0x72, 0xB2], [0xD5, 0x5E, 0]]) / 255
    assert torch.allclose(painted[0, 0, 0], 0.5 * 0.299 + 0.5 * blue, atol=3e-3)
    weight = 0.5 * 0.5**0.5  # half as strong as elsewhere
    assert torch.allclose(painted[0, 1, 3], (1 - weight) * 0.299 + weight * blue, atol=3e-3)
    assert torch.allclose(painted[0, 3, 1], 0.5 * 0.299 + 0.5 * vermillion, atol=3e-3)
    assert torch.allclose(painted[1, 0, 0], torch.full((3,), 0.299), atol=3e-3)
    assert found.overlay(torch.zeros(2, 1, 9, 7, dtype=torch.uint8)).shape == (2, 9, 7, 3)
    for wrong in (torch.zeros(3, 3, 4, 4), torch.zeros(2, 2, 4, 4)):
        with pytest.raises(FedgazeError, match="do not go with heatmaps"):
            found.overlay(wrong)
    with pytest.raises(FedgazeError, match=r"alpha is 1\.5"):
        found.overlay(pictures, alpha=1.5)
    with pytest.raises(FedgazeError, match="2 class names for 3 classes"):
        found.labels(["cat", "dog"])
    with pytest.raises(FedgazeError, match="top is 4; allowed is 1 to 3"):
        found.labels(top=4)


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1
    )


# Machado, Oliveira and Fernandes, IEEE TVCG 2009: protanopia, deuteranopia, tritanopia.
CONES = (
    np.eye(3),
    [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    [[0.3673, 0.8606, -0.2280], [0.2803, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]],
    [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
)


@pytest.mark.parametrize(("count", "apart"), [(2, 60), (3, 25), (5, 19), (7, 15)])
def test_colours_stay_apart_without_full_colour_vision(count: int, apart: float) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2))
    found = factorise(model, torch.randn(1, 1, 8, 8), "1", concepts=count)
    colours = found.colours.double().numpy()
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for cones in CONES:
        seen = lab(np.clip(linear @ np.array(cones).T, 0, 1))
        pairs = itertools.combinations(seen, 2)
        assert min(np.linalg.norm(a - b) for a, b in pairs) > apart


def test_the_picture_has_a_legend(planted: tuple[nn.Module, Tensor]) -> None:
    found = factorise(*planted, "relu", concepts=2)
    pictures = torch.ones(2, 3, 320, 240)
    image = found.picture(pictures, ["cat", "dog", "car"])
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    # Both overlays stand side by side, and each colour below them.
    assert image.width >= 2 * 240
    legend = pixels[320 + 12 :].reshape(-1, 3)
    for colour in found.colours:
        wanted = (colour * 255).round().numpy()
        assert (np.abs(legend - wanted).max(1) <= 1).sum() > 100
    overlays = found.overlay(pictures)[1].numpy()
    corner = pixels[12 : 12 + 320, 24 + 240 : 24 + 480]
    assert np.array_equal(corner[:, :8], overlays[:, :8])
    # Pictures in which no number could be read are drawn larger.
    assert found.picture(pictures[..., ::10, ::10]).width >= 2 * 216


def test_dog_and_cat_on_real_weights(real_data: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    from PIL import Image
    from safetensors.torch import load_file

    model = torchvision.models.squeezenet1_1(weights=None)
    model.load_state_dict(load_file(real_data / "weights/squeezenet1_1_imagenet.safetensors"))
    index = json.loads((real_data / "imagenet_class_index.json").read_text())
    names = [index[str(i)][1] for i in range(1000)]
    transforms = torchvision.transforms
    picture = Image.open(real_data / "photos/dog_and_cat.png").convert("RGB")
    pixels = transforms.ToTensor()(picture)[None]
    images = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(pixels)
    found = factorise(model, images, "features", concepts=5)
    labels = found.labels(names)
    rows = torch.linspace(0, 1, found.maps.shape[2])[:, None]
    height = (found.maps[0] * rows).sum((1, 2)) / found.maps[0].sum((1, 2))
    cats = [i for i, label in enumerate(labels) if "tabby" in label or "tiger_cat" in label]
    dogs = [i for i, label in enumerate(labels) if "boxer" in label or "mastiff" in label]
    assert len(cats) == 1
    assert len(dogs) >= 2
    assert height[cats[0]] > max(height[i] for i in dogs)  # the cat lies below the dog
