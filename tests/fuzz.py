"""Damaged inputs of every kind: a reader takes them, or says in one sentence what is wrong, and does so in time.

`python -m tests.fuzz --count 100000` tries so many. A failure names the command that tries that input alone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from engines import engine_manifest, onnx_facts
from engines.errors import FaqError
from engines.image_files import decode_image
from engines.lint import lint_file
from engines.opened_bundle import opened
from engines.qdq_graph import load_model, read_graph, zero_points
from engines.reference import ReferenceRunner
from engines.run_folder import RunFolder
from faq_deploy import recipe
from faq_deploy.shard_index import index_of
from faq_deploy.shard_places import stamp_of
from tests import mutations
from tests.bad_models import BAD_MODELS
from tests.bundles import bundle_of
from tests.engine_nets import built, classifier, exported_run
from tests.shard_files import sample, write_tar

__all__ = ["TARGETS", "Failure", "Target", "main", "own_cache", "tried"]

_CPU_SECONDS: Final = 10  # that one input may take; the slowest takes well under one
_WALL_SECONDS: Final = 300  # then the process ends by force: a hang in foreign code hears no signal
_ROOM: Final = 4 << 30  # bytes that inputs may make us ask for, all in all
_ENGINE_RECORD: Final = "engines/onnxruntime/manifest.json"


class Hang(BaseException):
    """An input took too long; not an Exception, which a reader might catch."""


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Args:
        name: on the command line.
        share: of the inputs, in parts.
        seeds: whole inputs; given the folder that damaged ones lie in, for files beside them.
        change: damages one.
        read: reads a damaged one, given its path.
        file: where it lies in that folder.
    """

    name: str
    share: int
    seeds: Callable[[Path], list[bytes]]
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]
    file: str


@dataclass(frozen=True)
class Failure:
    """An input that brought out something else than a sentence."""

    target: str
    number: int
    what: str

    def __str__(self) -> str:
        again = f"python -m tests.fuzz --only {self.target} --first {self.number} --count 1"
        return f"{self.what}\nagain: {again}"


def tried(target: Target, numbers: Sequence[int], folder: Path) -> Iterator[Failure]:
    """Try inputs of one kind.

    Args:
        target: the kind.
        numbers: of the inputs; each is made from its number alone.
        folder: an empty one.

    Yields:
        What went wrong.
    """
    seeds = target.seeds(folder)
    path = folder / target.file
    for number in numbers:
        chance = random.Random(f"{target.name} {number}")
        data = target.change(chance.choice(seeds), chance)
        path.write_bytes(data)
        what = _trouble(target, path)
        if what is not None:
            yield Failure(target.name, number, what)


def _trouble(target: Target, path: Path) -> str | None:
    try:
        with _in_time():
            target.read(path)
    except FaqError as error:
        if "\n" in error.what or "\n" in error.remedy or not error.what:
            return f"not one sentence: {error.what!r}"
    except Hang:
        return f"{target.name}: no end after {_CPU_SECONDS} seconds\n{traceback.format_exc()}"
    except MemoryError:
        return f"{target.name}: out of memory\n{traceback.format_exc()}"
    except Exception:
        return f"{target.name}: {traceback.format_exc()}"
    return None


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def end(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
    faulthandler.dump_traceback_later(_WALL_SECONDS, exit=True, file=2)  # pytest has another sys.stderr, of no handle
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _recipes(_: Path) -> list[bytes]:
    folder = Path(recipe.__file__).parent / "recipes"
    return [file.read_bytes() for file in sorted(folder.glob("*.toml"))]


def _run_manifests(folder: Path) -> list[bytes]:
    return [(exported_run(folder) / "manifest.json").read_bytes()]


def _engine_records(folder: Path) -> list[bytes]:
    built(exported_run(folder), ["onnxruntime"])
    return [(folder / _ENGINE_RECORD).read_bytes()]


def _models(folder: Path) -> list[bytes]:
    made = [classifier(folder / "a.onnx"), classifier(folder / "b.onnx", gemm=True, metadata={"target": "tensorrt"})]
    bad = [found.model().SerializeToString() for found in list(BAD_MODELS.values())[::4]]
    return [*(path.read_bytes() for path in made), *bad]


def _bundles(folder: Path) -> list[bytes]:
    return [bundle_of(folder).read_bytes()]


def _pictures(_: Path) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    colour, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for picture, kind, options in (
        *((colour, "JPEG", {"exif": exif}), (colour, "JPEG", {"progressive": True}), (grey, "JPEG", {})),
        *((colour, "PNG", {}), (grey.convert("1"), "PNG", {}), (colour.convert("P"), "PNG", {"interlace": 1})),
        *((colour, "TIFF", {}), (colour, "TIFF", {"compression": "tiff_lzw"}), (grey, "TIFF", {"compression": "jpeg"})),
        *(
            (colour, "BMP", {}),
            (colour, "PPM", {}),
            (colour, "WEBP", {}),
            (colour.convert("RGBA"), "WEBP", {"lossless": True}),
        ),
    ):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        found.append(stream.getvalue())
    return found


def _shards(folder: Path) -> list[bytes]:
    members = {name: data for number in range(3) for name, data in sample(number, number).items()}
    more = {**members, **sample(7, 1, "json"), "a" * 120 + "/x.png": b"long", "é.txt": b"other"}
    made = [write_tar(folder / "a.tar", members), write_tar(folder / "b.tar", more)]
    return [path.read_bytes() for path in made]


def _read_run(path: Path) -> None:
    run = RunFolder(path.parent)
    run.manifest()
    run.require_fresh("export", "model.onnx", {"quantized.pt": "quantize"})


def _read_engine(path: Path) -> None:
    engine_manifest.check(path.parent)


def _read_model(path: Path) -> None:
    lint_file(path)
    onnx_facts.read(path)
    graph = read_graph(load_model(path))
    zero_points(graph)
    ReferenceRunner(path).close()


def _read_bundle(path: Path) -> None:
    with opened(path):
        pass


def _read_picture(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        decode_image(path.read_bytes())


def _read_shard(path: Path) -> None:
    stamp = stamp_of(str(path))
    assert stamp is not None
    index_of(str(path), stamp)


TARGETS: Final = (
    Target("recipe", 10, _recipes, mutations.toml_bytes, recipe.load_recipe, "recipe.toml"),
    Target("run-manifest", 10, _run_manifests, mutations.json_bytes, _read_run, "manifest.json"),
    Target("engine-manifest", 10, _engine_records, mutations.json_bytes, _read_engine, _ENGINE_RECORD),
    Target("onnx", 15, _models, mutations.onnx_bytes, _read_model, "model.onnx"),
    Target("bundle", 8, _bundles, mutations.bundle_bytes, _read_bundle, "b.tgz"),
    Target("image", 25, _pictures, mutations.image_bytes, _read_picture, "picture"),
    Target("shard", 12, _shards, mutations.tar_bytes, _read_shard, "shard.tar"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try as many inputs as asked for; print each failure and a table of what was tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="inputs, of all kinds together")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--only", choices=[target.name for target in TARGETS], help="one kind alone")
    chosen = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory_now() + _ROOM, most))
    targets = [target for target in TARGETS if chosen.only in (None, target.name)]
    whole, failures = sum(target.share for target in targets), 0
    for target in targets:
        count = -(-chosen.count * target.share // whole)
        started = time.process_time()
        with own_cache(), tempfile.TemporaryDirectory() as folder:
            for failure in tried(target, range(chosen.first, chosen.first + count), Path(folder)):
                failures += 1
                print(failure, file=sys.stderr, flush=True)
        seconds = time.process_time() - started
        print(f"{target.name:<16}{count:>8,} inputs{seconds:>8.1f} s", flush=True)
    print(f"{failures} failures")
    return int(failures > 0)


@contextlib.contextmanager
def own_cache() -> Iterator[None]:
    """A cache folder that goes when the block ends: readers of shards keep what they found."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


def _memory_now() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
