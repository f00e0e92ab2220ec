"""The wheel and the sdist of a commit, the same bytes wherever they are built: `make dist`.

setuptools takes the time of SOURCE_DATE_EPOCH into the wheel, but not into the sdist, and the modes of files from the
tree: hence a tree with modes of its own, and an sdist that is packed again.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["build", "main"]

_ROOT: Final = Path(__file__).resolve().parents[1]


def build(tree: Path, output: Path, epoch: int) -> list[Path]:
    """Build a wheel and an sdist with the installed setuptools, without a network.

    Args:
        tree: with pyproject.toml; left as it is.
        output: folder for both.
        epoch: seconds since 1970, of every file in them.

    Returns:
        The sdist and the wheel.

    Raises:
        subprocess.CalledProcessError: setuptools failed; what it said is printed.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(tree, Path(scratch) / "tree"))
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        made = Path(scratch) / "dist"
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            print(done.stdout + done.stderr, file=sys.stderr)
        done.check_returncode()
        (sdist,) = made.glob("*.tar.gz")
        _pack_again(sdist, epoch)
        return [Path(shutil.copy(path, output)) for path in sorted(made.iterdir(), reverse=True)]


def _pack_again(sdist: Path, epoch: int) -> None:
    """The same files, sorted, of nobody, all of one time."""
    packed = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            kept = tarfile.TarInfo(member.name)
            kept.type, kept.size, kept.mtime = member.type, member.size, epoch
            kept.mode = 0o755 if member.isdir() else 0o644
            new.addfile(kept, old.extractfile(member))
    sdist.write_bytes(gzip.compress(packed.getvalue(), mtime=epoch))


def main(arguments: Sequence[str] | None = None) -> None:
    """Build what is committed, into dist/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD", help="what to build (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=_ROOT / "dist", help="(default: dist)")
    options = parser.parse_args(arguments)
    epoch = int(_git("show", "--no-patch", "--format=%ct", options.commit))
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=io.BytesIO(_git("archive", options.commit))) as tree:
            tree.extractall(scratch, filter="data")
        for path in build(Path(scratch), options.output, epoch):
            print(path)


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(_ROOT), *arguments], check=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main()
