"""The pictures of `analyze`: whole SVG files that say what they show, light and dark."""

from __future__ import annotations

from xml.etree import ElementTree

from faq_deploy.analysis_plots import WIDTH_COLOURS, exponents_plot, noise_plot, similarity_plot
from faq_deploy.code_occupancy import Occupancy

COSINES = {"conv1": 0.9, "fc": 1.0}


def texts(svg: str) -> set[str]:
    """Every text of a picture."""
    root = ElementTree.fromstring(svg)
    return {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_noise_names_every_width_and_the_references() -> None:
    widths = {8: COSINES, 3: COSINES}
    found = texts(noise_plot(widths, COSINES, widths, COSINES))
    assert {"8 bits", "3 bits", "float", "float, another batch"} <= found
    assert "step called for against steps taken (paper, Fig. 1), cosine" in found


def test_noise_without_steps_has_one_panel() -> None:
    found = texts(noise_plot({8: COSINES}, {}, {}, {}))
    assert "gradient: quantized against float weights, cosine" in found
    assert not any("step" in text for text in found)


def test_similarity_says_where_epochs_were_not_noted() -> None:
    assert "not measured" in texts(similarity_plot(COSINES, COSINES, {}))
    assert "not measured" not in texts(similarity_plot(COSINES, COSINES, {1: 0.99, 2: 0.98}))


def test_exponents_picture_names_its_groups() -> None:
    record = Occupancy("conv1", 4, -5, -4, used=1.0, entropy=3.0, clipped=0.0, zero=0.1)
    found = texts(exponents_plot({-5: 3, -4: 1}, {0: 2}, [("weights", [record]), ("activations", [record])], {1: 0}))
    assert {"weights", "activations", "weight exponents", "activation exponents"} <= found


def test_same_facts_give_the_same_bytes() -> None:
    assert similarity_plot(COSINES, COSINES, {}) == similarity_plot(COSINES, COSINES, {})


def test_every_width_stands_out_from_light_and_dark_paper() -> None:
    for colour in WIDTH_COLOURS.values():
        for paper in ("#ffffff", "#161715"):
            low, high = sorted((luminance(colour), luminance(paper)))
            assert (high + 0.05) / (low + 0.05) >= 3.0, (colour, paper)
