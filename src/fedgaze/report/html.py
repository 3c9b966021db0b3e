"""One page: one file, nothing fetched, nothing executed but what its policy names by hash."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedgaze import __version__
from fedgaze.report.pictures import colour_scale

__all__ = ["render"]


def render(
    template: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **shown: Any
) -> str:
    """A template filled in, with style and scripts inside, under a policy that allows only them.

    Args:
        template: A file of ``page/``.
        styles: Files of this room that come before the page's own style.
        scripts: Files of this room, run at the end of the page in this order.
        shown: What the template shows.
    """
    style = "".join(map(_read, [*styles, "page/report.css"]))
    code = list(map(_read, scripts))
    return (
        _environment()
        .get_template(template)
        .render(
            policy=_policy(style, code),
            style=Markup(style),  # noqa: S704 - our own files, hashed in the policy
            scripts=[Markup(each) for each in code],  # noqa: S704
            **shown,
        )
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("fedgaze.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.globals.update(version=__version__, scale=colour_scale())
    return made


def _read(name: str) -> str:
    return files("fedgaze.report").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, scripts: Sequence[str]) -> str:
    """A content security policy under which this page can run itself and reach nothing."""
    allowed = " ".join(map(_hash, scripts)) or "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
