"""How many processes `--devices` starts, what they are told, and that they end together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from engines.errors import CannotRunHere, InputError
from faq_deploy.launcher import counted, launch, launches, processes_here, started_by_launcher, started_processes

RANK = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK:
        monkeypatch.delenv(name, raising=False)


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_devices_are_a_number_or_auto() -> None:
    assert (counted("1", "auto"), counted("8", "cpu")) == (1, 8)
    assert (counted("auto", "cpu"), counted("auto", "cuda:1")) == (1, 1)
    for text in ("0", "-1", "two", "", "1.5"):
        with pytest.raises(InputError, match=r"is no number of processes"):
            counted(text, "cpu")


def test_processes_are_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launches(1)
    assert launches(2)
    assert (started_processes(), processes_here(), started_by_launcher()) == (1, 1, False)
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    assert (started_processes(), processes_here()) == (4, 2)
    assert not launches(1)
    assert not launches(2)
    with pytest.raises(InputError, match=r"--devices 4, but torchrun started 2 processes here\."):
        launches(4)


def test_each_process_gets_its_rank_and_all_the_same_place_to_meet(tmp_path: Path) -> None:
    keys = ["LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    write = f"import os; open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(' '.join(os.environ[k] for k in {keys}))"
    assert launch(3, python(write)) == 0
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    port = found[0][-1]
    assert found == [[str(rank), "3", "3", "127.0.0.1", port] for rank in range(3)]
    assert 0 < int(port) < 65536


def test_the_code_of_the_process_that_fails_is_that_of_all() -> None:
    began = time.monotonic()
    assert launch(2, python("import os, sys, time; os.environ['RANK'] == '0' and time.sleep(60); sys.exit(2)")) == 2
    assert time.monotonic() - began < 30  # the other one did not end by itself


def test_a_killed_process_is_named() -> None:
    kill = "import os, signal; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(CannotRunHere, match=r"Process 1 of 2 was killed \(SIGKILL\)"):
        launch(2, python(kill))


def test_ctrl_c_reaches_every_process_and_is_no_failure(tmp_path: Path) -> None:
    wait = (
        "import os, sys, time\n"
        f"name = r'{tmp_path}/' + os.environ['RANK']\n"
        "try:\n    open(name, 'w').close()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    open(name, 'w').write('asked')\n    sys.exit(130)\n"
    )

    def press() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    assert launch(2, python(wait)) == 130
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["asked", "asked"]


def test_processes_end_when_the_launching_one_is_gone(tmp_path: Path) -> None:
    inner = (
        "import os, signal, time\n"
        "from faq_deploy.launcher import in_processes\n"
        f"name = r'{tmp_path}/' + os.environ['RANK']\n"
        "@in_processes\n"
        "def command(device):\n"
        "    signal.signal(signal.SIGTERM, lambda *_: (open(name, 'w').write('asked'), os._exit(0)))\n"
        "    open(name, 'w').close()\n    time.sleep(60)\n"
        "command(devices='2', device='cpu')\n"
    )
    outer = f"import sys; from faq_deploy.launcher import launch; launch(2, [sys.executable, '-c', {inner!r}])"
    launching = os.spawnv(os.P_NOWAIT, sys.executable, python(outer))
    deadline = time.monotonic() + 60
    files = [tmp_path / "0", tmp_path / "1"]
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(launching, signal.SIGKILL)
    os.waitpid(launching, 0)
    while [file.read_text() for file in files] != ["asked", "asked"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
