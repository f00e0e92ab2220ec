"""The Dockerfiles: what they copy is there, nobody runs as root, versions are named.

tests/e2e/test_without_torch.py carries the steps of the CPU's one out.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.dockerfile import ROOT, Image, built, instructions

FILES = ("Dockerfile.cpu", "Dockerfile.tensorrt")
SENT = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}


def steps(name: str) -> dict[str, list[str]]:
    """The texts of each kind of instruction, in order."""
    found: dict[str, list[str]] = {}
    for instruction in instructions(ROOT / "docker" / name):
        found.setdefault(instruction.name, []).append(instruction.text)
    return found


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_there_and_is_sent_to_docker(name: str) -> None:
    sources = [source for text in steps(name)["COPY"] for source in text.split()[:-1]]
    assert sorted(sources) == sorted(SENT)
    assert [source for source in sources if not (ROOT / source).exists()] == []


@pytest.mark.parametrize("name", FILES)
def test_packages_of_the_wheel_are_copied(name: str) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r'include = \["(\w+)\*", "(\w+)\*", "(\w+)\*"\]', text)
    modules = re.search(r'py-modules = \["(\w+)"\]', text)
    assert packages is not None
    assert modules is not None
    assert {*packages.groups(), f"{modules[1]}.py"} <= SENT


@pytest.mark.parametrize("name", FILES)
def test_containers_run_the_command_as_nobody_special(name: str) -> None:
    found = steps(name)
    assert found["USER"] == ["1000:1000"]
    assert found["ENTRYPOINT"] == ['["faq-deploy"]']


def test_base_images_are_named_with_their_versions() -> None:
    assert steps("Dockerfile.cpu")["FROM"] == ["python:3.11-slim"]
    (image,) = steps("Dockerfile.tensorrt")["FROM"]
    assert re.fullmatch(r"nvcr\.io/nvidia/tensorrt:\d\d\.\d\d-py3", image)


@pytest.mark.parametrize("name", FILES)
def test_torch_stays_out(name: str) -> None:
    assert not re.search(r"\btorch\b(?! and)", " ".join(text for texts in steps(name).values() for text in texts))


def test_steps_are_carried_out_inside_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(
        "# a comment\n"
        "ARG WORD=hello\n"
        "WORKDIR /a\n"
        "WORKDIR b\n"
        "COPY LICENSE cli.py ./\n"
        "COPY docker kept\n"
        "ENV PLACE=/a/b\n"
        "ENV OTHER=${WORD}\n"
        "RUN echo $OTHER > \\\n"
        "    $PLACE/said\n"
        "USER 7\n"
        'ENTRYPOINT ["cat"]\n'
        'CMD ["said"]\n'
    )
    image = built(file, tmp_path / "root")
    inside = tmp_path / "root" / "a" / "b"
    assert {path.name for path in inside.iterdir()} == {"LICENSE", "cli.py", "kept", "said"}
    assert {path.name for path in (inside / "kept").iterdir()} == set(FILES)
    assert (image.workdir, image.user) == ("/a/b", "7")
    assert image.run().stdout == "hello\n"
    assert image.run("LICENSE").stdout == (ROOT / "LICENSE").read_text()


def test_step_that_fails_is_told_with_its_output(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("WORKDIR /a\nRUN echo why && false\n")
    with pytest.raises(AssertionError, match="RUN echo why && false\nwhy"):
        built(file, tmp_path / "root")


def test_unknown_instruction_or_base_is_not_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    for text, error in (("HEALTHCHECK NONE\n", KeyError), ("FROM scratch\n", AssertionError)):
        file.write_text(text)
        with pytest.raises(error):
            built(file, tmp_path / "root")
    assert Image(tmp_path).path("x") == tmp_path / "x"
