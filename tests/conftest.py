"""What all tests share: one thread each, repeatable examples, and which tests this machine can run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: two pytest workers share two cores, and the order of a sum depends on the thread count.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
# Help texts and tables look alike on every terminal, and in CI services that would switch colours on.
os.environ["COLUMNS"] = "120"
for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "GITHUB_ACTIONS", "PY_COLORS"):
    os.environ.pop(name, None)

# A runner that starts the tests in the background hands down a deaf Ctrl-C, and some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a first call imports torch. In CI the same examples each time, so that only a change can break it.
settings.register_profile("faq-deploy", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("faq-deploy")

_SLOW_SECONDS = 7200  # with --slow some tests do more than without


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Each test begins with torch's generator in the same state, whatever ran before it in its worker."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --slow."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what was not asked for (slow) or can't run here (gpu)."""
    skip_slow = pytest.mark.skip(reason="slow: run with --slow")
    skip_gpu = pytest.mark.skip(reason="gpu: no NVIDIA GPU here")
    has_gpu = Path("/dev/nvidiactl").exists()
    slow = config.getoption("--slow")
    for item in items:
        if slow:
            item.add_marker(pytest.mark.timeout(_SLOW_SECONDS))
        elif "slow" in item.keywords:
            item.add_marker(skip_slow)
        if "gpu" in item.keywords and not has_gpu:
            item.add_marker(skip_gpu)
