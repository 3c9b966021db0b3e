"""See where every client's model looks, before its update is merged."""

from typing import TYPE_CHECKING, Any

from fedgaze._version import __version__

if TYPE_CHECKING:
    from fedgaze.xai import Explanation, explain
    from fedgaze.xai.classic import (
        AttentionRollout,
        GradCAM,
        GradCAMConfig,
        GradCAMPlusPlus,
        create_gradcam,
        get_recommended_layers,
    )

__all__ = [
    "AttentionRollout",
    "Explanation",
    "GradCAM",
    "GradCAMConfig",
    "GradCAMPlusPlus",
    "__version__",
    "create_gradcam",
    "explain",
    "get_recommended_layers",
]


def __getattr__(name: str) -> Any:
    # torch is imported when a name that needs it is first used, not by `fedgaze --help`.
    if name in {"Explanation", "explain"}:
        from fedgaze import xai

        return getattr(xai, name)
    if name in __all__:
        from fedgaze.xai import classic

        return getattr(classic, name)
    raise AttributeError(f"module 'fedgaze' has no attribute {name!r}")
