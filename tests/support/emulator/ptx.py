"""PTX text as statements, with the names of each scope told apart."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PIECE = re.compile(
    r"""\s* (?: (?P<open>\{) | (?P<close>\}) | (?P<label>[\w$]+) : (?!:)
          | (?P<statement> [^;{}]+ (?: \{ [^{}]* \} [^;{}]* )* ) ; )""",
    re.X,
)
ENTRY = re.compile(r"\.entry\s+(?P<name>[\w$]+)\s*\((?P<parameters>.*?)\)(?P<directives>[^{]*)\{", re.S)
PARAMETER = re.compile(
    r"""\.param \s+ (?:\.align\s+(?P<align>\d+)\s+)? \.(?P<type>\w+) [^,]*?
        \s (?P<name>[\w$]+) (?:\[(?P<count>\d+)\])? \s* (?:,|$)""",
    re.X,
)
# What has no semicolon: comments and places in the source.
ASIDE = re.compile(r"//[^\n]*|^\s*\.loc[^\n]*", re.M)
LOCATION = re.compile(r"\.loc\s+\d+ \d+ \d+.*?//\s*(.*)")


@dataclass(frozen=True)
class Parameter:
    """Where a parameter stands among all, in bytes; `type` is "b8" for a tensor map."""

    type: str
    offset: int
    size: int


@dataclass(frozen=True)
class Statement:
    """One instruction: `@guard name operands;`, at a position of the text, in scopes of which the innermost is last."""

    name: str
    operands: tuple[str, ...]
    guard: str
    position: int
    scopes: tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """A kernel's code.

    Attributes:
        text: the PTX as it came.
        name: of the entry. threads: of a block.
        parameters: by name, in their order.
        statements: its instructions.
        labels: (scope, name) -> the number of the statement that follows.
        tables: (scope, label) -> the labels that a `brx.idx` chooses from.
        registers: (scope, name or prefix) -> type.
    """

    text: str
    name: str
    threads: int
    parameters: dict[str, Parameter]
    statements: list[Statement] = field(default_factory=list)
    labels: dict[tuple[int, str], int] = field(default_factory=dict)
    tables: dict[tuple[int, str], list[str]] = field(default_factory=dict)
    registers: dict[tuple[int, str], str] = field(default_factory=dict)

    def place(self, number: int) -> str:
        """A statement's text, and the line of the source that it was made from, if the PTX says so."""
        at = self.statements[number].position
        line = ASIDE.sub("", self.text[at : self.text.index(";", at) + 1])
        source = [*LOCATION.finditer(self.text, 0, at)]
        return " ".join(line.split()) + (f" ({source[-1][1].strip()})" if source else "")


def split(operands: str) -> tuple[str, ...]:
    """Operands, apart at the commas outside of braces and brackets."""
    if "{" not in operands and "[" not in operands:
        return tuple(x.strip() for x in operands.split(",")) if operands else ()
    found, depth, start = [], 0, 0
    for i, letter in enumerate(operands):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            found.append(operands[start:i].strip())
            start = i + 1
    return (*found, operands[start:].strip())


def parse(text: str) -> Kernel:
    """Read the one kernel of a module.

    Raises:
        ValueError: no kernel, or a text that is not understood.
    """
    entry = ENTRY.search(text)
    if entry is None:
        raise ValueError("the PTX has no .entry")
    threads = re.search(r"\.reqntid\s+(\d+)", entry["directives"])
    if threads is None:
        raise ValueError(f"{entry['name']} has no .reqntid: how many threads a block has is unknown")
    kernel = Kernel(text, entry["name"], int(threads[1]), parameters(entry["parameters"]))
    body = ASIDE.sub(lambda aside: " " * len(aside[0]), text[entry.end() :])  # positions stay those of the text
    scopes, opened, label, at = [0], 0, "", 0
    while scopes:
        piece = PIECE.match(body, at)
        if piece is None:
            raise ValueError(f"{kernel.name}: not understood: {body[at : at + 80]!r}")
        at = piece.end()
        if piece["open"]:
            opened += 1
            scopes.append(opened)
        elif piece["close"]:
            scopes.pop()
        elif piece["label"]:
            label = piece["label"]
            kernel.labels[scopes[-1], label] = len(kernel.statements)
        else:
            _statement(kernel, piece["statement"], piece.start("statement") + entry.end(), tuple(scopes), label)
    return kernel


def parameters(text: str) -> dict[str, Parameter]:
    """The parameters of an entry, each aligned to its size or as it says."""
    found: dict[str, Parameter] = {}
    end = 0
    for one in PARAMETER.finditer(text.replace("\n", " ")):
        size = int(one["count"] or 1) * int(re.sub(r"\D", "", one["type"])) // 8
        align = int(one["align"]) if one["count"] else size
        offset = -(-end // align) * align
        found[one["name"]] = Parameter(one["type"], offset, size)
        end = offset + size
    return found


def _statement(kernel: Kernel, text: str, position: int, scopes: tuple[int, ...], label: str) -> None:
    text = text.strip()
    if text.startswith("."):
        directive, *rest = text.split(None, 1)
        if directive.startswith(".reg"):
            kind, names = text.split(None, 2)[1:]
            for name in names.split(","):
                kernel.registers[scopes[-1], name.strip().partition("<")[0]] = kind[1:]
        elif directive == ".branchtargets":
            kernel.tables[scopes[-1], label] = [x.strip() for x in rest[0].split(",")]
        elif directive != ".pragma":
            raise ValueError(f"{kernel.name}: unknown directive {text!r}")
        return
    guard = ""
    if text.startswith("@"):
        guard, text = text[1:].split(None, 1)
    name, *rest = text.split(None, 1)
    kernel.statements.append(Statement(name, split(rest[0]) if rest else (), guard, position, scopes))
