"""The site builds without a warning, all pages are in it, and every command that the pages show can be typed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
import yaml
from click.testing import CliRunner

from cli import main
from docs_site import cli_page, errors_page, python_page, recipes_page
from docs_site.root_pages import ROOT_PAGES, site_markdown
from tests.known_gaps import GAPS
from tests.page_blocks import blocks, shell_commands, whole_commands
from tests.peer_models import PEER_FILES

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TYPED = [page for page in PAGES if page.name != "errors.md"]  # test_errors_page.py runs what errors.md shows
COMMANDS = cli_page.commands()
GENERATED = {
    "cli.md": cli_page.page,
    "errors.md": errors_page.page,
    "python.md": python_page.page,
    "recipes.md": recipes_page.page,
}


# The site


class _Loaded(HTMLParser):
    """What a browser fetches when it shows a page, and what the page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in {"script", "img", "source", "iframe"} and values.get("src"):
            self.fetched.append(values["src"] or "")
        if tag == "link" and values.get("rel") not in {"canonical", "prev", "next"}:
            self.fetched.append(values["href"] or "")
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it; a warning is an error."""
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def read(page: Path) -> _Loaded:
    found = _Loaded()
    found.feed(page.read_text("utf-8"))
    return found


def test_site_builds_without_a_warning(site: Path) -> None:
    assert {page.stem for page in DOCS} < {page.stem for page in site.glob("*.html")}
    assert "faq-deploy" in (site / "index.html").read_text("utf-8")


def test_pages_fetch_nothing_from_other_hosts(site: Path) -> None:
    fetched = {(page.name, name) for page in site.glob("*.html") for name in read(page).fetched}
    assert len(fetched) > len(DOCS)
    assert {(page, name) for page, name in fetched if "//" in name} == set()


def test_links_of_the_site_lead_to_its_files(site: Path) -> None:
    links = {(p.name, link.partition("#")[0]) for p in site.glob("*.html") for link in read(p).links}
    local = {(page, link) for page, link in links if link and "//" not in link and not link.startswith("/")}
    assert ("security.html", "SECURITY.html") in local
    assert {(page, link) for page, link in local if not (site / link).exists()} == set()


def test_lists_and_tables_are_such_on_the_site(site: Path) -> None:
    assert "<li>Ids of lint rules" in (site / "stability.html").read_text("utf-8")
    assert "\n- " not in re.sub(r"<pre.*?</pre>", "", (site / "index.html").read_text("utf-8"), flags=re.DOTALL)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    named = re.findall(r"(\S+\.md)$", text, re.MULTILINE)
    assert sorted(named) == sorted([*(page.name for page in DOCS), *ROOT_PAGES])


def test_navigation_has_its_groups() -> None:
    nav = yaml.safe_load("nav:" + (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2])["nav"]
    groups = ["Quickstart", "Tutorials", "Guides", "Concepts", "Reference", "Measured", "About"]
    assert [next(iter(g)) for g in nav] == groups


@pytest.mark.parametrize("name", GENERATED)
def test_generated_page_is_what_the_script_gives(name: str) -> None:
    assert (ROOT / "docs" / name).read_text("utf-8") == GENERATED[name](), f"run docs_site/{Path(name).stem}_page.py"


def test_command_line_page_names_every_command_and_option() -> None:
    page = cli_page.page()
    for words, command in COMMANDS.items():
        section = page.partition(f"\n## {' '.join(('faq-deploy', *words))}\n")[2].partition("\n## ")[0]
        assert section
        missing = [o for o in options_of(command) - {"--help", "-h"} if f"`{o}`" not in section]
        assert missing == [], words


def test_python_page_has_every_promised_name() -> None:
    page = python_page.page()
    headings = re.findall(r"^### (\S+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(f"{package.__name__}.{name}" for package, name in python_page.promised())


def test_links_and_lists_are_turned_outside_code_only() -> None:
    page = "see [a](docs/a.md):\n- one\n- two\n\n```\nx](docs/a.md)\n- three\n```\n"
    wanted = "see [a](a.md):\n\n- one\n- two\n\n```\nx](docs/a.md)\n- three\n```\n"
    assert site_markdown(page, in_root=True) == wanted
    assert site_markdown("[b](../B.md)\n| a |\n| - |\n", in_root=False) == "[b](B.md)\n\n| a |\n| - |\n"


# The new pages


def test_page_of_what_it_does_not_do_names_every_gap() -> None:
    page = " ".join((ROOT / "docs" / "not.md").read_text("utf-8").split())
    assert [gap.what for gap in GAPS if gap.what not in page] == []


@pytest.mark.parametrize(("tool", "row"), [("brevitas", "Brevitas 0.13.4"), ("modelopt", "ModelOpt 0.47.0")])
def test_migration_page_says_what_lint_and_snap_say(tool: str, row: str, tmp_path: Path) -> None:
    (line,) = [x for x in (ROOT / "docs" / "migrating.md").read_text("utf-8").splitlines() if x.startswith(f"| {row}")]
    before, after = line.strip("| ").split(" | ")[1:]
    found = CliRunner().invoke(main, ["lint", str(PEER_FILES / f"{tool}.onnx"), "--target", "tensorrt"])
    assert f"tensorrt: {before}." in " ".join(found.output.split())
    snapped = CliRunner().invoke(main, ["snap", str(PEER_FILES / f"{tool}.onnx"), "-o", str(tmp_path / "po2.onnx")])
    assert snapped.exit_code == 0
    assert f"tensorrt: {after}." in " ".join(snapped.output.split())


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=lambda path: path.stem)
def test_picture_reads_in_light_and_dark_and_loads_nothing(picture: Path) -> None:
    text = picture.read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text
    assert "url(" not in text
    used = set(re.findall(r'class="([^"]+)"', text))
    light, dark = text.split("prefers-color-scheme: dark")
    assert {name for name in used if f".{name} {{" not in light or f".{name} {{" not in dark} == set()
    assert f"(pictures/{picture.name})" in "".join(page.read_text("utf-8") for page in DOCS)


# Commands

# options of docker, pip, pytest, tritonserver and our own scripts that the pages name in passing
OTHERS = {
    *("--backend-config", "--build-arg", "--gpus", "--one-core", "--randomly-seed", "--shm-size", "--slow"),
    *("--system-site-packages", "--user"),
}


def options_of(command: click.Command) -> set[str]:
    """All names of its options."""
    declared = {o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)}
    return declared | {"--help", "-h"}


def page_commands(path: Path) -> list[tuple[str, list[str]]]:
    """All commands that a page's blocks show to be typed."""
    return [command for block in blocks(path) for command in whole_commands(block)]


def inline_commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The same of commands that its sentences name."""
    text = re.sub(r"^(```|~~~).*?^\1", lambda m: "\n" * m[0].count("\n"), path.read_text("utf-8"), flags=re.S | re.M)
    for found in re.finditer(r"`faq-deploy( [^`]+)?`", text):
        place = f"{path.name}:{text.count(chr(10), 0, found.start()) + 1}"
        yield from ((place, words) for words in shell_commands("faq-deploy" + " ".join((found[1] or "").split("\n"))))


def placeholder(word: str) -> bool:
    """DIR, RUN|FILE.onnx, VERB, [OPTIONS] or ...: not to be typed as it stands."""
    return word == "..." or re.fullmatch(r"\[.*\]|[A-Z][A-Z|.:=_*]*(onnx|toml|json)?(\.\.\.)?", word) is not None


def verb_of(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The command that words name, and the rest of them."""
    verb: tuple[str, ...] = ()
    while words and (*verb, words[0]) in COMMANDS:
        verb, words = (*verb, words[0]), words[1:]
    return verb, words


def refused(words: list[str], *, whole: bool) -> str:
    """Why the command line would not take these words, "" if it would.

    Args:
        words: behind `faq-deploy`.
        whole: whether required arguments and options must be there, as of a line to be typed.
    """
    verb, rest = verb_of(words)
    command = COMMANDS[verb]
    if isinstance(command, click.Group) and rest and not rest[0].startswith("-") and not placeholder(rest[0]):
        return f"there is no verb {rest[0]}"
    unknown = [w for w in rest if re.match(r"--?[a-z]", w) and w.partition("=")[0] not in options_of(command)]
    if unknown:
        return f"{' '.join(verb)} has no option {unknown[0]}"
    if isinstance(command, click.Group) or {"--help", "-h", "--version"} & set(rest):
        return ""
    if any(word == "..." or word.startswith("[") for word in rest):
        return ""  # a line with something left out
    try:
        command.make_context(" ".join(verb), list(rest))
    except click.MissingParameter as error:
        return error.format_message() if whole else ""
    except click.BadParameter as error:
        return "" if any(placeholder(word) for word in rest) else error.format_message()
    except click.ClickException as error:
        return error.format_message()
    return ""


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.name)
def test_commands_in_blocks_can_be_typed(page: Path) -> None:
    wrong = [(p, words, why) for p, words in page_commands(page) if (why := refused(words, whole=True))]
    assert wrong == []


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page: Path) -> None:
    wrong = [(p, words, why) for p, words in inline_commands(page) if (why := refused(words, whole=False))]
    assert wrong == []


def test_options_in_sentences_exist() -> None:
    known = {option for command in COMMANDS.values() for option in options_of(command)}
    named = {(p.name, o) for p in PAGES for o in re.findall(r"`(--[a-z][a-z0-9-]*)", p.read_text("utf-8"))}
    assert {(page, option) for page, option in named if option not in known | OTHERS} == set()
    assert {option for _, option in named} >= OTHERS


def test_commands_are_found() -> None:
    assert sum(len(page_commands(page)) for page in PAGES) > 100
    assert sum(len(list(inline_commands(page))) for page in PAGES) > 50


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("faq-deploy exprot runs/r18", "there is no verb exprot"),
        ("faq-deploy recipes shw faq-8bit", "there is no verb shw"),
        ("faq-deploy export runs/r18 --chek-images 3", "export has no option --chek-images"),
        ("faq-deploy export --check-images 3", "Missing argument 'RUN'."),
        ("faq-deploy export runs/r18 more", "Got unexpected extra argument (more)"),
        ("faq-deploy quantize builtin:x --target gpu -o r", "Invalid value for '--target': 'gpu' is not one of"),
        ("faq-deploy snap a.onnx", "Missing option '--output' / '-o'."),
        ("faq-deploy export RUN --check-images N", ""),
        ("faq-deploy eval RUN > a.txt  # all", ""),
    ],
)
def test_wrong_commands_are_refused(line: str, why: str) -> None:
    (words,) = shell_commands(line)
    assert refused(words, whole=True).startswith(why)
    assert why != "" or refused(words, whole=True) == ""
