"""The reader of tar headers finds what the standard library finds, and refuses what is damaged."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from engines.errors import InputError
from faq_deploy.tar_members import Member, tar_members
from tests.shard_files import write_tar

LONG = "deep/" * 50 + "ä" * 30 + ".jpg"


def members(path: Path) -> list[Member]:
    with path.open("rb") as file:
        return list(tar_members(file, path.name, path.stat().st_size))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_offsets_and_sizes_are_the_standard_librarys(tmp_path: Path, form: int) -> None:
    names = ["a.jpg", "half/" * 24 + "b.cls", *([LONG] if form != tarfile.USTAR_FORMAT else []), "c.jpg"]
    content = {name: bytes([index]) * (index * 700) for index, name in enumerate(names)}
    path = write_tar(tmp_path / "x.tar", content, form)
    with tarfile.open(path) as archive:
        wanted = [Member(m.name, m.offset_data, m.size) for m in archive]
    assert members(path) == wanted
    whole = path.read_bytes()
    assert [whole[m.offset : m.offset + m.size] for m in members(path)] == list(content.values())


def test_folders_links_and_global_attributes_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", pax_headers={"comment": "all of them"}) as archive:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere" if kind == tarfile.SYMTYPE else ""
            archive.addfile(info)
        info = tarfile.TarInfo("folder/a.cls")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"3"))
    assert [(m.name, m.size) for m in members(path)] == [("folder/a.cls", 1)]


def test_sizes_beyond_eight_gigabytes_are_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("big.jpg")
    header.size = 9 << 30
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + (9 << 30) + 1024)  # a hole: it takes no room
    assert members(path) == [Member("big.jpg", 512, 9 << 30)]


@pytest.mark.parametrize("length", [100, 600, 1024, 1500, 2048])
def test_archives_that_are_cut_off_are_refused_wherever_they_end(tmp_path: Path, length: int) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": bytes(600), "b.jpg": bytes(10)}, tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:length])  # 1536 is the end of a member; even there the end mark is missing
    with pytest.raises(InputError, match=rf"x\.tar ends too early, after {length:,} bytes"):
        members(path)


def test_other_files_and_damaged_headers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(InputError, match="is not a tar archive") as caught:
        members(path)
    assert "compressed ones can't be read at random" in caught.value.remedy
    path.write_bytes(bytes(4096))
    with pytest.raises(InputError, match="holds no images: it begins with zeros"):
        members(path)
    whole = bytearray(write_tar(path, {"a": bytes(10), "b": bytes(10)}, tarfile.USTAR_FORMAT).read_bytes())
    whole[1024] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InputError, match="is damaged: there is no header at byte 1,024"):
        members(path)


def test_attributes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a": b"1"})
    whole = path.read_bytes()
    assert whole[512:531].startswith(b"23 mtime=")
    for attributes in (b"99999 mtime=1\n", b"0 mtime=1.25\n", b"xx mtime=1.25\n", b"12 size=ten\n"):
        path.write_bytes(whole[:512] + attributes.ljust(23, b" ") + whole[535:])
        with pytest.raises(InputError, match="attributes can't be read"):
            members(path)
