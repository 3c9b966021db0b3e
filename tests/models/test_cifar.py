"""The small residual network, with somebody else's weights in it."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fedgaze.data import load_dataset
from fedgaze.errors import FedgazeError
from fedgaze.models import CifarResNet, build_model, open_classifier, plan_model, without_weights
from fedgaze.train import evaluate
from fedgaze.xai import explain

WEIGHTS = "weights/resnet20-12fca82f.th"


def test_published_weights_recognise_what_they_should(real_data: Path) -> None:
    model = CifarResNet(weights=str(real_data / WEIGHTS))
    cifar = load_dataset("npz", real_data / "arrays" / "cifar10_test_jpeg_2000.npz")
    # 0.8135 of these 2,000, which were recompressed; its author reports 0.917 of the originals.
    assert evaluate(model, cifar.train).accuracy > 0.8
    assert evaluate(model, cifar.test).accuracy > 0.79
    # Without its own normalisation it does worse.
    model.mean.zero_()
    assert evaluate(model, cifar.test).accuracy < 0.75


def test_logits_are_those_of_the_paper_s_arithmetic(real_data: Path) -> None:
    """The network once more, as functions of the weights."""
    w = torch.load(real_data / WEIGHTS, map_location="cpu", weights_only=True)["state_dict"]
    w = {name.removeprefix("module."): value for name, value in w.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(w[f"{name}.{key}"] for key in keys))

    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    x = norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1").relu()
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            at = f"layer{stage}.{block}"
            step = 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, w[f"{at}.conv1.weight"], stride=step, padding=1), f"{at}.bn1")
            y = norm(F.conv2d(y.relu(), w[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if step == 2:
                zeros = torch.zeros(3, x.shape[1] // 2, *y.shape[2:])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            x = (x + y).relu()
    expected = x.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]
    model = CifarResNet(weights=str(real_data / WEIGHTS)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_depth_says_how_many_layers_have_weights() -> None:
    for depth in (8, 20, 56):
        model = CifarResNet(depth, num_classes=7)
        layers = [each for name, each in model.named_parameters() if each.dim() > 1]
        assert len(layers) == depth
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert sum(each.numel() for each in CifarResNet(20).parameters()) == 269_722  # 0.27 million
    for depth in (2, 18, 21):
        with pytest.raises(FedgazeError, match=f"depth is {depth}; allowed are 8, 14, 20, 26"):
            CifarResNet(depth)


def test_weights_that_do_not_fit_or_are_not_there(real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(FedgazeError, match="does not fit CifarResNet"):
        CifarResNet(56, weights=str(real_data / WEIGHTS))
    with pytest.raises(FedgazeError, match=r"'linear.weight', which is 10×64 in the file and 3×64"):
        CifarResNet(20, num_classes=3, weights=str(real_data / WEIGHTS))
    with pytest.raises(FedgazeError, match=r"none.th is not a file"):
        CifarResNet(weights=str(tmp_path / "none.th"))


def test_a_task_names_it_and_a_picture_is_brought_to_its_size(
    real_data: Path, tmp_path: Path
) -> None:
    arguments = {"weights": str(real_data / WEIGHTS)}
    model = build_model("fedgaze.models.CifarResNet", None, arguments, num_classes=10)
    assert isinstance(model, CifarResNet)
    builder, given = plan_model("fedgaze.models.CifarResNet", None, arguments, num_classes=10)
    assert without_weights(builder, given) == {"num_classes": 10}  # a file of somebody's own
    classifier = open_classifier(
        "fedgaze.models.CifarResNet", checkpoint=real_data / WEIGHTS, classes=None
    )
    assert (classifier.preprocess.crop, classifier.preprocess.channels) == ((32, 32), 3)


def test_it_shows_where_it_looks() -> None:
    torch.manual_seed(0)
    explanation = explain(CifarResNet(8), torch.rand(2, 3, 32, 32))
    assert explanation.layers == ("layer3",)
    assert explanation.raw.shape == (2, 8, 8)
