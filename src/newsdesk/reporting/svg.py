"""A drawing as vector or pixel file, and as part of a page that sets its colours and its type."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsdesk.errors import missing_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Mapping[str, str] = {
    "ink": "#1f2933",
    "muted": "#5a6672",
    "rule": "#dcd7cc",
    "accent": "#0b6570",
    "second": "#a8480f",
    "paper": "#fffefb",
}
"""Roles of colours in a drawing, and what they are on paper. No two are equal: a page tells them apart so."""

PIXELS_AN_INCH = 220
_ROOT = re.compile(r".*?<svg[^>]*viewBox=\"(?P<box>[^\"]+)\"[^>]*>(?P<content>.*)</svg>\s*", re.DOTALL)
_NOT_FOR_PAGES = re.compile(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_GROUP_NAME = re.compile(r'(?<=^<g) id="[^"]*"|(?<=^<text) id="[^"]*"')
_REFERENCE = re.compile(r'(\bid="|href="#|url\(#)')
_FONT_FAMILY = re.compile(r" ?font-family: [^;\"]*;")


@contextmanager
def drawing_style() -> Iterator[None]:
    """What all drawings share, while they are made: quiet axes, and text that stands as it is.

    Raises UserError where matplotlib is missing.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise missing_package("matplotlib", "report", "drawing a report's charts") from None
    muted, paper, rule = COLOURS["muted"], COLOURS["paper"], COLOURS["rule"]
    with matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.size": 10.5,
            "text.color": COLOURS["ink"],
            "text.parse_math": False,
            "figure.facecolor": paper,
            "axes.facecolor": paper,
            "axes.edgecolor": muted,
            "axes.labelcolor": muted,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": rule,
            "xtick.color": muted,
            "ytick.color": muted,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "ytick.major.size": 0,
            "lines.linewidth": 2.0,
            "legend.frameon": False,
        }
    ):
        yield


def as_svg(figure: Figure) -> bytes:
    """The drawing as a file of its own, in the colours of paper; text stays text."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "newsdesk"}):
        return _saved(figure, format="svg", metadata={"Date": None, "Creator": "newsdesk"})


def as_png(figure: Figure) -> bytes:
    """The drawing in pixels, 220 to the inch."""
    return _saved(figure, format="png", dpi=PIXELS_AN_INCH, metadata={"Software": "newsdesk"})


def is_drawing(path: Path) -> bool:
    """Whether a file was written from what ``as_svg`` or ``as_png`` give, by the creator that they name."""
    return path.is_file() and b"newsdesk" in path.read_bytes()


def _saved(figure: Figure, **settings: Any) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():  # a class's name may have letters that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, **settings)
    return stream.getvalue()


def for_page(svg: bytes, name: str, title: str, description: str) -> str:
    """An svg file of ours as an element of a page, with words for who cannot see it.

    Its colours become the page's custom properties (``--ink`` and so on), so that they follow the page's
    theme; its type becomes the page's own. ``name`` sets its ids apart from those of other drawings.
    """
    found = _ROOT.fullmatch(svg.decode("utf-8"))
    assert found is not None  # matplotlib writes its root element so
    content = _NOT_FOR_PAGES.sub("", found["content"])
    content = _TAG.sub(lambda tag: _themed(tag[0], name), content)
    return (
        f'<svg viewBox="{found["box"]}" role="img" aria-labelledby="{name}-title {name}-description">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>{content}</svg>'
    )


def _themed(tag: str, name: str) -> str:
    """A tag of a drawing with the page's colours and type, and ids of its own."""
    tag = _GROUP_NAME.sub("", tag)
    tag = _REFERENCE.sub(rf"\g<1>{name}-", tag)
    tag = _FONT_FAMILY.sub("", tag)
    for role, colour in COLOURS.items():
        tag = tag.replace(colour, f"var(--{role})")
    return tag
