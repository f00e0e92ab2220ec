"""Bundles as files: the same bytes every time; whatever an attacker or a bad disk makes of one is a sentence."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import bundle_archive
from engines.bundle_archive import extract
from engines.bundle_manifest import FORMAT, MANIFEST, BundleManifest, FileFacts, parse, summary
from engines.errors import InputError, WriteError
from tests.bundles import entry, manifest_of, packed, raw_archive

FILES = {"a.txt": b"first", "samples/00.png": bytes(range(256)) * 3, "empty": b"", "block": b"x" * 512}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return packed(tmp_path / "b.tgz", FILES, tmp_path / "in")


def unpacked(bundle: Path) -> dict[str, bytes]:
    """Every file that `extract` leaves, by its name; the folder is removed again."""
    with tempfile.TemporaryDirectory() as name:
        extract(bundle, Path(name))
        return {p.relative_to(name).as_posix(): p.read_bytes() for p in Path(name).rglob("*") if p.is_file()}


def assert_refused(bundle: Path, folder: Path, *parts: str) -> None:
    """`extract` says so in one sentence with these parts, and writes nothing outside `folder`."""
    folder.mkdir()
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        extract(bundle, folder)
    assert all(part in caught.value.what for part in (str(bundle), *parts)), caught.value.what
    assert "\n" not in caught.value.what
    assert [path for path in sorted(folder.parent.rglob("*")) if folder not in path.parents] == before


def test_what_goes_in_comes_out(bundle: Path) -> None:
    assert unpacked(bundle) == FILES


def test_same_files_give_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    again = packed(tmp_path / "other.tgz", dict(reversed(FILES.items())), tmp_path / "again")
    assert again.read_bytes() == bundle.read_bytes()


def test_archive_says_nothing_of_the_day_or_the_user(bundle: Path) -> None:
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == [MANIFEST, *sorted(FILES)]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert bundle.read_bytes()[4:8] == bytes(4)  # gzip's own time


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar here")
def test_tar_unpacks_it_too(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xzf", str(bundle), "-C", str(tmp_path / "out")], check=True)
    assert (tmp_path / "out" / "samples" / "00.png").read_bytes() == FILES["samples/00.png"]


@settings(max_examples=300)
@given(st.data())
def test_flipped_bit_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = packed(folder / "b.tgz", FILES, folder / "in").read_bytes()
        place = data.draw(st.integers(0, len(good) - 1))
        bad = bytearray(good)
        bad[place] ^= data.draw(st.integers(1, 255))
        (folder / "bad.tgz").write_bytes(bad)
        try:
            found = unpacked(folder / "bad.tgz")
        except InputError:
            return
        assert found == FILES  # such as another time in gzip's own header


@settings(max_examples=100)
@given(st.data())
def test_bundle_that_was_cut_short_is_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = packed(folder / "b.tgz", FILES, folder / "in").read_bytes()
        (folder / "bad.tgz").write_bytes(good[: data.draw(st.integers(0, len(good) - 1))])
        with pytest.raises(InputError, match=r"cut short|not a bundle|damaged"):
            unpacked(folder / "bad.tgz")


@settings(max_examples=200)
@given(st.binary(max_size=3000), st.booleans())
def test_noise_is_no_bundle(noise: bytes, is_packed: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "noise.tgz"
        path.write_bytes(gzip.compress(noise) if is_packed else noise)
        with pytest.raises(InputError):
            unpacked(path)


@settings(max_examples=200)
@given(st.data())
def test_changed_tar_behind_a_good_checksum_is_refused_or_equal(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inside = bytearray(gzip.decompress(packed(folder / "b.tgz", FILES, folder / "in").read_bytes()))
        inside[data.draw(st.integers(0, len(inside) - 1))] ^= data.draw(st.integers(1, 255))
        (folder / "bad.tgz").write_bytes(gzip.compress(bytes(inside)))
        try:
            found = unpacked(folder / "bad.tgz")
        except InputError:
            return
        assert found == FILES  # such as another letter in the manifest's `run`


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..", ".", "", "a//b", "C:\\evil", "é"])
def test_manifest_that_lists_a_path_outside_is_refused(tmp_path: Path, name: str) -> None:
    good = manifest_of({"a": b"evil"}).model_dump(mode="json")
    good["files"] = {name: good["files"]["a"]}
    bundle = raw_archive(tmp_path / "b.tgz", json.dumps(good).encode(), entry("a", b"evil"))
    assert_refused(bundle, tmp_path / "out", MANIFEST, "is damaged")


@pytest.mark.parametrize("name", ["../evil", "/tmp/faq-deploy-evil", "a/../../evil", "./a"])
def test_file_with_a_path_outside_is_refused(tmp_path: Path, name: str) -> None:
    bundle = raw_archive(tmp_path / "b.tgz", manifest_of({"a": b"evil"}), entry(name, b"evil"))
    assert_refused(bundle, tmp_path / "out", repr(name), "which its manifest doesn't list")


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.GNUTYPE_SPARSE, "an entry of type"),
        (tarfile.XHDTYPE, "an entry of type"),
        (tarfile.GNUTYPE_LONGNAME, "an entry of type"),
    ],
)
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: bytes, word: str) -> None:
    bundle = raw_archive(tmp_path / "b.tgz", manifest_of({"a": b""}), entry("a", kind=kind, link="/etc/passwd"))
    assert_refused(bundle, tmp_path / "out", "'a", word)


def test_link_that_a_later_file_would_be_written_through_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    link = entry("samples", kind=tarfile.SYMTYPE, link=str(tmp_path / "target"))
    bundle = raw_archive(tmp_path / "b.tgz", manifest_of({"samples/x": b"evil"}), link, entry("samples/x", b"evil"))
    assert_refused(bundle, tmp_path / "out", "a symbolic link")
    assert list((tmp_path / "target").iterdir()) == []


def test_file_that_comes_twice_is_refused(tmp_path: Path) -> None:
    bundle = raw_archive(tmp_path / "b.tgz", manifest_of({"a": b"good"}), entry("a", b"good"), entry("a", b"evil"))
    assert_refused(bundle, tmp_path / "out", "'a' twice")


def test_second_manifest_is_refused(tmp_path: Path) -> None:
    bundle = raw_archive(tmp_path / "b.tgz", manifest_of({"a": b"x"}), entry(MANIFEST, b"{}"), entry("a", b"x"))
    assert_refused(bundle, tmp_path / "out", "twice")


def test_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    listed = manifest_of({"a": b"x"}).model_dump(mode="json")
    listed["files"]["a/b"] = listed["files"]["a"]
    bundle = raw_archive(tmp_path / "b.tgz", json.dumps(listed).encode(), entry("a", b"x"), entry("a/b", b"x"))
    assert_refused(bundle, tmp_path / "out", "'a/b' is no name for a file of a bundle")


def test_file_that_nobody_listed_is_refused(tmp_path: Path) -> None:
    bundle = raw_archive(tmp_path / "b.tgz", manifest_of({"a": b"x"}), entry("a", b"x"), entry("b", b"y"))
    assert_refused(bundle, tmp_path / "out", "'b' which its manifest doesn't list")


def test_listed_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    bundle = raw_archive(tmp_path / "b.tgz", manifest_of({"a": b"x", "b": b"y"}), entry("a", b"x"))
    assert_refused(bundle, tmp_path / "out", "b is missing from it")


def test_file_of_another_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    bundle = raw_archive(tmp_path / "b.tgz", manifest_of({"a": b"xy"}), entry("a", b"xyz"))
    assert_refused(bundle, tmp_path / "out", "a has 3 bytes, and the manifest says 2")
    assert list((tmp_path / "out").iterdir()) == []


def test_changed_file_is_named(tmp_path: Path) -> None:
    bundle = raw_archive(tmp_path / "b.tgz", manifest_of({"model.onnx": b"good"}), entry("model.onnx", b"evil"))
    assert_refused(bundle, tmp_path / "out", "model.onnx is not what was bundled")


def test_bomb_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    size = bundle_archive._ALWAYS_ALLOWED + 1
    zeros = hashlib.sha256(bytes(size)).hexdigest()
    manifest = manifest_of({}).model_copy(update={"files": {"a": FileFacts(sha256=zeros, bytes=size)}})
    bundle = raw_archive(tmp_path / "b.tgz", manifest, entry("a", bytes(size)))
    assert bundle.stat().st_size < size / 500
    assert_refused(bundle, tmp_path / "out", "would unpack", "67 MB, which no bundle does")
    assert list((tmp_path / "out").iterdir()) == []


def test_total_has_a_limit_however_large_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = packed(tmp_path / "b.tgz", FILES, tmp_path / "in")
    monkeypatch.setattr(bundle_archive, "MOST_BYTES", 1000)
    assert_refused(bundle, tmp_path / "out", "would unpack")


def test_bomb_in_the_manifest_is_refused(tmp_path: Path) -> None:
    bundle = raw_archive(tmp_path / "b.tgz", b"[" * (bundle_archive._MOST_MANIFEST + 1))
    assert_refused(bundle, tmp_path / "out", "is not a bundle", MANIFEST)


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": 1, "files": 3}'])
def test_manifest_that_is_none_is_one_sentence(tmp_path: Path, text: bytes) -> None:
    assert_refused(raw_archive(tmp_path / "b.tgz", text), tmp_path / "out", f"{MANIFEST} is damaged")


def test_bomb_behind_the_last_file_is_not_read(tmp_path: Path) -> None:
    bundle = packed(tmp_path / "b.tgz", FILES, tmp_path / "in")
    bundle.write_bytes(bundle.read_bytes() + gzip.compress(bytes(1 << 20)))
    assert_refused(bundle, tmp_path / "out", "something after its last file")


def test_full_disk_is_seen_before_unpacking(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.bundle_archive.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    (tmp_path / "out").mkdir()
    with pytest.raises(WriteError, match="0 MB left") as caught:
        extract(bundle, tmp_path / "out")
    assert "TMPDIR" in caught.value.remedy
    assert list((tmp_path / "out").iterdir()) == []


def test_disk_that_fills_on_the_way_is_a_write_error(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(WriteError, match="No space left on device"):
        extract(bundle, tmp_path)


def test_half_written_bundle_never_has_its_name(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(tmp_path.iterdir()), bundle.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(WriteError, match="No space left on device"):
        packed(bundle, FILES, tmp_path / "in")
    assert (sorted(tmp_path.iterdir()), bundle.read_bytes()) == before


def test_newer_format_is_a_sentence_of_its_own(tmp_path: Path) -> None:
    newer = {**manifest_of({}).model_dump(mode="json"), "format": FORMAT + 1, "wonder": True}
    bundle = raw_archive(tmp_path / "b.tgz", json.dumps(newer).encode())
    assert_refused(bundle, tmp_path / "out", f"was made by a newer faq-deploy (bundle format {FORMAT + 1}")


def test_no_file_and_a_folder_are_no_bundles(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        extract(tmp_path / "none.tgz", tmp_path)
    with pytest.raises(InputError, match="is a folder, not a bundle"):
        extract(tmp_path, tmp_path)


def test_manifest_reads_back_as_it_was_written() -> None:
    manifest = manifest_of(FILES, bits=4, target="tensorrt")
    assert parse(manifest.model_dump_json().encode(), "b") == manifest
    assert isinstance(manifest, BundleManifest)


def test_certificate_is_told_by_its_largest_sum() -> None:
    found = summary({"a": {"ratio": 0.25, "proven": True}, "b": {"ratio": 1.5, "proven": False}})
    assert found is not None
    assert (found.sums, found.proven, found.largest, found.layer) == (2, 1, 1.5, "b")
    assert summary({}) is None
    assert summary({"a": 3}) is None
