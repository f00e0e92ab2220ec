"""Where shards lie: ranges of names, files, and servers that are read in ranges of bytes."""

from __future__ import annotations

import functools
import http.server
import io
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.errors import CannotRunHere, InputError
from engines.preprocess import Preprocessing
from faq_deploy.augment import TrainingData, training_batches
from faq_deploy.shard_places import expanded, stamp_of
from faq_deploy.shards import ShardImages
from tests.shard_files import picture, write_shards

PLAIN = Preprocessing()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_ranges_keep_their_width() -> None:
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{0..1}/b{7..8}.tar") == ["0/b7.tar", "0/b8.tar", "1/b7.tar", "1/b8.tar"]
    for pattern, what in (("{3..1}.tar", "runs backwards"), ("{a,b}.tar", "hold no range"), ("{0..9.tar", "no range")):
        with pytest.raises(InputError, match=what):
            expanded(pattern)
    with pytest.raises(InputError, match="too long"):
        expanded("{0..99999999}.tar")


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files with byte ranges, which the standard library's handler doesn't know."""

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(found[1]), int(found[2] or len(content) - 1)) if found else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if found:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="http shards need aiohttp")
    (tmp_path / "served").mkdir()
    handler = functools.partial(Ranges, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_shards_behind_http_are_read_in_ranges_by_workers_too(tmp_path: Path, server: str) -> None:
    write_shards(tmp_path / "served", "train", [[0, 1, 0], [1]])
    (tmp_path / "served" / "classes.txt").write_text("cat\ndog\n")
    images = ShardImages(expanded(f"{server}/train-{{000..001}}.tar"), PLAIN)
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1])
    assert images.identity(3) == "train-001.tar/000003.png"
    np.testing.assert_array_equal(images.pixels(3), np.asarray(Image.open(io.BytesIO(picture(3)))))
    data, order = TrainingData(images, "none", 0), np.arange(4)
    here, there = ([x.tolist() for x, _ in training_batches(data, order, 2, workers=n)] for n in (0, 2))
    assert here == there
    with pytest.raises(InputError, match=r"train-002\.tar does not exist"):
        ShardImages(expanded(f"{server}/train-{{000..002}}.tar"), PLAIN)


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    pytest.importorskip("aiohttp", reason="http shards need aiohttp")
    with pytest.raises(CannotRunHere, match=r"http://127\.0\.0\.1:9/train\.tar could not be read") as caught:
        ShardImages(["http://127.0.0.1:9/train.tar"], PLAIN)
    assert "\n" not in caught.value.what


def test_a_protocol_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    for place, package in (("s3://bucket/x.tar", "s3fs"), ("gs://bucket/x.tar", "gcsfs")):
        with pytest.raises(CannotRunHere, match="need a package that is not installed") as caught:
            stamp_of(place)
        assert caught.value.remedy == f"pip install {package}"
    with pytest.raises(InputError, match="fsspec knows no protocol gopher"):
        stamp_of("gopher://bucket/x.tar")


def test_a_shard_that_shrank_on_its_server_is_named(tmp_path: Path, server: str) -> None:
    write_shards(tmp_path / "served", "train", [[0, 1, 0]])
    images = ShardImages([f"{server}/train-000.tar"], PLAIN)
    (tmp_path / "served" / "train-000.tar").write_bytes(bytes(700))  # what is asked for is no longer there
    with pytest.raises(InputError, match=r"train-000\.tar gave 0 bytes where \d+ were asked for: it was changed"):
        images.pixels(2)
