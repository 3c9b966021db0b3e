"""Randomisation: maps that look at the model, and maps that do not."""

import pytest
import torch
from torch import Tensor, nn

from fedgaze import measure
from fedgaze.errors import FedgazeError
from fedgaze.measure import randomised
from fedgaze.xai import Runner, explain


def edges(_model: nn.Module, images: Tensor, _classes: Tensor) -> Tensor:
    return images[:, 0]


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return explain(model, images, "gradcam", classes, "0", relu=False).heatmaps


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in model.state_dict().items()}


def changed(first: dict[str, Tensor], second: nn.Module) -> set[str]:
    held = second.state_dict()
    return {name.split(".")[0] for name in first if not torch.equal(first[name], held[name])}


def test_layers_become_random_from_the_last_down(model: nn.Module) -> None:
    before = weights(model)
    cascade = [(name, changed(before, each)) for name, each in randomised(model)]
    assert cascade == [("4", {"4"}), ("0", {"0", "4"})]
    alone = [(name, changed(before, each)) for name, each in randomised(model, order="independent")]
    assert alone == [("4", {"4"}), ("0", {"0"})]
    assert not changed(before, model)


def test_random_weights_depend_on_the_seed_alone(model: nn.Module) -> None:
    state = torch.get_rng_state()
    drawn = [weights(list(randomised(model, seed=seed))[-1][1]) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not torch.equal(drawn[0]["4.weight"], drawn[2]["4.weight"])


def test_parameters_without_a_way_to_be_drawn_are_shuffled() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.arange(50.0))

    ((name, found),) = randomised(Scale())
    values = found.factor.detach()
    assert name == ""
    assert not torch.equal(values, torch.arange(50.0))
    assert torch.equal(values.sort().values, torch.arange(50.0))


@pytest.mark.parametrize("similarity", ["ssim", "spearman"])
@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_what_does_not_look_at_the_model_stays(
    model: nn.Module, images: Tensor, order: str, similarity: str
) -> None:
    how = {"order": order, "similarity": similarity}
    what = model, images, torch.tensor([0, 3, 1])
    still = measure.randomisation_curve(*what, edges(*what), edges, **how)
    torch.testing.assert_close(still.float(), torch.ones(3, 2))
    heatmaps = grad_cam(*what)
    found = measure.randomisation_curve(*what, heatmaps, grad_cam, **how)
    assert found.shape == (3, 2)
    assert (found < 0.95).all()
    mean = measure.parameter_randomisation(*what, heatmaps, grad_cam, **how)
    torch.testing.assert_close(mean, found.mean(1))


def test_another_class_has_another_map(runner: Runner, model: nn.Module) -> None:
    seen: list[Tensor] = []

    def of_class(images: Tensor, classes: Tensor) -> Tensor:
        seen.append(classes)
        return grad_cam(model, images, classes)

    heatmaps = of_class(runner.images, torch.tensor([0, 3, 1]))
    found = measure.random_logit(runner, heatmaps, of_class)
    assert (seen[1] != seen[0]).all()
    assert ((seen[1] >= 0) & (seen[1] < 5)).all()
    assert (found < 0.95).all()
    blind = measure.random_logit(runner, runner.images[:, 0], lambda x, _: x[:, 0])
    torch.testing.assert_close(blind.float(), torch.ones(3))


def test_wrong_words_are_named(model: nn.Module, images: Tensor) -> None:
    what = model, images, torch.tensor([0, 3, 1])
    with pytest.raises(FedgazeError, match="similarity is 'sim'; allowed are ssim, spearman"):
        measure.parameter_randomisation(*what, images[:, 0], edges, similarity="sim")
    with pytest.raises(FedgazeError, match=r"order is 'cascade'.*cascading"):
        list(randomised(model, order="cascade"))
