"""One HTML file that a person opens, without a network: tables, pictures, settings, versions, command."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.artifacts import write_atomic
from polyhead.protocols import Picture
from polyhead_apps.console import format_figure

__all__ = ["Block", "Table", "figures_block", "write_report"]


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    bold: Sequence[tuple[int, int]] = ()
    """Cells (row, column) that are best."""
    note: str = ""


@dataclass(frozen=True)
class Block:
    """Text kept as it is: settings, versions, a command."""

    title: str
    text: str
    folded: bool = False
    """True to show the title only, until it is clicked."""


_STYLE = """
:root { color-scheme: light dark; --line: #d5d9e0; --faint: #5a6472; --back: #fff; --ink: #16191d; --soft: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a414c; --faint: #a0a9b6; --back: #14171b; --ink: #e8ebef; --soft: #1d2228; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.note { border-left: 4px solid #c98a00; background: var(--soft); padding: .5rem .8rem; margin: .8rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
td.figure, th.figure { text-align: right; padding: .3rem 0 .3rem .8rem; }
figure { margin: 1rem 0 1.5rem; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; display: block; }
figcaption, .faint { color: var(--faint); font-size: .9rem; margin-top: .3rem; }
pre { background: var(--soft); padding: .7rem .9rem; overflow-x: auto; border-radius: 4px; }
pre { font-size: .85rem; line-height: 1.4; }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 600; margin-top: 1.5rem; }
""".strip()


def write_report(
    path: Path,
    *,
    title: str,
    summary: str,
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
    pictures: Sequence[Picture] = (),
    blocks: Sequence[Block] = (),
) -> None:
    """Write a report as one HTML file, whole or not at all. Every text is escaped; nothing is fetched or run.

    Args:
        path: the file.
        title: of the page.
        summary: one sentence: what was done and how it came out.
        notes: sentences set apart, such as where the data come from.
        tables: shown first.
        pictures: PNG files with captions; they are embedded.
        blocks: shown last.

    Raises:
        StorageError: the file cannot be written.
    """
    body = [f"<h1>{_escape(title)}</h1>", f"<p>{_escape(summary)}</p>"]
    body += [f'<p class="note">{_escape(note)}</p>' for note in notes if note]
    body += [_table(table) for table in tables]
    body += [_figure(picture) for picture in pictures]
    body += [_block(block) for block in blocks]
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_escape(title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<main>
{chr(10).join(body)}
</main>
</body>
</html>
"""
    write_atomic(path, page.encode())


def figures_block(title: str, values: Mapping[str, Any], *, folded: bool = False) -> Block:
    """Return names and values as a block of aligned lines."""
    width = max((len(name) for name in values), default=0)
    return Block(title, "\n".join(f"{name:<{width}}  {format_figure(value)}" for name, value in values.items()), folded)


def _table(table: Table) -> str:
    figures = [
        bool(table.rows) and all(isinstance(row[i], int | float) or row[i] is None for row in table.rows)
        for i in range(len(table.columns))
    ]
    classes = [' class="figure"' if figure else "" for figure in figures]
    head = "".join(f"<th{name}>{_escape(column)}</th>" for name, column in zip(classes, table.columns, strict=True))
    lines = []
    for number, row in enumerate(table.rows):
        cells = []
        for i, (name, value) in enumerate(zip(classes, row, strict=True)):
            text = _escape(format_figure(value))
            cells.append(f"<td{name}>{f'<strong>{text}</strong>' if (number, i) in table.bold else text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    note = f'<p class="faint">{_escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{_escape(table.title)}</h2>\n<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table></div>{note}"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f"<h2>{_escape(picture.title)}</h2>\n<figure>"
        f'<img src="data:image/png;base64,{data}" alt="{_escape(picture.title)}">'
        f"<figcaption>{_escape(picture.caption)}</figcaption></figure>"
    )


def _block(block: Block) -> str:
    text = f"<pre>{_escape(block.text)}</pre>"
    if block.folded:
        return f"<details><summary>{_escape(block.title)}</summary>{text}</details>"
    return f"<h2>{_escape(block.title)}</h2>\n{text}"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
