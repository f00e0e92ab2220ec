"""SVG files and elements: no placeholder colour is left, and each says what it shows."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from faq_deploy.svg import FIRST, STYLE, short, svg_element, svg_file


@pytest.fixture
def figure() -> Figure:
    """One line with a title."""
    with mpl.rc_context(STYLE):
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FIRST)
        axes.set_title("a title")
        return figure


def test_file_stands_alone_in_light_colours_with_a_dark_style(figure: Figure) -> None:
    with mpl.rc_context(STYLE):
        svg = svg_file(figure, "A line")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == "A line"
    assert 'class="stroke-first" style="fill: none; stroke: #0060a8' in svg
    assert ".stroke-first { stroke: #6cb8f5 !important }" in svg
    assert "prefers-color-scheme: dark" in svg
    assert re.findall(r"#0[0-9a]0[0-9a]0[0-9a-f]", svg) == []
    assert "var(" not in svg


def test_element_takes_the_colours_of_its_page(figure: Figure) -> None:
    with mpl.rc_context(STYLE):
        svg = svg_element(figure, "name", "A line")
    assert svg.startswith('<svg role="img" aria-label="A line"')
    assert "stroke: var(--first)" in svg
    assert "#070809" not in svg
    assert 'id="name-' in svg


def test_long_names_keep_their_end() -> None:
    assert short("layer4.1.conv2", 8) == "…1.conv2"
    assert short("conv1") == "conv1"
