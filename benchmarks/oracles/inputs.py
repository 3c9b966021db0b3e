"""Loops from papers, in float64, for methods that judge the numbers of the image."""

import numpy as np
import torch
from torch import Tensor, nn

from oracles.cases import Array, Case, wide
from oracles.draws import noisy
from oracles.runs import enlarged, unit


def gradients(case: Case, images: Tensor) -> Array:
    """``(N, 3, H, W)``: of each image's logit."""
    leaf = images.clone().requires_grad_()
    logits = case.copy()(leaf)
    total = torch.stack([row[c] for row, c in zip(logits, case.classes, strict=True)]).sum()
    return wide(torch.autograd.grad(total, leaf)[0])


def smooth_grad(case: Case, samples: int) -> Array:
    found: Array = np.mean([gradients(case, noisy(case.images, v)) for v in range(samples)], 0)
    return found


def var_grad(case: Case, samples: int) -> Array:
    found: Array = np.var([gradients(case, noisy(case.images, v)) for v in range(samples)], 0)
    return found


def full_grad(case: Case) -> Array:
    """Psi of image times gradient, and of each layer's bias times gradient, with plain hooks."""
    size = tuple(case.images.shape[2:])
    model = case.copy()
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, _inputs: object, output: Tensor) -> None:
        if isinstance(module, nn.BatchNorm2d):
            mean, variance = module.running_mean, module.running_var
            if mean is None or variance is None:
                raise ValueError("a BatchNorm without statistics has no bias")
            bias = module.bias - mean * module.weight / (variance + module.eps).sqrt()
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            bias = module.bias
        else:
            return
        seen.append((bias, output))

    for module in model.modules():
        module.register_forward_hook(keep)
    leaf = case.images.clone().requires_grad_()
    logits = model(leaf)
    total = torch.stack([row[c] for row, c in zip(logits, case.classes, strict=True)]).sum()
    slopes = torch.autograd.grad(total, [leaf, *(output for _, output in seen)])

    def psi(strength: Array) -> Array:
        scaled = [unit(np.abs(each)) for each in strength]
        return sum((enlarged(each, size) for each in scaled if each is not None), np.zeros(size))

    maps = []
    for n, image in enumerate(case.images.double().numpy()):
        map_ = psi(image * wide(slopes[0][n]))
        for (bias, _), slope in zip(seen, slopes[1:], strict=True):
            map_ += psi(wide(bias)[:, None, None] * wide(slope[n]))
        maps.append(map_)
    return np.stack(maps)
