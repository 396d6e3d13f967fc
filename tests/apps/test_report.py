from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from polyhead.errors import StorageError
from polyhead.protocols import Picture
from polyhead_apps.curves import loss_curve
from polyhead_apps.report import Block, Table, figures_block, write_report

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)</script> & \"quoted\" 'single'"


class Page(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    path = tmp_path / "report.html"
    write_report(
        path,
        title=f"title {HOSTILE}",
        summary=f"summary {HOSTILE}",
        notes=[f"note {HOSTILE}", ""],
        tables=[
            Table(f"table {HOSTILE}", ["model", f"mae {HOSTILE}"], [[f"gman {HOSTILE}", 1.5], ["last", None]], [(0, 1)])
        ],
        pictures=[Picture(f"picture {HOSTILE}", f"caption {HOSTILE}", PNG)],
        blocks=[
            Block(f"block {HOSTILE}", f"text {HOSTILE}"),
            figures_block("versions", {HOSTILE: 1, "b": "x"}, folded=True),
        ],
    )
    return path.read_text(encoding="utf-8")


def test_every_text_is_escaped_and_shown(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert "script" not in [tag for tag, _ in parsed.elements]
    for part in ("title", "summary", "note", "table", "mae", "gman", "picture", "caption", "block", "text"):
        assert f"{part} {HOSTILE}" in parsed.text


def test_it_stands_without_a_network(page: str) -> None:
    parsed = Page(page)
    tags = [tag for tag, _ in parsed.elements]
    assert not {"link", "script", "iframe", "object", "base", "form"} & set(tags)
    addresses = [
        value for _, attributes in parsed.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert [str(address)[:22] for address in addresses] == ["data:image/png;base64,"]
    assert not re.search(r"url\(|@import|https?://", page)
    policy = next(a["content"] for t, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_pictures_are_kept_as_they_are(page: str) -> None:
    encoded = re.search(r"base64,([^\"]+)", page)
    assert encoded
    assert base64.b64decode(encoded[1]) == PNG


def test_best_cells_are_bold_and_missing_ones_a_dash(page: str) -> None:
    assert '<td class="figure"><strong>1.5000</strong></td>' in page
    assert '<td class="figure">–</td>' in page


def test_phones_and_dark_rooms_are_thought_of(page: str) -> None:
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in page
    assert "prefers-color-scheme: dark" in page


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="none"):
        write_report(tmp_path / "none" / "report.html", title="t", summary="s")


def test_loss_curve_needs_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert loss_curve(log, "mae") is None
    log.write_text('{"step": 1, "loss": 2}\n', encoding="utf-8")
    assert loss_curve(log, "mae") is None


@pytest.mark.parametrize(
    ("monitor", "caption"),
    [
        ("mae", "Training loss (blue, left) and mae on the validation split (orange, right), by optimiser step."),
        ("rmse", "Training loss, by optimiser step."),
    ],
)
def test_loss_curve_draws_loss_and_the_monitored_metric(tmp_path: Path, monitor: str, caption: str) -> None:
    lines: list[dict[str, object]] = [
        {"step": step, "loss": 1 / (step + 1) if step != 5 else None} for step in range(3000)
    ]
    lines += [{"step": step, "validation": {"mae": step, "rmse": None}} for step in (1000, 2000)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    picture = loss_curve(log, monitor)
    assert picture is not None
    assert picture.caption == caption
    assert picture.png.startswith(b"\x89PNG")
