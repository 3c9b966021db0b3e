from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import auto_layer, explain, list_layers, resolve_layers

MakeCNN = Callable[..., nn.Module]


def names(model: nn.Module, layers: Any) -> list[str]:
    return list(resolve_layers(model, layers))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("conv1", ["conv1"]),
        (-1, ["conv2"]),
        ("-2", ["conv1"]),
        (1, ["conv2"]),
        ("0", ["conv1"]),
        ("first", ["conv1"]),
        ("middle", ["conv2"]),
        ("last", ["conv2"]),
        (["bn2", "first", "conv1"], ["bn2", "conv1"]),
        (None, []),
        ("auto", []),
        (["auto", "relu"], ["relu"]),
    ],
)
def test_layers_are_found_by_what_people_call_them(
    make_cnn: MakeCNN, layers: Any, expected: Any
) -> None:
    assert names(make_cnn(), layers) == expected


def test_a_module_is_a_layer_and_a_foreign_one_is_not(make_cnn: MakeCNN) -> None:
    model = make_cnn()
    assert names(model, model.bn2) == ["bn2"]
    with pytest.raises(FedgazeError, match="the Conv2d given as a layer is not part"):
        resolve_layers(model, nn.Conv2d(1, 1, 1))
    with pytest.raises(FedgazeError, match="not part of the model"):
        resolve_layers(model, model)


def test_a_name_goes_before_an_index_and_before_a_word() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    assert names(model, "0") == ["0"]
    assert names(model, 0) == ["1"]
    model.add_module("last", nn.ReLU())
    model.add_module("auto", nn.ReLU())
    assert names(model, ["last", "auto"]) == ["last", "auto"]


def test_a_module_with_two_names_has_both_and_is_one_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    model.add_module("again", model[0])
    assert list_layers(model) == ("0", "again")
    assert names(model, "again") == ["again"]
    assert names(model, [model[0], -1]) == ["0"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv33", "no layer 'conv33'; .*did you mean 'conv[12]'"),
        ("zzz", "no layer 'zzz'; allowed are first, middle, last, auto, .* conv1, bn1"),
        (2, "no Conv2d 2: the model has 2"),
        ("-3", "no Conv2d -3: the model has 2"),
        (True, "no layer True"),
        (1.5, r"no layer 1\.5"),
        ([], "no layer was given"),
    ],
)
def test_a_wrong_layer_fails_before_any_work_and_names_the_nearest(
    make_cnn: MakeCNN, layer: Any, message: str
) -> None:
    model = make_cnn()
    model.forward = pytest.fail
    with pytest.raises(FedgazeError, match=message):
        resolve_layers(model, layer)
    with pytest.raises(FedgazeError, match=message):
        explain(model, torch.rand(1, 3, 8, 8), layers=layer)


def test_a_model_without_convolutions_says_so() -> None:
    with pytest.raises(FedgazeError, match="no Conv2d first: the model has 0"):
        resolve_layers(nn.Sequential(nn.Linear(2, 2)), "first")


def test_wrappers_are_no_part_of_names(make_cnn: MakeCNN) -> None:
    model = make_cnn()
    assert list_layers(nn.DataParallel(model)) == list_layers(model)
    assert "conv1" in list_layers(torch.compile(model, backend="eager"))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("densenet121", "features"),
        ("vgg11", "features.19"),
        ("mobilenet_v2", "features"),
        ("efficientnet_b0", "features"),
        ("squeezenet1_1", "classifier.2"),
        ("shufflenet_v2_x0_5", "conv5"),
        ("convnext_tiny", "features"),
        ("swin_t", "norm"),
    ],
)
def test_auto_is_the_last_feature_map(name: str, layer: Any) -> None:
    from torchvision.models import get_model

    model = get_model(name, weights=None).eval()
    assert auto_layer(model, torch.rand(1, 3, 96, 96)) == layer


def head(*parts: Any) -> nn.Sequential:
    model = nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 1, 8, 8))
    return model


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (head(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.ReLU()), "4"),
        (head(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), "1"),
        (head(nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Dropout())), "0.0"),
        (head(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True)), "2"),
        (head(nn.Conv2d(1, 2, 3), nn.Dropout2d(), nn.Identity()), "0"),
        (head(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 6)), "0"),
    ],
)
def test_auto_passes_over_what_only_pools(model: nn.Module, layer: Any) -> None:
    assert auto_layer(model, torch.rand(1, 1, 8, 8)) == layer


def test_auto_runs_one_image_once_for_a_model_and_a_size(make_cnn: MakeCNN) -> None:
    model = make_cnn().train()
    seen = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for _ in range(3):
        assert explain(model, torch.rand(4, 3, 8, 8)).layers == ("relu",)
    assert seen == [1, 4, 4, 4]
    explain(model, torch.rand(2, 3, 6, 6))
    assert seen[4:] == [1, 2]
    assert all(module.training for module in model.modules())
    # A layer that was replaced is not remembered.
    model.relu = nn.Identity()
    assert auto_layer(model, torch.rand(1, 3, 8, 8)) == "bn2"


def test_auto_says_what_it_cannot_do() -> None:
    with pytest.raises(FedgazeError, match="no layer of Sequential returns a feature map"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(1, 1, 2, 2))


def test_auto_chooses_the_tokens_before_the_last_attention() -> None:
    from torchvision.models import VisionTransformer

    vit = VisionTransformer(32, 16, 2, 2, 8, 8).eval()
    found = explain(vit, torch.rand(1, 3, 32, 32), relu=False)
    assert found.layers == ("encoder.layers.encoder_layer_1.ln_1",)
    assert found.raw.shape == (1, 2, 2)


class Packing(nn.Module):
    """A block that returns its map in a tuple, or in a mapping, which is no map."""

    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.pack = nn.Conv2d(1, 2, 3), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.conv(x))


class Packed(nn.Module):
    def __init__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.block, self.unpack = Packing(pack), unpack

    def forward(self, x: Tensor) -> Tensor:
        return self.unpack(self.block(x)).mean((2, 3))


def test_auto_reads_the_first_of_a_tuple_and_passes_over_other_packing() -> None:
    images = torch.rand(2, 1, 5, 5)
    in_tuple = Packed(lambda maps: (maps, None), lambda packed: packed[0])
    assert explain(in_tuple, images).layers == ("block",)
    in_mapping = Packed(lambda maps: {"maps": maps}, lambda packed: packed["maps"])
    assert explain(in_mapping, images).layers == ("block.conv",)


def test_auto_works_in_inference_mode(make_cnn: MakeCNN) -> None:
    with torch.inference_mode():
        assert explain(make_cnn(), torch.rand(2, 3, 8, 8)).layers == ("relu",)
