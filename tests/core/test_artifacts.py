"""Files are whole or not there, and damage is named."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyhead import artifacts
from polyhead.errors import CheckpointError, StorageError


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def make_folder(path: Path, text: str = "one") -> Path:
    with artifacts.atomic_folder(path, replace=True) as temporary:
        (temporary / "a.txt").write_text(text)
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b.txt").write_text("b")
        artifacts.write_manifest(temporary)
    return path


# A file that a process may not grow beyond stands for a full disk: the same path through the code, no root needed.
@pytest.fixture
def tiny_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    artifacts.write_atomic(path, b"one")
    artifacts.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert listing(tmp_path) == ["a.json"]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half_written() -> None:
        with artifacts.atomic_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half_written()
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["a.txt"]


def test_an_error_of_the_callers_block_keeps_its_type(tmp_path: Path) -> None:
    def read_another() -> None:
        with artifacts.atomic_file(tmp_path / "a.txt"):
            (tmp_path / "missing.csv").read_text()

    with pytest.raises(FileNotFoundError, match=r"missing\.csv") as caught:
        read_another()
    assert not isinstance(caught.value, StorageError)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "a.json"
    with pytest.raises(
        StorageError, match=r"Cannot write .*a\.json: No such file or directory\. Make its folder first\."
    ):
        artifacts.write_atomic(path, b"x")


@pytest.mark.usefixtures("tiny_files")
def test_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    artifacts.write_atomic(tmp_path / "a.json", b"old")
    artifacts.save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    make_folder(tmp_path / "folder")
    before = listing(tmp_path)
    with pytest.raises(
        StorageError, match=r"Cannot write .*a\.json: File too large\. What was there before is unchang"
    ):
        artifacts.write_atomic(tmp_path / "a.json", b"x" * 200_000)
    with pytest.raises(StorageError, match=r"Cannot write .*a\.safetensors: File too large\."):
        artifacts.save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(10**6)})

    def big_folder() -> None:
        with artifacts.atomic_folder(tmp_path / "folder", replace=True) as temporary:
            artifacts.save_tensors(temporary / "m.safetensors", {"x": torch.ones(10**6)})

    with pytest.raises(StorageError, match=r"Cannot write \S*/folder/m\.safetensors: File too large\."):
        big_folder()
    assert listing(tmp_path) == before
    assert (tmp_path / "a.json").read_bytes() == b"old"
    artifacts.verify_manifest(tmp_path / "folder")
    assert torch.equal(artifacts.load_tensors(tmp_path / "a.safetensors")["x"], torch.ones(3))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            "No space left on device. Free some space or choose another place; what was there before is unch",
        ),
        (errno.EACCES, "Permission denied. Choose a folder that you may write."),
        (errno.EROFS, "Read-only file system. Choose a folder that you may write."),
        (errno.EIO, "Input/output error. What was there before is unchanged."),
    ],
)
def test_what_the_system_refuses_is_said_with_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=rf"Cannot write \S*/a\.json: {re.escape(message)}") as caught:
        artifacts.write_atomic(tmp_path / "a.json", b"x")
    assert caught.value.errno == number
    assert listing(tmp_path) == []


def test_atomic_folder_appears_at_once_and_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "model"
    with artifacts.atomic_folder(path) as temporary:
        (temporary / "a.txt").write_text("one")
        assert not path.exists()
        artifacts.write_manifest(temporary)
    make_folder(path, "two")
    assert (path / "a.txt").read_text() == "two"
    assert listing(tmp_path / "runs") == [
        "model",
        *(f"model/{n}" for n in ("a.txt", "manifest.json", "sub", "sub/b.txt")),
    ]


def test_replacing_without_a_system_exchange_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts.sys, "platform", "plan9")
    path = make_folder(tmp_path / "model", "one")
    make_folder(path, "two")
    assert (path / "a.txt").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with artifacts.atomic_folder(tmp_path / "model") as temporary:
        (temporary / "a.txt").write_text("a")
    assert listing(tmp_path / "model") == ["a.txt"]


def test_files_of_a_person_are_never_deleted(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "model")
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        StorageError, match=r"Cannot replace .*model: it holds files of others \(thesis\.tex\)\. Choose"
    ):
        make_folder(path, "two")
    home = tmp_path / "home"
    home.mkdir()
    for i in range(5):
        (home / f"{i}.txt").touch()
    with pytest.raises(StorageError, match=r"files of others \(0\.txt, 1\.txt, 2\.txt and 2 more\)"):
        make_folder(home)
    assert len(listing(home)) == 5
    assert (path / "a.txt").read_text() == "one"


def test_existing_targets_are_refused(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "model")
    with (
        pytest.raises(StorageError, match=r"it exists and is not empty\. Choose another name\."),
        artifacts.atomic_folder(path),
    ):
        pass
    file = tmp_path / "file"
    file.touch()
    with (
        pytest.raises(StorageError, match=r"it is a file, not a folder\. Choose another name\."),
        artifacts.atomic_folder(file),
    ):
        pass


def test_killed_writers_leave_the_old_state_and_a_leftover_that_can_be_swept(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "model")
    code = (
        "import os, signal, sys\nfrom polyhead import artifacts\n"
        "with artifacts.atomic_folder(sys.argv[1], replace=True) as folder:\n"
        "    (folder / 'a.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (path / "a.txt").read_text() == "one"
    artifacts.verify_manifest(path)
    removed = artifacts.remove_leftovers(tmp_path)
    assert [p.name.startswith(".model.tmp-") for p in removed] == [True]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (tmp_path / ".a.tmp-1").touch()
    assert artifacts.remove_leftovers(tmp_path) == [tmp_path / ".a.tmp-1"]


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the first test vector of FIPS 180-2
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert artifacts.sha256_file(tmp_path / "a") == expected


def test_manifest_names_every_damaged_file(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "model")
    artifacts.verify_manifest(path)
    (path / "note.txt").touch()  # not ours; left alone
    artifacts.verify_manifest(path)
    data = bytearray((path / "a.txt").read_bytes())
    data[0] ^= 1
    (path / "a.txt").write_bytes(data)
    (path / "sub" / "b.txt").write_text("")
    with pytest.raises(
        CheckpointError, match=r"model is damaged: a\.txt does not match its digest; sub/b\.txt has 0 byt"
    ):
        artifacts.verify_manifest(path)
    (path / "a.txt").unlink()
    with pytest.raises(CheckpointError, match=r"a\.txt is missing; .* Use another copy of it\."):
        artifacts.verify_manifest(path)


def test_missing_manifest_means_unfinished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no manifest\.json: it was not written to its end\."):
        artifacts.verify_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", 'it has no object "files"'),
        ('{"files": {"a": {}}}', '"a" has no "sha256" and "bytes"'),
        ('{"files": {"a": 3}}', '"a" has no "sha256" and "bytes"'),
        ('{"files": {"../a": {"sha256": "", "bytes": 0}}}', 'names "../a", which lies outside'),
        ('{"files": {"/etc/passwd": {"sha256": "", "bytes": 0}}}', 'names "/etc/passwd", which lies outside'),
        ('{"files": {"c:\\\\a": {"sha256": "", "bytes": 0}}}', "lies outside"),
        ('{"files": {"": {"sha256": "", "bytes": 0}}}', "lies outside"),
        ("{", "is not JSON: Expecting property name.*line 1, column 2"),
    ],
)
def test_hostile_manifests_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        artifacts.verify_manifest(tmp_path)


@given(st.binary(max_size=200))
def test_any_bytes_as_json_end_in_a_value_or_our_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        artifacts.read_json(path)


def test_json_is_limited_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"a\.json is not JSON: "):
        artifacts.read_json(path)
    with pytest.raises(CheckpointError, match=r"a\.json is larger than 10 bytes"):
        artifacts.read_json(path, limit=10)
    path.write_text('{"a": NaN}')
    with pytest.raises(CheckpointError, match="NaN is not a JSON number"):
        artifacts.read_json(path)
    with pytest.raises(CheckpointError, match=r"Cannot read .*b\.json: No such file"):
        artifacts.read_json(tmp_path / "b.json")
    path.write_bytes(artifacts.json_bytes({"a": [1, 2.5, None, "ü"]}))
    assert artifacts.read_json(path) == {"a": [1, 2.5, None, "ü"]}
    with pytest.raises(ValueError, match="JSON"):
        artifacts.json_bytes({"a": float("nan")})


def test_tensors_come_back_whatever_their_strides_and_ties(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base,
        "tied": base,
        "transposed": base.T,
        "strided": base[:, ::2],
        "overlapping": base[1:],
        "empty": torch.zeros(0, 3),
        "also_empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "flags": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "wide": torch.ones(2, dtype=torch.float64, requires_grad=True),
    }
    artifacts.save_tensors(path, tensors)
    again = artifacts.load_tensors(path)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype, name
        assert torch.equal(again[name], tensor), name
        assert again[name].is_contiguous(), name
    assert again["base"] is again["tied"]
    data = path.read_bytes()
    artifacts.save_tensors(path, tensors)
    assert path.read_bytes() == data
    assert path.stat().st_size < 2000


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    artifacts.save_tensors(path, {"x": torch.ones(4)})
    x = artifacts.load_tensors(path)["x"]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(x, torch.ones(4))


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match=r'Cannot save tensor "x" to .*a\.safetensors: it has no data'):
        artifacts.save_tensors(path, {"x": torch.ones(2, device="meta")})
    with pytest.raises(
        CheckpointError, match=r'tensor "x" .* is sparse \(torch\.sparse_coo\)\. Make it a dense tensor'
    ):
        artifacts.save_tensors(path, {"x": torch.eye(2).to_sparse()})
    with pytest.raises(CheckpointError, match=r"safetensors refuses .*dtypes: torch\.complex128"):
        artifacts.save_tensors(path, {"x": torch.ones(2, dtype=torch.complex128)})
    assert listing(tmp_path) == []


@pytest.mark.parametrize("position", [0, 9, 40, -1])
def test_a_flipped_byte_anywhere_is_found_with_a_manifest(tmp_path: Path, position: int) -> None:
    path = tmp_path / "a.safetensors"
    artifacts.save_tensors(path, {"x": torch.arange(100.0)})
    artifacts.write_manifest(tmp_path)
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: a\.safetensors does not match its digest"):
        artifacts.load_tensors(path)


@given(length=st.integers(0, 500))
def test_truncated_tensors_are_found_without_a_manifest_too(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = folder / "a.safetensors"
    artifacts.save_tensors(path, {"x": torch.arange(100.0), "y": torch.ones(3)})
    data = path.read_bytes()
    path.write_bytes(data[: min(length, len(data) - 1)])
    with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged or not safetensors: .* Use another copy"):
        artifacts.load_tensors(path)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors is missing\. Use another copy of "):
        artifacts.load_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ("no json", "the aliases in its header are no JSON object"),
        ("[]", "the aliases in its header are no JSON object"),
        (json.dumps({"y": 3}), "the aliases in its header are no JSON object"),
        (json.dumps({"y": "z"}), 'its header ties "y" to "z"'),
        (json.dumps({"x": "x"}), 'its header ties "x" to "x"'),
    ],
)
def test_hostile_aliases_are_refused(tmp_path: Path, aliases: str, message: str) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"aliases": aliases})
    with pytest.raises(CheckpointError, match=message):
        artifacts.load_tensors(tmp_path / "a.safetensors")
