"""The documentation is true: its Python runs, its command lines parse, its links and paths lead to something."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from diffusers import WanPipeline
from hub_blocks import own_modules
from matrix import matrix
from pages import FENCE, ROOT, blocks, inline, to_run

import vidsparse
from vidsparse.cli import app
from vidsparse.cli.batch import OPTIONS
from vidsparse.doctor.support import title
from vidsparse.generation.frames import VARIANTS, families
from vidsparse.patterns.names import build_correction, build_pattern, correction_classes, pattern_classes
from vidsparse.presets import PRESETS
from vidsparse.shapes.model import MAX_WORDS
from vidsparse.shapes.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from vidsparse.shapes.shipped import FOLDER
from vidsparse_pipelines import ADAPTERS

GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*GUIDES, *sorted((ROOT / "benchmarks").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
PROGRAM: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = PROGRAM.commands
ROOMS = r"(?:benchmarks|docs|examples|kernels|pipelines|tests|vidsparse)/[\w./-]+"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def every(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=name)


def command_lines(text: str, program: str) -> Iterator[list[str]]:
    """The words after the name of a program, for each line of a fenced block that runs it."""
    for block in blocks(text):
        for line in block.code.splitlines() if not block.language else ():
            line = line.strip().removeprefix("$ ")
            if re.match(rf"((torchrun|accelerate launch) .* )?{program} ", line):
                words = shlex.split(line)
                yield words[words.index(program) + 1 :]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words of a command line call, which may belong to a group, and the words after its name."""
    command, rest = COMMANDS[words[0]], words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


# Python


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every Wan pipeline is `shapes` on the CPU, and makes a video of 128 tokens in 12 steps, whatever is asked for."""
    load, call = WanPipeline.from_pretrained, WanPipeline.__call__
    least = dict(num_frames=5, height=32, width=32, num_inference_steps=12, max_sequence_length=MAX_WORDS)

    def from_pretrained(cls: type, source: str | Path, **settings: Any) -> WanPipeline:
        pipe: WanPipeline = load(FOLDER, **settings)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WanPipeline, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(WanPipeline, "to", lambda self, *place: self)
    monkeypatch.setattr(WanPipeline, "__call__", lambda self, *args, **asked: call(self, *args, **(asked | least)))
    own_modules(monkeypatch, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size a second thread waits more than it works
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")  # newer versions of diffusers call it dtype
@every([page for page in GUIDES if to_run(page)])
def test_python_runs(page: Path) -> None:
    names: dict[str, Any] = {}
    for code in to_run(page):
        exec(compile(code, name(page), "exec"), names)
    if isinstance(run := names.get("run"), vidsparse.Run) and (report := run.report()).calls:
        assert report.sparse_calls and report.dense_calls
    if "video" in names:
        assert len(names["video"]) == 5


def test_the_first_snippet_saves_a_video(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = next(block for block in blocks((ROOT / "README.md").read_text()) if block.language == "python")
    exec(first.code, {})
    assert (tmp_path / "fox.mp4").stat().st_size > 0
    assert "attention calls sparse" in capsys.readouterr().out


def test_what_the_readme_says_of_strict_is_true() -> None:
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor
    from tiny_wan import SPARSE, call, tiny

    transformer = tiny()
    transformer.blocks[1].attn1.set_processor(type("Mine", (WanAttnProcessor,), {})())
    with pytest.raises(NotImplementedError, match=r"blocks\.1\.attn1 cannot be sparse: its processor is Mine"):
        vidsparse.sparsify(transformer, SPARSE, strict=True)
    with torch.no_grad(), vidsparse.sparsify(transformer, SPARSE) as run:
        call(transformer)
    assert any("its processor is Mine" in reason for reason in run.report().dense_reasons)


# Command lines


@every(GUIDES)
def test_command_lines_parse(page: Path) -> None:
    for command, *arguments in command_lines(page.read_text(), "vidsparse"):
        called, arguments = command_of([command, *arguments])
        asked = called.make_context(command, arguments).params
        if asked.get("pattern"):
            build_pattern(asked["pattern"], asked.get("density"), asked.get("settings"))
        if asked.get("correction"):
            build_correction(asked["correction"])


@every(GUIDES)
def test_inline_code_stays_on_its_line(page: Path) -> None:
    """The tests below find code by its backticks, line by line."""
    assert [line for line in FENCE.sub("", page.read_text()).splitlines() if line.count("`") % 2] == []


@every(GUIDES)
def test_commands_and_options_in_a_sentence_exist(page: Path) -> None:
    known = set[str]().union(*map(options, (PROGRAM, *COMMANDS.values(), *COMMANDS["lora"].commands.values())))
    known |= {"--help"}
    for code in inline(page.read_text()):
        words = code.split()
        if words[0] == "vidsparse" and len(words) > 1 and not words[1].isupper() and not words[1].startswith("--"):
            asked = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert asked <= options(command_of(words[1:])[0]) | {"--help"}, code
        elif words[0] == "vidsparse" or words[0].startswith("--"):
            asked = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert asked <= known, code


@every(GUIDES)
def test_programs_and_targets_exist(page: Path) -> None:
    text = page.read_text()
    shared = (ROOT / "benchmarks/subject.py").read_text()
    for code in [*inline(text), *(line for b in blocks(text) if not b.language for line in b.code.splitlines())]:
        words = code.split()
        if words[:1] == ["python"] and words[1:] and not words[1].startswith("-"):
            source = (ROOT / words[1]).read_text()
            for option in (word for word in words[2:] if word.startswith("--")):
                assert f'"{option}"' in source or ("subject" in source and f'"{option}"' in shared), code
        elif words[:1] == ["make"] and len(words) == 2:
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), code


@every(PAGES)
def test_lists_are_read_alike(page: Path) -> None:
    """Git hosts take more than the site: a list within a paragraph, and other indents."""
    for block in re.split(r"\n\s*\n", re.sub(FENCE, "", page.read_text())):
        first, *lines = block.strip("\n").splitlines() or [""]
        items = [line for line in (first, *lines) if re.match(r" *([*-]|\d+\.) ", line)]
        assert not items or first in items or first.startswith("#"), first
        assert [line for line in items if (len(line) - len(line.lstrip())) % 4] == []
    assert [block for block in re.findall(r"^( *)```", page.read_text(), re.M) if len(block) % 4] == []


# Links and paths


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Git hosts make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every(PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", FENCE.sub("", page.read_text())):
        if not target.startswith(("http://", "https://")):
            place = page.parent / target if target else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


@every([page for page in PAGES if page.name != "NOTES.md"])  # a diary: its paths are those of its day
def test_paths_exist(page: Path) -> None:
    for code in inline(page.read_text()):
        if re.fullmatch(ROOMS, code):
            assert (ROOT / code).exists(), code


# Completeness


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1400


def test_the_readme_names_every_family() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    assert [family for family in map(title, ADAPTERS) if family not in text] == []


def test_the_catalogue_is_complete() -> None:
    text = "".join((ROOT / f"docs/{page}.md").read_text() for page in ("patterns", "schedules", "corrections"))
    first_column = re.findall(r"^\| ([^|]+) \|", text, re.M)
    code = inline("\n".join(first_column))
    classes = [*pattern_classes().values(), *correction_classes().values(), vidsparse.GriddedHeads]
    classes += [vidsparse.PerLayer, vidsparse.PerHead, vidsparse.PerPhase]
    assert [cls.__name__ for cls in classes if cls.__name__ not in code] == []


def test_the_short_names_are_complete() -> None:
    _, _, text = (ROOT / "docs/families.md").read_text().partition("<!-- short names -->")
    rows = [row.split("|") for row in text.partition("<!-- /short names -->")[0].splitlines() if "`" in row]
    expected: dict[str, list[str]] = {}
    for short, cls in [*families().items(), *((variant, cls) for variant, (cls, *_) in VARIANTS.items())]:
        expected.setdefault(title(cls), []).append(short)
    assert {family.strip(): inline(names) for _, family, names, _ in rows} == expected


def test_the_examples_are_complete() -> None:
    """A row for each family names its program and the checkpoint that it loads; the other programs have rows too."""
    text = (ROOT / "docs/examples.md").read_text()
    _, _, table = text.partition("<!-- families -->")
    rows = [row.split("|") for row in table.partition("<!-- /families -->")[0].splitlines() if "`" in row]
    found = {
        family.strip(): (program.partition("]")[0].strip(" ["), *inline(model)) for _, family, program, model, _ in rows
    }
    assert found.keys() == {title(cls) for cls in ADAPTERS}
    for program, model in found.values():
        assert f'"{model}"' in (ROOT / program).read_text()
    assert {program for program, _ in found.values()} == {name(path) for path in ROOT.glob("examples/families/*.py")}
    assert [path.name for path in ROOT.glob("examples/*.py") if f"](../{name(path)})" not in text] == []


def test_the_presets_are_complete() -> None:
    _, _, text = (ROOT / "docs/patterns.md").read_text().partition("<!-- presets -->\n")
    rows = ["| preset | settings | published by | |", "|---|---|---|---|"]
    rows += [f"| `{p.name}` | {p.summary} | {p.source or 'nobody'} | {p.note} |" for p in PRESETS]
    assert text.partition("\n<!-- /presets -->")[0] == "\n".join(rows)


def test_the_matrix_of_what_composes_is_that_of_the_tests() -> None:
    _, _, text = (ROOT / "docs/composing.md").read_text().partition("<!-- matrix -->\n")
    assert text.partition("\n<!-- /matrix -->")[0] == matrix()


def test_the_vocabulary_of_shapes_is_complete() -> None:
    listed = re.findall(r"^\* (\w+) (\w+): (.+)[;.]$", (ROOT / "docs/shapes.md").read_text(), re.M)
    expected = {"colours": COLOURS, "shapes": SHAPES, "motions": MOTIONS.values(), "backgrounds": BACKGROUNDS}
    assert {kind: words.split(", ") for _, kind, words in listed} == {kind: [*x] for kind, x in expected.items()}
    counts = {"four": 4, "six": 6}
    assert all(counts[count] == len(words.split(", ")) for count, _, words in listed)


def test_the_version_is_the_same_everywhere() -> None:
    version = vidsparse.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest[1] == version


def test_every_command_is_explained() -> None:
    code = inline((ROOT / "docs/command_line.md").read_text())
    assert [command for command in COMMANDS if f"vidsparse {command}" not in code] == []


def test_every_option_of_a_line_of_prompts_is_named() -> None:
    _, _, section = (ROOT / "docs/command_line.md").read_text().partition("\n## Many prompts\n")
    code = inline(section.partition("\n## ")[0])
    assert [option for option in ("prompt", "name", *OPTIONS) if option not in code] == []
