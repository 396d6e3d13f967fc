"""Docs and code say the same: variables, hooks, links, names in examples."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from pathlib import Path

import pytest
from scripts.workspace import ROOT, distributions

from polyhead import hookspecs

SKIPPED = {".venv", "build", "node_modules", ".git"}
PAGES = sorted(path for path in ROOT.rglob("*.md") if not SKIPPED & set(path.relative_to(ROOT).parts))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_environment_variables_are_documented_once() -> None:
    source = [path for distribution in distributions() for path in distribution.source.rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in [*source, ROOT / "tests" / "conftest.py"]]
    used = {found for text in texts for found in re.findall(r"\bPOLYHEAD_[A-Z_]+[A-Z]\b", text)}
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(POLYHEAD_[A-Z_]+)` \|", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(used)


def test_hooks_are_documented_with_their_signatures() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    hooks = [hook for key, hook in vars(hookspecs).items() if key.startswith("polyhead_")]
    rows = set()
    for hook in hooks:
        signature = str(inspect.signature(hook)).replace("'", "")
        rows.add(f"| `{hook.__name__}{signature}` | {inspect.getdoc(hook)} |")
    assert rows == set(re.findall(r"^\| `polyhead_.*$", page, flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_examples_import_what_exists(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for block in blocks:
        if ">>>" in block:
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polyhead"):
                module = __import__(node.module or "", fromlist=["_"])
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_manifest_of_the_docs_is_one() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(from polyhead import AppSpec.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(code, "docs/plugins.md", "exec"), scope)
    plugin = scope["polyhead_plugin"]
    assert callable(plugin)
    assert plugin().name == "tides"


def test_each_distribution_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for distribution in distributions():
        assert f"`{distribution.name}`" in readme
        assert f"({distribution.folder.relative_to(ROOT)}/README.md)" in readme


@pytest.mark.parametrize("page", [page for page in PAGES if ">>>" in page.read_text(encoding="utf-8")], ids=name)
def test_examples_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_doctest(text, {}, name(page), str(page), 0)
    result = doctest.DocTestRunner().run(examples)
    assert result.attempted > 0
    assert result.failed == 0
