"""action.yml and the GitLab job run as they are written, without a network: a passing run, a failing one, bad input."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from faq_deploy.limits import Limits, read_limits
from faq_deploy.stored_report import read_report
from tests.e2e.conftest import Call
from tests.e2e.photos import colour_folder, quantize_photos
from tests.page_blocks import blocks

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
GITLAB = yaml.safe_load((ROOT / "docs" / "gitlab-ci.yml").read_text("utf-8"))
DOCS = (ROOT / "docs" / "ci.md").read_text("utf-8")
JUDGE = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "judge")
REPORTS = {"report.json", "report.html", "predictions.csv", "junit.xml", "summary.md", "lint.sarif"}

pytestmark = pytest.mark.xdist_group("digits")


def without_network() -> list[str]:
    """A prefix that takes the network away, where this machine can do that."""
    tried = (
        subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False) if shutil.which("unshare") else None
    )
    return ["unshare", "-n"] if tried is not None and tried.returncode == 0 else []


def run_bash(script: str, folder: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A step as a CI system runs it: bash, that stops at the first error."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {name: os.environ[name] for name in ("HOME", "OMP_NUM_THREADS", "LANG") if name in os.environ}
    command = [*without_network(), "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def github(folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """The action's own step, with `${{ inputs.NAME }}` filled in as GitHub does."""
    inputs = {name: str(spec["default"]) for name, spec in ACTION["inputs"].items()}
    inputs |= {name.replace("_", "-"): value for name, value in given.items()}
    environment = {
        name: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda found: inputs[found[1]], text)
        for name, text in JUDGE["env"].items()
    }
    files = {"GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "GITHUB_OUTPUT": str(folder / "output")}
    return run_bash(JUDGE["run"], folder, {**environment, **files, "GITHUB_ACTION_PATH": str(ROOT)})


def failed_cases(folder: Path) -> list[str]:
    cases = ElementTree.parse(folder / "junit.xml").getroot().findall("testcase")
    return [case.get("name", "") for case in cases if case.find("failure") is not None]


def test_a_passing_run_leaves_every_report_and_the_summary(run_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text("max_drop = 0\nmin_top1 = 70\n")
    done = github(tmp_path, run=str(run_copy), gates="gate.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in (tmp_path / "faq-report").iterdir()} == REPORTS
    assert (tmp_path / "output").read_text() == "exit-code=0\nreports=faq-report\n"
    assert (tmp_path / "summary.md").read_text("utf-8").startswith("## ✅ faq-deploy: copy passed")
    assert failed_cases(tmp_path / "faq-report") == []
    assert read_report(tmp_path / "faq-report").predictions is not None

    # the next release against this one, and a gate that it can't keep
    (tmp_path / "gate.toml").write_text("min_top1 = 100\n")
    shutil.copytree(tmp_path / "faq-report", tmp_path / "released")
    done = github(tmp_path, run=str(run_copy), gates="gate.toml", baseline="released/report.json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (tmp_path / "output").read_text().endswith("exit-code=1\nreports=faq-report\n")
    assert {file.name for file in (tmp_path / "faq-report").iterdir()} == REPORTS
    assert failed_cases(tmp_path / "faq-report") == ["top-1"]
    assert "❌" in (tmp_path / "summary.md").read_text("utf-8")
    report = read_report(tmp_path / "faq-report").report
    assert report.baseline is not None and report.baseline.same_network
    (gate,) = [gate for gate in report.gates if gate.name == "regression"]
    assert (gate.value, gate.outcome) == (0, "passed")

    # bad input: no report of an earlier run may pass for this one's
    (tmp_path / "gate.toml").write_text("min_top = 70\n")
    done = github(tmp_path, run=str(run_copy), gates="gate.toml")
    assert done.returncode == 2
    assert "'min_top' is no gate" in done.stderr and "did you mean min_top1?" in done.stderr
    assert {file.name for file in (tmp_path / "faq-report").iterdir()} == {"lint.sarif"}


def test_gitlabs_job_judges_a_run_that_was_not_built_yet(run_copy: Path, tmp_path: Path) -> None:
    job = GITLAB["accuracy"]
    shutil.rmtree(run_copy / "engines")
    (tmp_path / "gate.toml").write_text('required_runtimes = ["onnxruntime"]\n')
    variables = {name: str(value) for name, value in job["variables"].items()}
    variables |= {"FAQ_DEPLOY": str(ROOT), "FAQ_RUN": str(run_copy), "FAQ_BUILD_ARGS": "--runtime onnxruntime --force"}
    done = run_bash("\n".join(job["script"]), tmp_path, variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / job["artifacts"]["reports"]["junit"]).is_file()
    assert {file.name for file in (tmp_path / job["artifacts"]["paths"][0]).iterdir()} == REPORTS


_GH = """\
#!/bin/bash
# stands in for GitHub's own command: a release is a folder
set -e
case "$1 $2" in
"release create") mkdir -p "$RELEASES/$3" && cp "$4" "$RELEASES/$3/" ;;
"release download") [[ "$4" == --pattern ]] && cp "$RELEASES/$3/$5" . ;;
esac
"""


def test_what_the_tutorial_packs_is_judged_where_it_is_fetched(call: Call, nets: Path, tmp_path: Path) -> None:
    page = blocks(ROOT / "docs" / "ci-gate.md")
    (pack,) = [block.text for block in page if "tar czf" in block.text]
    (gates,) = [block.text for block in page if block.mark == "file: gate.toml"]
    (job,) = [yaml.safe_load(block.text)["jobs"]["gate"] for block in page if block.language == "yaml"]
    desk, machine, bin = tmp_path / "desk", tmp_path / "machine", tmp_path / "bin"
    for folder in (desk, machine, bin):
        folder.mkdir()
    (bin / "gh").write_text(_GH)
    (bin / "gh").chmod(0o755)
    path = f"{bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"PATH": path, "RELEASES": str(tmp_path / "releases"), "GH_TOKEN": ""}

    run, data = desk / "runs" / "mine", colour_folder(desk / "photos")
    assert quantize_photos(call, f"{nets}:nearest", data, run).exit_code == 0
    for verb in ("export", "build", "eval"):
        assert call(verb, run).exit_code == 0
    (desk / "gate.toml").write_text(gates)
    *lines, commit = pack.splitlines()
    done = run_bash("\n".join(lines), desk, variables)
    assert done.returncode == 0, done.stderr
    for name in commit.removeprefix("git add ").split():
        shutil.copy(desk / name, machine / name)
    shutil.rmtree(desk)

    fetch, judge = job["steps"][-2:]
    done = run_bash(fetch["run"], machine, variables)
    assert done.returncode == 0, done.stderr
    assert not list(machine.glob("runs/mine/engines")) and not list(machine.glob("runs/mine/checkpoint.pt"))
    done = github(machine, **judge["with"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED. All" in done.stdout

    archive = machine / "gate.tgz"
    packed = next((tmp_path / "releases").glob("*/gate.tgz"))
    packed.write_bytes(archive.read_bytes() + b"more")
    assert run_bash(fetch["run"], machine, variables).returncode != 0  # another archive than the one committed


def test_no_input_is_text_of_a_script() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
    used = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text("utf-8")))
    assert used == set(ACTION["inputs"])
    script = (ROOT / "ci" / "accuracy_gate.sh").read_text("utf-8")
    assert set(JUDGE["env"]) == set(re.findall(r"^#   (FAQ_\w+) ", script, re.MULTILINE))


def test_the_docs_show_these_files_and_name_every_key(tmp_path: Path) -> None:
    assert (ROOT / "docs" / "gitlab-ci.yml").read_text("utf-8") in DOCS
    blocks = re.findall(r"^```toml\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    for index, block in enumerate(blocks):
        (tmp_path / f"{index}.toml").write_text(block)
        assert read_limits(tmp_path / f"{index}.toml", {}) != Limits()
    assert len(blocks) >= 2
    assert set(re.findall(r"^\| `(\w+)` \|", DOCS, re.MULTILINE)) >= set(Limits.model_fields)
