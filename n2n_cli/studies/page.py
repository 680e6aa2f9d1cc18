"""The report's paper: a style sheet in the manner of a journal, and the pieces of HTML it is built from."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

# Journal tables (three rules, no verticals); a text column of some 80 characters; tables are wider.
CSS = """
:root { --ground: #ffffff; --ink: #1d1f21; --soft: #5b5f64; --rule: #1d1f21; --hair: #d9dadc;
  --tint: #f5f4f0; --link: #0b5394; --note: #8a3b00; color-scheme: light dark; }
* { box-sizing: border-box; }
html { background: var(--ground); color: var(--ink); -webkit-text-size-adjust: 100%; }
body { font: 1.06rem/1.5 Charter, "Bitstream Charter", "Sitka Text", Cambria, "Source Serif 4", Georgia,
  "Liberation Serif", "DejaVu Serif", serif;
  max-width: 62rem; margin: 0 auto; padding: 3.2rem 1.4rem 4rem; font-variant-numeric: lining-nums; }
header, section > p, section > pre, details { max-width: 44rem; }
h1 { font-size: 1.85rem; line-height: 1.2; font-weight: 600; margin: 0 0 .5rem; text-wrap: balance; }
h2 { font-size: 1.22rem; font-weight: 600; margin: 2.8rem 0 .7rem; }
h2 .no { color: var(--soft); font-weight: 400; margin-right: .6em; }
p { margin: .5rem 0; }
.meta { color: var(--soft); margin: 0; }
.notice { border-left: 3px solid var(--note); padding: .1rem 0 .1rem .9rem; margin: 1.3rem 0 0; }
.notice strong { color: var(--note); }
dl { display: grid; grid-template-columns: 11rem minmax(0, 42rem); gap: .75rem 1.2rem; margin: .8rem 0; }
dt { font-style: italic; }
dd { margin: 0; }
dd p { margin: 0 0 .3rem; }
dd p:last-child { margin: 0; }
figure { margin: 2.2rem 0 1.6rem; break-inside: avoid; }
figure img { width: 100%; height: auto; display: block; }
figcaption, caption { font-size: .92rem; line-height: 1.42; color: var(--soft); text-align: left; }
figcaption { margin-top: .7rem; max-width: 54rem; }
caption { caption-side: top; padding-bottom: .5rem; }
figcaption b, caption b { color: var(--ink); font-weight: 600; }
.wide { overflow-x: auto; margin: 1.6rem 0; }
table { border-collapse: collapse; font-size: .95rem; line-height: 1.35; min-width: 60%;
  font-variant-numeric: tabular-nums lining-nums; border-bottom: 1.5px solid var(--rule); }
thead tr { border-top: 1.5px solid var(--rule); border-bottom: 1px solid var(--rule); }
th { font-weight: 600; text-align: right; vertical-align: bottom; padding: .35rem 0 .35rem 1.3rem; }
td { text-align: right; vertical-align: top; padding: .24rem 0 .24rem 1.3rem; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.text th:nth-child(2), .text td:nth-child(2) { text-align: left; white-space: normal; }
tr.group td { border-top: 1px solid var(--hair); }
sup { font-size: .72em; line-height: 0; }
.columns { columns: 2 22rem; column-gap: 3rem; font-size: .95rem; max-width: 54rem; }
.columns div { display: flex; justify-content: space-between; gap: 1rem; break-inside: avoid;
  border-bottom: 1px dotted var(--hair); padding: .14rem 0; }
.columns span:last-child { text-align: right; overflow-wrap: anywhere; }
code, pre { font: .84em/1.5 "SFMono-Regular", Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace; }
pre { background: var(--tint); padding: .8rem 1rem; overflow-x: auto; border-radius: 2px; }
summary { cursor: pointer; color: var(--soft); font-size: .95rem; margin-top: .8rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--hair); padding-top: .7rem; font-size: .9rem;
  color: var(--soft); }
.dark { display: none !important; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --ink: #d8d8d4; --soft: #9fa1a1; --rule: #a9a9a4; --hair: #34373b;
    --tint: #1e2124; --link: #86b8e8; --note: #f0a868; }
  .dark { display: block !important; }
  .light { display: none !important; }
}
@media (max-width: 44rem) { dl { grid-template-columns: 1fr; gap: .1rem; } dd { margin-bottom: .7rem; } }
@media print {
  @page { margin: 18mm 16mm; }
  body { font-size: 9.5pt; padding: 0; max-width: none; }
  table, .columns, figcaption, caption { font-size: 8.2pt; }
  td, th { padding-left: .8em; }
  h2, thead { break-after: avoid; }
  tr, dd { break-inside: avoid; }
  pre { white-space: pre-wrap; }
  .wide { overflow: visible; }
  .columns { columns: 2 12rem; }
  details { display: none; }
}
"""


def page(title: str, body: str) -> str:
    """A whole HTML document that asks nothing of a network."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def text(words: str) -> str:
    """Plain text as HTML: ``±`` is kept with its numbers, ``3.1e-07`` is set as a power of ten."""
    words = escape(words).replace(" ± ", "\u00a0±\u00a0")
    return re.sub(r"\b(\d\.\d)e-0?(\d+)\b", "\\1\u00a0×\u00a010<sup>−\\2</sup>", words)


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    kind: str = "",
    rules: Sequence[int] = (),
) -> str:
    """A table of plain text; ``rules`` are the rows with a hairline above, ``caption`` is HTML."""
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = ""
    for index, row in enumerate(rows):
        mark = ' class="group"' if index in rules else ""
        cells = "".join(f"<td>{'–' if cell == '-' else text(cell)}</td>" for cell in row)
        body += f"<tr{mark}>{cells}</tr>\n"
    return (
        f'<div class="wide"><table class="{kind}"><caption>{caption}</caption>'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def pairs(values: Mapping[str, str]) -> str:
    """Names and values in two columns, values to the right, as settings are listed."""
    rows = (f"<div><span>{text(key)}</span><span>{text(value)}</span></div>" for key, value in values.items())
    return f'<div class="columns">{"".join(rows)}</div>'


def definitions(values: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Catchwords in the margin, their sentences beside them, one a paragraph."""
    items = (
        f"<dt>{text(name)}</dt><dd>{''.join(f'<p>{text(one)}</p>' for one in several)}</dd>" for name, several in values
    )
    return f"<dl>{''.join(items)}</dl>"


def picture(light: bytes, dark: bytes, caption: str, *, alt: str) -> str:
    """Two SVGs, embedded: the one for the reader's colour scheme is shown; ``caption`` is HTML."""
    images = ""
    for name, svg in (("light", light), ("dark", dark)):
        source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        images += f'<img class="{name}" alt="{escape(alt)}" src="{source}">'
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"


def section(number: int, title: str, *parts: str) -> str:
    """A numbered section of ready HTML parts."""
    return f'<section><h2><span class="no">{number}</span>{escape(title)}</h2>\n{"".join(parts)}</section>\n'
