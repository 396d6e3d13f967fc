"""`datasets get` against a server on this machine: whole files, broken transfers, refusals, changed files."""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from polyhead import plugins
from polyhead.errors import DataError, PluginError, StorageError
from polyhead.manifest import DatasetSpec, Plugin, RemoteFile
from polyhead_apps.console import Console
from polyhead_apps.fetching import data_folder, fetch, fetched

CONTENT = bytes(range(256)) * 1024
DIGEST = hashlib.sha256(CONTENT).hexdigest()
QUIET = Console(quiet=True)


@dataclass
class Server:
    """What it serves, and what it was asked for."""

    url: str = ""
    content: bytes = CONTENT
    status: int = 200
    cut: int | None = None
    """Break off after this many bytes."""
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)
    """The ``Range`` of each request."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        if self.status != 200:
            handler.send_error(self.status)
            return
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if first >= len(self.content):
            handler.send_error(416)
            return
        body = self.content[first:]
        handler.send_response(206 if first else 200)
        if first:
            handler.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body if self.cut is None else body[: self.cut])


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/points.bin"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def spec(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetSpec:
    monkeypatch.setenv("POLYHEAD_DATA", str(tmp_path / "data"))
    return DatasetSpec(
        name="distant-points",
        target="polyhead_fake.data:open_points",
        summary="points from far away",
        formats=("bin",),
        source="https://example.org/points",
        licence="MIT",
        files=(RemoteFile("points.bin", server.url, DIGEST, len(CONTENT)),),
    )


def test_files_arrive_whole_and_are_fetched_once(server: Server, spec: DatasetSpec) -> None:
    with pytest.raises(
        DataError, match=r'"distant-points" has not been fetched \(points\.bin not in .*command `datasets get distant'
    ):
        fetched(spec)
    for _ in range(2):
        (path,) = fetch(spec, data_folder(spec), QUIET)
        assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert fetched(spec) == path.parent
    assert [file.name for file in path.parent.iterdir()] == ["points.bin"]


def test_a_broken_transfer_goes_on_where_it_ended(server: Server, spec: DatasetSpec, tmp_path: Path) -> None:
    server.cut = 100_000
    with pytest.raises(
        DataError, match=r"points\.bin: the transfer ended after 100,000 of 262,144 bytes.* goes on from"
    ):
        fetch(spec, tmp_path, QUIET)
    assert not (tmp_path / "points.bin").exists()
    server.cut = None
    (path,) = fetch(spec, tmp_path, QUIET)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_server_that_cannot_go_on_begins_again(server: Server, spec: DatasetSpec, tmp_path: Path) -> None:
    (tmp_path / ".points.bin.part").write_bytes(b"x" * 100)
    server.ranges = False
    (path,) = fetch(spec, tmp_path, QUIET)
    assert path.read_bytes() == CONTENT


def test_a_part_longer_than_what_is_served_is_thrown_away(server: Server, spec: DatasetSpec, tmp_path: Path) -> None:
    server.content = CONTENT[:50]
    (tmp_path / ".points.bin.part").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="the transfer ended after 50 of 262,144 bytes"):
        fetch(spec, tmp_path, QUIET)
    assert server.asked == ["bytes=100-", None]


def test_a_file_damaged_in_the_folder_is_fetched_again(server: Server, spec: DatasetSpec, tmp_path: Path) -> None:
    (tmp_path / "points.bin").write_bytes(CONTENT[:-1] + b"!")
    (path,) = fetch(spec, tmp_path, QUIET)
    assert path.read_bytes() == CONTENT


def test_another_content_is_refused_and_not_kept(server: Server, spec: DatasetSpec, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(
        DataError, match=rf"is not the published file: its SHA-256 is .*, not {DIGEST[:16]}…\. .*--data"
    ):
        fetch(spec, tmp_path, QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_longer_content_is_not_read_to_its_end(server: Server, spec: DatasetSpec, tmp_path: Path) -> None:
    server.content = CONTENT * 8
    with pytest.raises(DataError, match=r"gives more than the 262,144 bytes of the published file\. It was changed"):
        fetch(spec, tmp_path, QUIET)
    assert (tmp_path / ".points.bin.part").stat().st_size == 0


def test_a_refusal_names_address_and_mend(server: Server, spec: DatasetSpec, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(
        DataError, match=r"points\.bin answers 404 Not Found\. Try later, or get it by other means, put"
    ):
        fetch(spec, tmp_path, QUIET)


def test_no_network_is_one_sentence(spec: DatasetSpec, tmp_path: Path) -> None:
    file = replace(spec.files[0], url="http://127.0.0.1:1/points.bin")
    with pytest.raises(
        DataError,
        match=r"^http://127\.0\.0\.1:1/points\.bin cannot be reached: Connection refused\. Connect to the net",
    ) as caught:
        fetch(replace(spec, files=(file,)), tmp_path, QUIET)
    assert str(tmp_path / "points.bin") in str(caught.value)


def test_two_processes_do_not_write_one_file(spec: DatasetSpec, tmp_path: Path) -> None:
    with (tmp_path / ".points.bin.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"\.points\.bin\.part is being written by another process\. Wait"):
            fetch(spec, tmp_path, QUIET)


def test_a_folder_that_cannot_be_made_is_named(spec: DatasetSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot make the folder .*file: File exists\. Name another with --out\."):
        fetch(spec, tmp_path / "file", QUIET)
    (tmp_path / "folder" / ".points.bin.part").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"Cannot write .*points\.bin\.part: Is a directory\. Name another folder"):
        fetch(spec, tmp_path / "folder", QUIET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../points"}, r'"\.\./points": give a plain file name, without a folder'),
        ({"name": ".hidden"}, r'"\.hidden": give a plain file name'),
        ({"url": "file:///etc/passwd"}, r'the address "file:///etc/passwd" does not begin with https://'),
        ({"sha256": "abc"}, r'sha256 "abc" must be 64 digits 0-9a-f'),
        ({"bytes": 0}, r"and bytes \(0\) positive"),
    ],
)
def test_remote_files_that_cannot_be_right_are_refused(changes: dict[str, Any], message: str) -> None:
    good = RemoteFile("points.bin", "https://example.org/points.bin", DIGEST, 1)
    with pytest.raises(PluginError, match=message):
        replace(good, **changes)


def test_the_cache_of_the_user_is_the_default_place(spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYHEAD_DATA")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert data_folder(spec) == Path("/caches/polyhead/data/distant-points")
    monkeypatch.setattr("sys.platform", "darwin")
    assert data_folder(spec) == Path("~/Library/Caches/polyhead/data/distant-points").expanduser()


@pytest.fixture
def distant(line_fit: Callable[..., Any], spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command `line-fit` with one more dataset, a public one."""
    name, plugin = "fake", plugins.find_plugin("fake")
    task = replace(plugin.tasks[0], datasets=(*plugin.tasks[0].datasets, spec.name))
    changed = replace(plugin, datasets=(*plugin.datasets, spec), tasks=(task, *plugin.tasks[1:]))

    class Changed:
        @plugins.hookimpl
        def polyhead_plugin(self) -> Plugin:
            return changed

    plugins.reload()
    plugins.register(Changed(), name)
    return line_fit


def test_the_verb_fetches_and_says_what_to_do_next(distant: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    said = distant("datasets")
    assert said.code == 0
    assert "  get: line-fit datasets get distant-points  (0.3 MB)\n  use: --data distant-points\n" in said.out
    assert json.loads(distant("datasets", "--json").out)[-1]["files"] == [
        {"url": server.url, "sha256": DIGEST, "bytes": len(CONTENT)}
    ]

    said = distant("fit", "--data", "distant-points", "--steps", "1")
    assert said.code == 1
    assert 'Dataset "distant-points" has not been fetched' in said.err

    said = distant("datasets", "get", "distant-points")
    assert said.code == 0, said.err
    assert said.out == f"{tmp_path / 'data' / 'distant-points'}\n"
    assert "Licence: MIT." in said.err
    assert "Next: line-fit fit --data distant-points" in said.err

    said = distant("datasets", "get", "distant-points", "--out", "here", "--json")
    assert json.loads(said.out)["files"] == ["here/points.bin"]
    assert "Next: line-fit fit --data here" in said.err


def test_other_names_are_refused(distant: Callable[..., Any]) -> None:
    said = distant("datasets", "get", "distant-point")
    assert said.code == 1
    assert 'No public dataset "distant-point". Did you mean "distant-points"?  All: distant-points' in said.err
    said = distant("data", "check", "distant-pointz")
    assert said.err.startswith("line-fit: --data distant-pointz: no such file, folder or dataset. Did you mean")
    assert said.err.endswith("Embedded: toy-lines; public: distant-points\n")


def test_a_folder_of_the_same_name_here_is_what_is_meant(distant: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "distant-points").mkdir()
    said = distant("data", "check", "distant-points")
    assert "has not been fetched" not in said.err
