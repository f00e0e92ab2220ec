"""Our C passes: compiled once for this processor, kept in the user's cache, and used if their bits are torch's.

Nothing depends on them: without a compiler, or on a processor where torch rounds otherwise, the same numbers come from
torch's operations, a little slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.errors import WriteError
from engines.files import atomic_path
from engines.host import C_COMPILERS, c_compiler
from engines.user_cache import user_cache

__all__ = ["SWITCH", "Library", "library", "library_folder"]

SWITCH: Final = "FAQ_DEPLOY_COMPILED"  # 0: never use them

_SOURCE: Final = Path(__file__).with_name("passes.c")
# no contraction: a fused multiply-add is where the source has one; the others let loops with rintf and sqrtf be vectors
_FLAGS: Final = (
    *("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-shared", "-fPIC"),
)
_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Library:
    """The passes, or why there are none.

    Attributes:
        functions: those of passes.c; None where they can't be used.
        trouble: why not; empty where they can.
    """

    functions: ctypes.CDLL | None
    trouble: str = ""


def library_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the library is kept: `$XDG_CACHE_HOME/faq-deploy/compiled`, by default below `~/.cache`."""
    return user_cache("compiled", environment)


@functools.cache
def library() -> Library:
    """The compiled passes, not yet tried for their bits; a machine's first call compiles them, in some three seconds.

    torch must have been imported, so that its threads are the library's too.
    """
    if os.environ.get(SWITCH) == "0":
        return Library(None, f"{SWITCH} is 0")
    if platform.system() != "Linux":
        return Library(None, f"they are made on Linux only, not on {platform.system()}")
    compiler = c_compiler()
    if compiler is None:
        return Library(None, f"there is no C compiler ({', '.join(C_COMPILERS)})")
    try:
        file = library_folder() / f"{_key(compiler)}.so"
        if not file.is_file():
            _compile(compiler, file)
        if trouble := _not_ours(file):
            return Library(None, trouble)
        threads = _openmp_libraries()
        functions = ctypes.CDLL(str(file))
    except subprocess.TimeoutExpired:
        return Library(None, f"{compiler} took over {_SECONDS:.0f} s")
    except (OSError, WriteError) as error:
        return Library(None, str(error))
    except subprocess.CalledProcessError as error:
        words = (str(error.stderr or "").strip() or f"it ended with exit code {error.returncode}").splitlines()[0]
        return Library(None, f"{compiler} can't compile them: {words}")
    if threads and _openmp_libraries() != threads:
        return Library(None, "they would start threads beside torch's: torch has another OpenMP library")
    return Library(functions)


def _compile(compiler: str, file: Path) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(temporary), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
        temporary.chmod(0o700)
    file.chmod(0o700)


def _key(compiler: str) -> str:
    """Of everything that the library's machine code depends on."""
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
    ).stdout
    told = [_SOURCE.read_text(), compiler, version, *_FLAGS, platform.machine(), *_processor()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


def _processor() -> list[str]:
    """The lines of /proc/cpuinfo that name the first processor and its instructions."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    keys = ("model", "flags", "Features", "CPU ")
    return sorted(line for line in first.splitlines() if line.startswith(keys))


def _not_ours(file: Path) -> str:
    """Why a library from the cache must not be loaded; empty if it may."""
    for place in (file.parent, file):
        found = place.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"others may write {place}: remove it"
    return ""


def _openmp_libraries() -> frozenset[str]:
    """Paths of those that this process has loaded."""
    paths = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line)
    return frozenset(path for path in paths if Path(path).name.startswith(("libgomp", "libomp", "libiomp")))
