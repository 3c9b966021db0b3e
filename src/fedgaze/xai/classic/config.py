"""The settings of the classic API."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.layers import Layer
from fedgaze.xai.maps import INTERPOLATIONS

__all__ = ["GradCAMConfig"]


@dataclass
class GradCAMConfig:
    """How a `GradCAM` explains.

    Attributes:
        target_layers: Names of layers, or whatever else `resolve_layers` takes.
        use_cuda: Whether to run on CUDA. Without CUDA it runs on the CPU all the same. A model on
            the CPU is on CUDA for the time of a call, and back on the CPU after it.
        relu_on_gradients: Whether negative gradients count as zero.
        eigen_smooth: Whether the first principal component of the weighted activations takes the
            place of their sum.
        use_abs_gradients: Whether gradients count by their size, without their sign.
        batch_size: How many images, or variants of images, run at once.
        output_size: The size ``(H, W)`` of the heatmaps; None for that of the images.
        interpolation_mode: How maps are brought to that size: ``"bilinear"``, ``"bicubic"`` or
            ``"nearest"``.
        normalize_heatmap: Whether each heatmap is divided by its maximum. Otherwise it is the raw
            map, which has no upper bound, at that size.

    Raises:
        FedgazeError: A value cannot be used.

    >>> GradCAMConfig(interpolation_mode="bilinaer")
    Traceback (most recent call last):
    fedgaze.errors.FedgazeError: interpolation_mode is 'bilinaer'; allowed are bilinear, ...
    """

    target_layers: Sequence[Layer] = field(default_factory=lambda: ["layer4"])
    use_cuda: bool = True
    relu_on_gradients: bool = False
    eigen_smooth: bool = False
    use_abs_gradients: bool = False
    batch_size: int = 32
    output_size: tuple[int, int] | None = None
    interpolation_mode: str = "bilinear"
    normalize_heatmap: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.target_layers, str):
            self.target_layers = [self.target_layers]
        if not self.target_layers:
            raise FedgazeError(
                "target_layers cannot be empty; name at least one layer, such as 'layer4'"
            )
        if self.interpolation_mode not in INTERPOLATIONS:
            raise FedgazeError(
                f"interpolation_mode is {self.interpolation_mode!r}; allowed are "
                f"{', '.join(INTERPOLATIONS)}"
                f"{nearest(str(self.interpolation_mode), INTERPOLATIONS)}"
            )
        if not _is_positive(self.batch_size):
            raise FedgazeError(
                f"batch_size is {self.batch_size!r}; allowed is a whole number from 1"
            )
        if self.output_size is not None and not _is_size(self.output_size):
            raise FedgazeError(
                f"output_size is {self.output_size!r}; allowed is (H, W), two whole numbers from "
                "1, or None for the size of the images"
            )


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_size(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_positive, value))
