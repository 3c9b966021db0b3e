"""Markdown that shows texts as they are, whatever they hold."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["Markdown", "code", "escaped", "render_markdown"]

# What has a meaning inside a line. Every line of a card begins with a word of ours, so what has
# one only at its beginning needs nothing.
_SIGNS = re.compile(r"([\\`*_\[\]|~$#])")
_BREAKS = re.compile(r"[\r\n\t\v\f\x1c-\x1f\x85\u2028\u2029]+")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def escaped(text: object) -> Markdown:
    r"""A text as Markdown shows it letter by letter, in one line.

    >>> escaped("a_b | <b>*bold*</b>")
    'a\\_b \\| &lt;b&gt;\\*bold\\*&lt;/b&gt;'
    """
    line = _SIGNS.sub(r"\\\1", _BREAKS.sub(" ", str(text)))
    return Markdown("".join(_HTML.get(sign, sign) for sign in line))


def code(text: object) -> Markdown:
    """A text as code: fenced by one more backtick than it has in a row, whole also in a table.

    >>> code("a`b")
    '`` a`b ``'
    """
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    inner = f" {line} " if "`" in line else line
    return Markdown(f"{fence}{inner}{fence}")


def render_markdown(template: str, **shown: Any) -> str:
    """A template of ``page/`` filled in; all that is shown is escaped but `Markdown`."""
    return _environment().get_template(template).render(**shown)


@cache
def _environment() -> Environment:
    environment = Environment(  # noqa: S701 - this is no HTML; `finalize` escapes what it shows
        loader=PackageLoader("fedgaze.report", "page"),
        finalize=lambda value: value if isinstance(value, Markdown) else escaped(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["code"] = code
    return environment
