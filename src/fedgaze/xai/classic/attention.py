"""Attention rollout under its classic name."""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.classic.device import on_cuda
from fedgaze.xai.classic.pictures import Picture, read_images
from fedgaze.xai.explainer import explain
from fedgaze.xai.methods.rollout import HEAD_FUSIONS

__all__ = ["AttentionRollout"]


class AttentionRollout:
    """Attention rollout of a vision transformer: a thin face of `fedgaze.explain`.

    It is that of `attention_rollout`: with ``discard_ratio=0`` exactly the paper's (Abnar and
    Zuidema, ACL 2020), with more as J. Gildenblat's vit-explain means it. Code of this name in
    other projects differs: it adds the identity before it discards, and multiplies the blocks in
    the opposite order.

    Args:
        model: A vision transformer of torchvision, timm, transformers or your own.
        head_fusion: How the heads become one: ``"mean"``, ``"max"`` or ``"min"``.
        discard_ratio: Which share of the attentions, the lowest, is left out, in [0, 1).
        use_cuda: As for `GradCAMConfig`.

    Raises:
        FedgazeError: A value cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        head_fusion: str = "mean",
        discard_ratio: float = 0.1,
        use_cuda: bool = True,
    ) -> None:
        if head_fusion not in HEAD_FUSIONS:
            raise FedgazeError(
                f"head_fusion is {head_fusion!r}; allowed are {', '.join(HEAD_FUSIONS)}"
                f"{nearest(str(head_fusion), HEAD_FUSIONS)}"
            )
        if not 0 <= discard_ratio < 1:
            raise FedgazeError(f"discard_ratio is {discard_ratio}; allowed is 0 up to, not with, 1")
        self.model = model
        self.head_fusion = head_fusion
        self.discard_ratio = discard_ratio
        self.use_cuda = use_cuda

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove_hooks()

    def remove_hooks(self) -> None:
        """Do nothing: attention is watched only while a call lasts."""

    def generate_attention_map(
        self, image: Picture, reshape_to_grid: bool = True
    ) -> NDArray[np.float32]:
        """Tell how much of what the model reads at the end comes from each patch.

        Args:
            image: ``(C, H, W)`` or ``(1, C, H, W)``, preprocessed as the model wants it; or an
                array ``(H, W, C)`` or a PIL image, which are brought to [0, 1], and no further.
            reshape_to_grid: Whether patches are laid out as they lie over the image.

        Returns:
            float32 ``(h, w)``, or ``(h w,)`` row by row: shares, all together at most 1 (class and
            register tokens have theirs too).

        Raises:
            FedgazeError: No attention maps were captured, or it is more than one image.
        """
        images = read_images(image, self.model)
        if len(images) != 1:
            raise FedgazeError(f"the input holds {len(images)} images; allowed is one")
        with on_cuda(self.model, self.use_cuda):
            found = explain(
                self.model,
                images,
                "attention_rollout",
                head_fusion=self.head_fusion,
                discard_ratio=self.discard_ratio,
            )
        grid: NDArray[np.float32] = found.raw[0].float().cpu().numpy()
        return grid if reshape_to_grid else grid.reshape(-1)
