"""Documents: the same bytes every time, self-contained, and hostile text stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from ltv_assets import plots as pictures
from ltv_assets.reporting.document import Document, Picture, Points, Section, Table, to_html, to_markdown
from ltv_assets.reporting.formatting import Figure

HOSTILE = '<script>alert(1)</script> & "x" | {{ 7 * 7 }} `<b>`'


def document(text: str = HOSTILE) -> Document:
    table = Table(("segment", "value", "interval"), ((text, Figure(1 / 3, "0.3333"), "0.1 .. 0.5"), ("b", "-", "")), ("first", "second"))
    picture = Picture(pictures.no_data("nothing", "empty"), text)
    return Document(text, (text,), (Section("One & two", (text, table, picture, picture, Points((text,)))), Section("Last", ())))


class Tags(HTMLParser):
    """Every tag with its attributes, and which are still open."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_needs_nothing_else_and_keeps_hostile_text_as_text() -> None:
    page = to_html(document()).decode()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = [tag for tag, _ in tags.seen]
    assert "script" not in names
    assert "b" not in names
    links = [value or "" for _, attributes in tags.seen for name, value in attributes.items() if name in ("src", "href")]
    assert links
    assert [link for link in links if not link.startswith(("data:", "#"))] == []
    assert not re.search(r"url\(|@import|https?://", page)
    assert "{{ 7 * 7 }}" in page


def test_whole_number_stands_beside_its_text() -> None:
    page = to_html(document()).decode()
    assert f'<data value="{1 / 3!r}">0.3333</data>' in page
    assert '<tr data-name="first">' in page


def test_figures_and_intervals_stand_flush_right_and_words_do_not() -> None:
    header = re.findall(r"<th [^>]*>", to_html(document()).decode())
    assert ["number" in cell for cell in header] == [False, True, True]


def test_same_content_has_the_same_bytes() -> None:
    assert to_html(document()) == to_html(document())
    assert to_markdown(document()) == to_markdown(document())


def test_markdown_keeps_every_row_on_one_line_with_its_columns() -> None:
    lines = to_markdown(document("a|b\nc")).decode().splitlines()
    row = next(line for line in lines if "0.3333" in line)
    assert row == "| a\\|b c | 0.3333 | 0.1 .. 0.5 |"
    assert "|---|---:|---:|" in lines


@pytest.mark.parametrize("rows", [(("a",),), (("a", "b", "c"),)])
def test_row_of_another_width_is_refused(rows: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        Table(("one", "two"), rows)
