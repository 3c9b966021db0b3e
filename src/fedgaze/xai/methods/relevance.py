"""Methods that run the model as always, and go back to the image by rules of their own."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.xai.methods.cam import grad_cam_weights, weighted, wide
from fedgaze.xai.rules import Bound, deconvnet, guided, lrp_rules
from fedgaze.xai.runner import Runner

__all__ = ["deconvnet_maps", "guided_backprop", "guided_grad_cam", "lrp"]

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def guided_backprop(runner: Runner) -> Tensor:
    """The gradient of the score at the image, of which each ReLU lets back what is positive.

    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015,
    Sec. 3.4; see `fedgaze.xai.rules.guided`, also for which ReLUs peers miss.

    It looks sharp, and depends little on the upper layers' weights: Adebayo et al., "Sanity Checks
    for Saliency Maps", NeurIPS 2018.

    Args:
        runner: The model and N images, with S targets each.

    Returns:
        ``(N, S, C, *size)``, signed, in float32 at least.

    Raises:
        FedgazeError: The model has no ReLU.
    """
    return _at_images(runner, guided)


def deconvnet_maps(runner: Runner) -> Tensor:
    """What a deconvolutional network makes of the score: every ReLU rectifies what comes back.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, Sec. 2.1;
    see `fedgaze.xai.rules.deconvnet`. The paper begins at one unit of a feature map; this begins at
    the score, as Captum does.

    Args:
        runner: The model and N images, with S targets each.

    Returns:
        ``(N, S, C, *size)``, signed, in float32 at least.

    Raises:
        FedgazeError: The model has no ReLU.
    """
    return _at_images(runner, deconvnet)


def guided_grad_cam(runner: Runner) -> Tensor:
    """Guided backpropagation, where Grad-CAM looks: their product, element by element.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, Sec. 3, "Guided Grad-CAM": Grad-CAM's map, not normalised, brought to
    the size of the image by bilinear interpolation. Captum's
    GuidedGradCam takes the nearest value unless told otherwise; pytorch-grad-cam's example
    multiplies by a map in [0, 1].

    Args:
        runner: The model, the layer of the map, and N images, with S targets each.

    Returns:
        ``(N, S, C, *size)``, signed, in float32 at least.

    Raises:
        FedgazeError: The model has no ReLU.
    """
    activations, gradients = runner.captured()
    size = tuple(runner.images.shape[2:])
    columns = () if gradients is None else gradients.unbind(1)
    maps = [weighted(activations, grad_cam_weights(activations, each)) for each in columns]
    upsampled = F.interpolate(torch.stack(maps, dim=1), size, mode=_MODES[len(size)])
    return upsampled[:, :, None] * _at_images(runner, guided)


def lrp(
    runner: Runner,
    *,
    composite: str = "epsilon_plus",
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    first: str | None = None,
    low: Bound = None,
    high: Bound = None,
) -> Tensor:
    """Layer-wise relevance propagation: each pixel's part in the score.

    The score itself is the relevance of the output, and layer by layer the relevance of what comes
    out is shared among what goes in: Bach et al., "On Pixel-Wise Explanations for Non-Linear
    Classifier Decisions by Layer-Wise Relevance Propagation", PLOS ONE 2015; Montavon et al.,
    "Layer-Wise Relevance Propagation: An Overview", 2019. Which rule a layer gets is the
    composite's matter (names as in zennit):

    ==========================  ================  ==============  ===========
    composite                   convolutions      dense layers    first layer
    ==========================  ================  ==============  ===========
    epsilon                     epsilon           epsilon         as its kind
    epsilon_plus                z^+               epsilon         as its kind
    epsilon_plus_flat           z^+               epsilon         flat
    epsilon_gamma               gamma             epsilon         as its kind
    epsilon_gamma_box           gamma             epsilon         z^B
    epsilon_alpha2_beta1        alpha 2, beta 1   epsilon         as its kind
    epsilon_alpha2_beta1_flat   alpha 2, beta 1   epsilon         flat
    ==========================  ================  ==============  ===========

    A first layer is one that sees the image, with no layer before it (zennit: the first module by
    order of definition; its z^B is for convolutions only). Everything else:

    - A BatchNorm right behind a layer is one linear map with it, found as the model runs, and the
      rule is that map's. zennit needs a canonizer that knows the architecture; its own merges what
      is written in sequence (in DenseNet also what is not), and keeps the BatchNorm's small
      constant, which costs 5e-6 a layer. One that stands alone, as those before the convolutions
      of a DenseNet, gets the epsilon rule, and its shift keeps a share as any bias does; zennit
      passes relevance on, so that zeros get some, which what made them cannot share.
    - Activations pass relevance on, smooth ones as well, and so do factors that do not depend on
      the image, dropout, and (Achtibat et al., "AttnLRP", ICML 2024) layer and group
      normalisation. Max pooling gives it to the maximum. What the model does to pixels
      before its first layer (other units) changes nothing.
    - Average pooling, means, interpolation and sums share it by contribution (residuals, too; what
      is added that does not depend on the image keeps its share, as a bias does).
    - Where a gate (the sigmoid of squeeze and excitation) multiplies a signal, the signal takes
      all: Arras et al., "Explaining Recurrent Neural Network Predictions in Sentiment Analysis",
      EMNLP workshop 2017.
    - Anything else is refused by its name. Attention is not covered, and so are softmax,
      logarithms and products of two signals: targets are logits, their sums and differences.

    So the sum of all pixels is the score, less what biases and the epsilons of denominators keep.
    Models in half precision round relevance between layers.

    Args:
        runner: The model and N images, with S targets each.
        composite: One of the names above.
        epsilon: Of the epsilon rule, 0 or more. Other denominators get 1e-6.
        gamma: Of the gamma rule, 0 or more: how much positive weights are favoured.
        first: ``"flat"``, ``"w_square"`` or ``"box"`` for the first layer, instead of the
            composite's rule.
        low: The least value that pixels can have as the first layer gets them, for z^B: a number,
            one a channel, or a tensor that goes with the images.
        high: The greatest.

    Returns:
        ``(N, S, C, *size)``, signed, in float32 at least.

    Raises:
        FedgazeError: An option cannot be used, pixels lie outside the box, maps are to be
            differentiated, or the model or target does something for which there is no rule.
    """

    def rules() -> AbstractContextManager[Any]:
        return lrp_rules(composite, epsilon=epsilon, gamma=gamma, first=first, low=low, high=high)

    rules()  # options are judged before the model runs
    shares = _at_images(runner, rules)
    return shares * wide(runner.clean).reshape(*shares.shape[:2], *[1] * (shares.dim() - 2))


def _at_images(runner: Runner, within: Callable[[], AbstractContextManager[Any]]) -> Tensor:
    """What comes back to the images themselves: ``(N, S, C, *size)``."""
    found = list(runner.gradients(None, within=within))
    order = torch.cat([n for n, _, _ in found]).argsort()
    return wide(torch.cat([g for _, _, g in found]))[order]
