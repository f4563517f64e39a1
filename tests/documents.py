"""The documents of the project, as a reader has them: blocks of commands, links, and what is marked not to be run.

A block of `sh` or `python` is run by the tests as it stands, unless a comment before it, which no reader sees, says
otherwise:

    <!-- not run: why -->          it is not; its commands are only held against what the command line takes
    <!-- run: other commands -->   these are run in its place: the same, shorter
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(
    r"(?:^<!-- (?P<word>run|not run): (?P<said>.*?) -->\n+)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of a document."""

    document: Path
    line: int
    language: str
    text: str
    instead: str | None = None
    """What is run in its place."""
    reason: str | None = None
    """Why it is not run."""

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> Iterator[Block]:
    """The blocks of a document that a reader would run, in order."""
    content = document.read_text()
    for found in FENCE.finditer(content):
        if found["language"] in {"sh", "python"}:
            line = content.count("\n", 0, found.start("language")) + 1
            said = {"run": "instead", "not run": "reason"}
            extra = {said[found["word"]]: found["said"]} if found["word"] else {}
            yield Block(document, line, found["language"], found["text"], **extra)


def prose(document: Path) -> str:
    """A document without its blocks and comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", document.read_text()), flags=re.DOTALL)


def commands(text: str, program: str) -> Iterator[list[str]]:
    """The arguments of every call of a program in shell code or prose that begins with a command or target."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # an apostrophe
            words = line.split()
        for k, word in enumerate(words):
            if word.rpartition("/")[2] == program and not re.fullmatch(r"-[a-z]", words[k - 1] if k else ""):
                arguments = list(takewhile(lambda each: each.strip("();<>|&"), words[k + 1 :]))
                if arguments and re.fullmatch(r"[a-z]+", arguments[0]):
                    yield arguments


def anchors(document: Path) -> set[str]:
    """What can be linked to in a document: its headings, as GitHub names them."""
    content = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(content)}
