"""Whatever a text holds, a card shows it letter by letter."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fedgaze.report.card.markdown import code, escaped

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SIGNS = "\\`*_{}[]<>()#+-.!|~$&;:/ab1 \"'"


def cell(markdown: str) -> list[tuple[str, str]]:
    """What a reader makes of a table's cell: kinds and contents."""
    tokens = READER.parse(f"| a | b |\n|---|---|\n| x {markdown} | end |\n")
    cells = [tokens[i + 1] for i, each in enumerate(tokens) if each.type == "td_open"]
    assert len(cells) == 2
    assert cells[1].content == "end"
    return [(each.type, each.content) for each in cells[0].children or () if each.content]


@given(st.text(SIGNS, max_size=30))
@example("<img src=x>")
@example("**a** _b_ ~~c~~ `d` [e](f) ![g](h) &lt; <http://i> | \\")
@example("\\|")
def test_a_text_is_shown_as_it_is(text: str) -> None:
    found = cell(escaped(f"{text}."))
    assert {kind for kind, _ in found} <= {"text", "text_special"}
    assert "".join(content for _, content in found).split() == f"x {text}.".split()
    paragraph = READER.parse(f"x {escaped(text)}.")
    assert [each.type for each in paragraph] == ["paragraph_open", "inline", "paragraph_close"]
    shown = "".join(each.content for each in paragraph[1].children or ())
    assert shown.split() == f"x {text}.".split()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028", "\x85", "\v"])
def test_a_text_is_one_line(end: str) -> None:
    assert escaped(f"a{end}# b") == "a \\# b"
    assert len(code(f"a{end}b").splitlines()) == 1


@given(st.text(SIGNS, max_size=20).filter(lambda text: text.strip()))
def test_code_is_shown_as_it_is(text: str) -> None:
    if text.strip("` ") == "" or "\\|" in text:
        return  # nothing but the fence's own sign; a backslash before a bar, which tables take away
    [(_, first), (kind, content), *rest] = cell(code(text))
    assert (first, kind, rest) == ("x ", "code_inline", [])
    assert content.split() == text.split()
