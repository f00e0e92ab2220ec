"""The pages do what they say: their Python and commands run, top to bottom, and their data is read by its readers.

A block is Python, data of ours, commands, or says in a comment above it why it is not run. Commands that train, or
whose block says `only typed: why`, are at least parsed: tests/test_site.py. tests/e2e/test_readme.py has the README's.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from examples.digits import float_net, loaders
from faq_deploy.baseline import REGRESSION
from faq_deploy.gate import TOP1
from faq_deploy.limits import Limits, read_limits
from faq_deploy.recipe import parse_recipe
from tests.page_blocks import Block, blocks, whole_commands
from tests.workshop import furnish, small_cifar, typed

pytestmark = pytest.mark.xdist_group("pages")

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# made from what they describe, and held against it by tests of their own
GENERATED: Final = {"cli.md", "errors.md", "lint.md", "python.md", "results.md"}
# pages that tell one story, each of them in the folder that the last one left; all their commands are run
STORIES: Final = {
    "digits": ("your-model.md", "ci-gate.md", "read-the-report.md"),
    "cifar": ("jetson.md", "cifar-4bit.md"),
}
OTHERS: Final = [
    p for p in PAGES if p.name not in {*GENERATED, *(page for pages in STORIES.values() for page in pages)}
]
# put behind what a story says, so that it takes seconds: its training counts for nothing then, and so does its verdict
SHORTER: Final = {"train": ["--epochs", "1"], "quantize": ["--epochs", "0"], "eval": ["--reference-images", "8"]}
# verbs of the other pages that take a second on a small net
QUICK: Final = {"build", "bundle", "compare", "eval", "export", "inspect", "lint", "recipes", "snap", "verify"}
NOT_QUICK: Final = {
    "--sm ": "builds for several GPUs",
    "eval runs/8bit": "its shards take a training",
    "--data imagenet": "needs ImageNet",
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages name; each page works on a copy."""
    folder = tmp_path_factory.mktemp("workshop") / "all"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        furnish(folder)
    return folder


def names_of(page: str) -> dict[str, object]:
    """What a page's Python takes for given."""
    if page not in {"README.md", "api.md"}:
        return {}
    loader, _ = loaders()
    images, labels = next(iter(loader))
    if page == "api.md":
        return {"images": images.numpy()}

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.002)
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return {"net": float_net(), "images": images, "loader": loader, "train": train}


def read_toml(block: Block) -> None:
    """A recipe or a gate file."""
    if block.page == "recipes.md":
        parse_recipe(block.text, block.place)
    else:
        assert block.mark.startswith("file: "), block.place
        read_limits(Path(block.mark.removeprefix("file: ")), {})


def read_yaml(block: Block) -> None:
    """A job for a CI system: where it uses our action, the action has its inputs."""
    inputs = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))["inputs"]
    steps = [step for step in _dicts(yaml.safe_load(block.text)) if "faq-deploy" in str(step.get("uses"))]
    assert all(set(step["with"]) <= set(inputs) for step in steps), block.place
    assert steps or "accuracy_gate.sh" in block.text, block.place


def _dicts(found: object) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict):
        yield found
    for inner in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _dicts(inner)


def read_xml(block: Block) -> None:
    ElementTree.fromstring(f"<all>{block.text}</all>")


READERS: Final = {"toml": read_toml, "yaml": read_yaml, "xml": read_xml}


def run_block(block: Block, names: dict[str, object]) -> None:
    """Write, execute or read a block that holds no commands."""
    if block.mark.startswith("file: "):
        Path(block.mark.removeprefix("file: ")).write_text(block.text, "utf-8")
    if block.language == "python" and not block.mark:
        exec(compile(block.text, block.place, "exec"), names)
    if block.language in READERS:
        READERS[block.language](block)


def quick_commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Those that a small net has done in a second, and that can be typed as they stand."""
    if block.page == "README.md" or block.mark.startswith("only typed: "):
        return
    for place, words in whole_commands(block):
        line = " ".join(words) + " "
        whole = not re.search(r"\b(RUN|NAME|VERB|MODEL|FILE)\b|\.\.\. ", line)
        if words and words[0] in QUICK and whole and not any(part in line for part in NOT_QUICK):
            yield place, words


def wanted_code(block: Block) -> int:
    return int(block.mark.removeprefix("exit code ")) if block.mark.startswith("exit code ") else 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        if page.name in GENERATED or block.mark.startswith("not run: "):
            continue
        known = block.language == "python" or block.language in READERS or list(whole_commands(block))
        assert known, f"{block.place}: neither Python nor data nor commands; `<!-- not run: why -->` above it says so"
        assert block.mark == "" or re.match(r"file: \S+$|exit code [1-3]$|only typed: .", block.mark), block.place


def test_blocks_that_are_not_run_are_few() -> None:
    marks = [block.mark.partition(": ")[0] for page in PAGES for block in blocks(page)]
    assert marks.count("not run") <= 10
    assert marks.count("only typed") <= 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.name)
def test_page_does_what_it_says(page: Path, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(workshop, tmp_path / "own"))
    monkeypatch.chdir(folder)
    names = names_of(page.name) | {"__name__": page.stem}
    for block in blocks(page):
        if block.mark.startswith("not run: "):
            continue
        run_block(block, names)
        for place, words in quick_commands(block):
            _make_room(words)
            result = typed(words)
            allowed = {0, 1} if words[0] in {"eval", "lint"} else {0}  # gates and rules are the page's, not this net's
            assert result.exit_code in allowed, f"{place}: {result.output}"


def _make_room(words: list[str]) -> None:
    """Remove what a command is to write, as pages show the same one twice."""
    if "-o" in words and words[0] != "build":
        path = Path(words[words.index("-o") + 1])
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("story", "commands"), [("digits", 19), ("cifar", 14)])
def test_story_is_true(story: str, commands: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tell(story, tmp_path, monkeypatch, short=True) == commands


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_story_is_true_with_all_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tell("digits", tmp_path, monkeypatch, short=False) == 19


def tell(story: str, folder: Path, patch: pytest.MonkeyPatch, *, short: bool) -> int:
    """Do all that its pages say, and count the commands."""
    commands = 0
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    if story == "cifar":
        small_cifar(folder)
    for page in STORIES[story]:
        names: dict[str, object] = {"__name__": page}
        for block in blocks(ROOT / "docs" / page):
            if block.mark.startswith("not run: "):
                continue
            run_block(block, names)
            for place, words in whole_commands(block):
                result = typed([*words, *(SHORTER.get(words[0], []) if short else [])])
                commands += 1
                code = wanted_code(block)
                allowed = {0, 1} if short and words[0] == "eval" and code < 2 else {code}
                assert result.exit_code in allowed, f"{place}: {result.output}"
    return commands


def test_quick_commands_are_many() -> None:
    found = {" ".join(words) for page in OTHERS for block in blocks(page) for _, words in quick_commands(block)}
    assert len(found) >= 15
    lines = [f"{' '.join(words)} " for page in OTHERS for block in blocks(page) for _, words in whole_commands(block)]
    assert [part for part in NOT_QUICK if not any(part in line for line in lines)] == []


def test_page_on_4_bits_has_the_figures_of_the_experiments() -> None:
    page = (ROOT / "docs" / "cifar-4bit.md").read_text("utf-8")

    def record(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text("utf-8"))
        return found

    told = record("4bit-fold-2")
    top1 = [f"{epoch['top1']:.2f}" for epoch in told["epochs"]]
    assert f"| 1 to 6 | {', '.join(top1[:6])} |\n| 7 to 12 | {', '.join(top1[6:])} |" in page
    assert f"quantized, calibrated       {told['calibrated_top1']} %" in page
    assert f"{told['wall_seconds']:.0f} s" in page
    (command,) = [
        words
        for block in blocks(ROOT / "docs" / "cifar-4bit.md")
        for _, words in whole_commands(block)
        if "--seed" in words
    ]
    assert [word for word in told["command"] if "=" in word or word.startswith("--lr")] == [
        word for word in command if ("=" in word and "," not in word) or word.startswith("--lr")
    ]
    last = [record(f"4bit-fold-{seed}")["last_top1"] for seed in range(3)]
    assert f"{statistics.mean(last):.2f} ± {statistics.stdev(last):.2f} %" in page
    control = record("float-4bit-schedule-0")["last_top1"]
    assert f"{control:.2f} %" in page
    assert f"{control - statistics.mean(last):.2f} points" in page
    rows = re.findall(r"^\| `(4bit-[a-z-]+)`.* \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    assert [(name, figure) for name, figure in rows if f"{record(f'{name}-0')['last_top1']:.2f}" != figure] == []


def test_page_on_the_gate_counts_every_gate_and_names_those_that_can_be_undecided() -> None:
    page = (ROOT / "docs" / "ci-gate.md").read_text("utf-8")
    counted, undecided = (
        page.split(f"| gate | {column}", 1)[1].split("\n\n", 1)[0] for column in ("how many", "limit")
    )
    numbers = [int(number) for number in re.findall(r"^\| `[^`]+` \| (\d) \|", counted, re.MULTILINE)]
    assert (sum(numbers[:-2]), sum(numbers)) == (13, 15)
    assert "PASSED. All 13 gates passed." in (ROOT / "docs" / "your-model.md").read_text("utf-8")
    assert "PASSED. All 15 gates passed, 2 of them undecided." in page
    told = {name.partition(":")[0] for name in re.findall(r"^\| `([^`]+)`", undecided, re.MULTILINE)}
    assert told == {TOP1, REGRESSION, "drop of quantization", "accuracy drop", "largest drop of a class"}
    limits = re.findall(r"\| `(\w+)`[^|]* \|[^|]*\|$", undecided, re.MULTILINE)
    assert set(limits) <= set(Limits.model_fields) and len(limits) == 5
    sources = {
        file.name for file in (ROOT / "faq_deploy").glob("*.py") if "undecided=undecided" in file.read_text("utf-8")
    }
    assert sources == {"baseline.py", "class_rows.py", "gate.py"}  # where the page's five are made


def test_page_on_the_jetson_has_the_figures_of_the_experiments() -> None:
    page = " ".join((ROOT / "docs" / "jetson.md").read_text("utf-8").split())
    folder = ROOT / "experiments" / "results"
    found = [json.loads((folder / f"8bit-fold-{seed}.json").read_text("utf-8")) for seed in range(3)]
    last = [one["last_top1"] for one in found]
    assert f"gave {statistics.mean(last):.2f} ± {statistics.stdev(last):.2f} %" in page
    assert f"quantized, calibrated {found[0]['calibrated_top1']:.2f} %" in page
    assert f"({found[0]['float_top1']:.2f} % on CIFAR-10)" in page


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.png")), ids=lambda path: path.stem)
def test_picture_is_small_and_shown(picture: Path) -> None:
    assert picture.stat().st_size < 150_000
    assert f"(pictures/{picture.name})" in (ROOT / "docs" / "read-the-report.md").read_text("utf-8")
