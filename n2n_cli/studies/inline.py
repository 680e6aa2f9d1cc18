"""A figure as an SVG inside a page: text in the page's font, colours as its variables, marks that speak."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

from matplotlib.figure import Figure

from n2n_cli.studies.plots import Mark
from n2n_cli.studies.statistics import ArmStatistics
from n2n_cli.studies.style import DARK, LIGHT, look, svg


def palette(arms: Sequence[ArmStatistics]) -> dict[str, tuple[str, str]]:
    """Every colour of the pictures on white -> its variable's name and its value on a dark ground."""
    found = {LIGHT[name].lower(): (f"--p-{name}", DARK[name]) for name in LIGHT}
    for place, arm in enumerate(arms):
        found.setdefault(look(arm, arms, LIGHT)[0].lower(), (f"--p-{place}", look(arm, arms, DARK)[0]))
    return found


def inline(
    figure: Figure, name: str, label: str, colours: Mapping[str, tuple[str, str]], marks: Sequence[Mark] = ()
) -> str:
    """The figure as an ``<svg>`` element that asks nothing of a network and shares no id with others of its page.

    ``label``: what it shows, for those who cannot see it; empty for decoration. ``marks``: what its marks say when
    pointed at.
    """
    text = svg(figure, fonts="none").decode()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    for mark in marks:
        text = _speaking(text, mark)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(href="|url\()#([\w-]+)', rf"\1#{name}-\2", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda hue: f"var({colours[hue[0]][0]})" if hue[0] in colours else hue[0], text)
    view = re.search(r'viewBox="([^"]*)"', text)
    role = f'role="img" aria-label={quoteattr(label)}' if label else 'aria-hidden="true"'
    head = f'<svg viewBox="{view[1] if view else ""}" {role}>'
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    text = re.sub(r" style=\"font: ([\d.]+)px [^;\"]*", r' style="font-size: \1px', text)  # the family is the page's
    places = re.compile(r' (?:d|points|transform|x|y|x1|x2|y1|y2|cx|cy|r|width|height)="[^"]*"')  # and no words
    text = places.sub(lambda found: re.sub(r"(\d+\.\d{2})\d+", r"\1", found[0]), text)
    return re.sub(r">\s+<", "><", text).strip()


def _speaking(svg: str, mark: Mark) -> str:
    """The texts of a line's marks as their titles, in the order of its marks."""
    start = svg.find(f'id="{mark.gid}"')
    end = svg.find("<g id=", start)
    if start < 0:
        return svg
    texts = iter(mark.texts)
    part = svg[start : end if end > 0 else len(svg)]

    def titled(found: re.Match[str]) -> str:
        text = next(texts, None)
        return found[0] if text is None else f"<use{found[1]}><title>{escape(text)}</title></use>"

    return svg[:start] + re.sub(r"<use([^>]*)/>", titled, part) + svg[start + len(part) :]
