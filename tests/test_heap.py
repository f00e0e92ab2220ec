"""Memory that a training keeps from step to step."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from faq_deploy.heap import keep_freed_memory

# each round frees 64 MiB and takes them again: without the settings the kernel clears 16384 pages in each
PROGRAM = """
import resource, sys
from faq_deploy.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory({})
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):  # holes of the right size come with time
    torch.ones(1 << 24)
before = faults()
for _ in range(5):
    torch.ones(1 << 24)
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_are_not_cleared_again() -> None:
    assert faults("leave") > 2 * 1024  # pages of 4 KiB, or fewer large ones
    assert faults("keep") < 100


@pytest.mark.parametrize(
    "environment", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}]
)
def test_what_the_user_chose_stays(environment: dict[str, str]) -> None:
    assert not keep_freed_memory(environment)


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory({})
