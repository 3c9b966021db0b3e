"""See where every client's model looks, before its update is merged."""

from typing import TYPE_CHECKING, Any

from fedgaze._version import __version__

if TYPE_CHECKING:
    from fedgaze.xai import Explanation, explain

__all__ = ["Explanation", "__version__", "explain"]


def __getattr__(name: str) -> Any:
    # torch is imported when a name that needs it is first used, not by `fedgaze --help`.
    if name in __all__:
        from fedgaze import xai

        return getattr(xai, name)
    raise AttributeError(f"module 'fedgaze' has no attribute {name!r}")
