"""What the documents tell to type can be typed, and what they point to is there."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from videoar.runtime.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def commands(page: Path) -> list[list[str]]:
    """Every command of the page's shell blocks, in words."""
    text = "".join(BLOCK.findall(page.read_text())).replace("\\\n", " ")
    lines = (re.split(r" [|>] ", line)[0] for line in text.splitlines())
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inline_flags(page: Path) -> list[tuple[str, list[str]]]:
    """Commands within sentences, up to their flags, and those flags."""
    text = BLOCK.sub("", page.read_text())
    found = []
    for code in re.findall(r"`videoar ([a-z][^`\n]*)`", text):
        words = re.sub(r"[\[\]]", " ", code).split()
        names = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
        found.append((" ".join(names), [w for w in words if w.startswith("--")]))
    return found


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        if words[:2] == ["python", "-m"] and words[2].startswith("videoar."):
            assert importlib.util.find_spec(words[2]), words
        if words[0] == "videoar":
            build_parser(words[1]).parse_args(words[1:])  # exits where it cannot


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_sentences_exist(page: Path, capsys: pytest.CaptureFixture) -> None:
    for name, flags in inline_flags(page):
        words = name.split()
        parser = build_parser(words[0])
        while words:
            with pytest.raises(SystemExit) as stop:
                parser.parse_args([*words, "--help"])
            if stop.value.code == 0:
                break
            words.pop()  # the last was an argument
        help_text = capsys.readouterr().out
        assert words, name
        for flag in flags:
            assert re.search(rf"{flag}\b", help_text), (name, flag)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link
