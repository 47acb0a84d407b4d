"""Reading a page back with nothing of ours."""

import base64
import hashlib
import io
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
from PIL import Image

# Elements without an end tag.
VOID = {"meta", "img", "input", "br", "hr", "link"}
# Attributes that make a browser fetch something.
FETCHING = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}
SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


@dataclass
class Element:
    """An element: its tag, attributes, text pieces and children in one list."""

    tag: str
    attributes: dict
    children: list = field(default_factory=list)

    @property
    def text(self):
        """All text inside."""
        return "".join(part if isinstance(part, str) else part.text for part in self.children)

    def all(self, tag=None, **attributes):
        """Return the elements inside of a tag and with some attributes, in their order."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        found = []
        for part in self.children:
            if isinstance(part, str):
                continue
            classes = (part.attributes.get("class") or "").split()
            fits = all(
                value in classes if name == "class" else part.attributes.get(name) == value
                for name, value in wanted.items()
            )
            if fits and tag in (None, part.tag):
                found.append(part)
            found += part.all(tag, **attributes)
        return found

    def one(self, tag=None, **attributes):
        """Return the only such element."""
        (found,) = self.all(tag, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(page):
    """Return the root of a page, whose tags must be balanced."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def tables(root):
    """Return all tables: by caption, their rows by heading, each the cells' elements."""
    found = {}
    for table in root.all("table"):
        captions = table.all("caption")
        name = captions[0].text if captions else ""
        rows = {row.one("th").text: row.all("td") for row in table.one("tbody").all("tr")}
        found.setdefault(name, []).append(rows)
    return found


def values(cells):
    """Return the numbers of cells in full precision; None for what is not one."""
    exact = [cell.all("data") for cell in cells]
    return [float(each[0].attributes["value"]) if each else None for each in exact]


def number(text):
    """Return the number that a text of a page stands for."""
    plain = text.replace("−", "-").replace("\u202f", "").strip("≥ %").replace("%", "")
    mantissa, times, exponent = plain.partition("×10")
    if not times and plain.lstrip("-").startswith("10") and plain[-1] in "⁰¹²³⁴⁵⁶⁷⁸⁹":
        mantissa, exponent = "1", plain.lstrip("-")[2:]
    return float(f"{mantissa}e{exponent.translate(SUPERSCRIPT) or 0}")


def assert_self_contained(page):
    """Assert that a page fetches nothing and runs its own script alone."""
    root = read(page)
    for element in root.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on"), (element.tag, name)
            if name in FETCHING:
                assert value.startswith(("#", "data:image/png;base64,")), value
    assert not [tag for tag in ("link", "iframe", "object", "embed", "base") if root.all(tag)]
    style = root.one("style").text
    assert "@import" not in style
    assert "url(" not in style
    scripts = [each for each in root.all("script") if each.attributes.get("type") is None]
    (script,) = scripts
    assert not re.search(r"fetch|XMLHttp|import|https?:|WebSocket|eval", script.text)
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    (policy,) = [
        each.attributes["content"]
        for each in root.all("meta")
        if each.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    return root


def frames(root):
    """Return what every slider of a page shows."""
    return [
        json.loads(each.one("script", type="application/json").text)
        for each in root.all("div", class_="through")
    ]


def bars(path):
    """Return the bars of a path ``M left bottom H right V top H left Z``."""
    pattern = r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H[\d.]+Z"
    return [tuple(map(float, found)) for found in re.findall(pattern, path)]


def points(path):
    """Return the points of a path of ``M x y L x y …``."""
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path)[1:]]


def images(page):
    """Return the pixels of the images of a page, in [0, 1]."""
    uris = [each.attributes["src"].split(",", 1)[1] for each in read(page).all("img")]
    opened = (Image.open(io.BytesIO(base64.b64decode(uri))) for uri in uris)
    return [np.asarray(image).astype(float) / 255 for image in opened]
