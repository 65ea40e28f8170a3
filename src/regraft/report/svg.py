"""Rendered plots as inline SVG: only what draws, in colours that follow the theme, with a tooltip on each mark.

vl-convert renders a plot to an SVG with fixed colours and with screen-reader roles on every tick. Inlined into a page
it should do three other things: take its colours from the page (each colour of `PALETTE` becomes a class, styled by
`style.css` for light and dark), speak once (one `role="img"` with a title and a description), and show what a mark is
(its `aria-label` becomes a `<title>`, which browsers show as a tooltip). Elements and attributes are kept by an
allow-list, so that nothing in the data can bring a script or a link into the page.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

# The colour that a plot is specified with, and the class that it gets in the page.
PALETTE = {
    "#111111": "ink",
    "#666666": "muted",
    "#dddddd": "grid",
    "#0b57a4": "member",
    "#777788": "candidate",
    "#a04a00": "baseline",
}

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_ELEMENTS = {"svg", "g", "path", "line", "text", "rect"}
_ATTRIBUTES = {
    "d",
    "fill-opacity",
    "font-size",
    "font-weight",
    "height",
    "opacity",
    "stroke-dasharray",
    "stroke-width",
    "text-anchor",
    "transform",
    "width",
    "x",
    "x2",
    "y",
    "y2",
}


def inline(svg: str, identity: str, title: str, description: str) -> str:
    """An SVG document as an element for a page.

    Args:
        svg: What vl-convert wrote.
        identity: A word, unique in the page, that the ids of title and description start with.
        title: What the plot shows, for screen readers.
        description: Its content in words.

    Raises:
        xml.etree.ElementTree.ParseError: The text is not XML.
    """
    source = ET.fromstring(svg)
    root = _copy(source)
    width, height = source.get("width", "0"), source.get("height", "0")
    root.attrib = {
        "class": "plot",
        "viewBox": f"0 0 {width} {height}",
        "role": "img",
        "aria-labelledby": f"{identity}-title {identity}-text",
    }
    for place, (name, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(name, {"id": f"{identity}-{'text' if place else 'title'}"})
        element.text = text
        root.insert(place, element)
    return ET.tostring(root, encoding="unicode")


def _copy(source: ET.Element) -> ET.Element:
    """An element and what it holds, as far as the allow-list goes, without namespaces."""
    element = ET.Element(source.tag.removeprefix(_NAMESPACE))
    element.text = source.text
    for name, value in source.attrib.items():
        if name in _ATTRIBUTES:
            element.set(name, value)
    classes = [f"{name}-{_colour(source.attrib[name])}" for name in ("fill", "stroke") if name in source.attrib]
    if classes:
        element.set("class", " ".join(classes))
    label = source.get("aria-label")
    if label and source.get("aria-roledescription") != "axis":
        tooltip = ET.SubElement(element, "title")
        tooltip.text = label
    for child in source:
        # Vega writes an empty path behind every group, and one that is not displayed in front of it.
        empty = child.get("class") == "background" or child.get("display") == "none"
        if child.tag.removeprefix(_NAMESPACE) in _ELEMENTS and not empty:
            element.append(_copy(child))
    return element


def _colour(value: str) -> str:
    return PALETTE.get(value.lower(), "none")
