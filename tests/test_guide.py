"""Every example of the user guide, as a user runs it: it prints what the guide says, and leaves no process behind."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import dsm

TREE: Final = Path(__file__).resolve().parent.parent
GUIDE: Final = (TREE / "docs/guide.md").read_text()
LIMIT_S: Final = 60.0
LINES_MAX: Final = 25
NO_MATTER: Final = "…"
"""In the guide: what differs from run to run, within one line."""

STARTED: Final = r"dsm: started an embedded directory and node for this host \(pid \d+\); .*\n"
"""The line on standard error of whoever comes first."""


class Example(NamedTuple):
    name: str
    source: str
    command: list[str]
    output: str


def examples(guide: str) -> list[Example]:
    """Each block of Python that a block of text follows. The first line of the program names its file; the text may
    begin with the command."""
    found = []
    for source, text in re.findall(r"^```python\n(.*?)^```\n+```text\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", source)
        assert name, f"its first line does not name it:\n{source}"
        command, output = f"python {name[1]}", text
        if text.startswith("$ "):
            command, _, output = text[2:].partition("\n")
        found.append(Example(name[1], source, shlex.split(command), output))
    return found


EXAMPLES: Final = examples(GUIDE)
PROGRAMS: Final = {"python": [sys.executable], "dsm": [sys.executable, "-m", "dsm"]}


def same(found: str, expected: str) -> bool:
    return re.fullmatch(".+".join(map(re.escape, expected.split(NO_MATTER))), found) is not None


@pytest.fixture
def home() -> Iterator[Path]:
    """The directory of one example, for its files and its sockets: a socket's path has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def processes(home: Path) -> list[int]:
    """All that carry the directory in their environment: what the example started, and what that has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"XDG_RUNTIME_DIR={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def run(example: Example, home: Path) -> tuple[int, str, str]:
    """Its exit code, output and standard error."""
    (home / example.name).write_text(example.source)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DSM_")}
    environment |= {"PYTHONPATH": str(TREE), "XDG_RUNTIME_DIR": str(home), "TMPDIR": str(home)}
    command = [part for word in example.command for part in PROGRAMS.get(word, [word])]
    process = subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=LIMIT_S)
        deadline = time.monotonic() + LIMIT_S
        while left := processes(home):
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.01)
    finally:
        while left := processes(home):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        process.communicate()
    return process.returncode, output, errors


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_prints_what_the_guide_says(example: Example, home: Path) -> None:
    code, output, errors = run(example, home)
    assert (code, re.sub(STARTED, "", errors)) == (0, ""), output + errors
    assert same(output, example.output), f"printed:\n{output}\nthe guide says:\n{example.output}"


def test_every_program_of_the_guide_is_run() -> None:
    assert len(EXAMPLES) == GUIDE.count("```python\n") == len({example.name for example in EXAMPLES})


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_is_short(example: Example) -> None:
    assert example.source.count("\n") <= LINES_MAX
    assert example.output.strip()


def called(source: str) -> set[str]:
    """The names of dsm that a program calls."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {
        call.attr
        for call in calls
        if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "dsm"
    }


def test_every_primitive_has_an_example_in_its_section() -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", GUIDE, re.MULTILINE | re.DOTALL))
    primitives = {name for name in dsm.__all__ if getattr(getattr(dsm, name), "__module__", "") == "dsm.sync"}
    assert {"Lock", "Counter"} <= primitives
    shown = {name for name, text in sections.items() for example in examples(text) if name in called(example.source)}
    assert primitives - shown == set()
    assert {"attach", "rank", "world_size"} <= {name for example in EXAMPLES for name in called(example.source)}


def test_what_an_example_prints_is_compared() -> None:
    assert same("process 12 of host\n", "process … of …\n")
    assert not same("process 12\nof host\n", "process … of …\n")
    assert not same("process 12 of host\n", "process … of …")
    assert not same("1500\n", "1499\n")


@pytest.mark.parametrize("source", ["raise SystemExit(3)", "import sys; print('oh', file=sys.stderr)"])
def test_an_example_that_fails_is_found(source: str, home: Path) -> None:
    with pytest.raises(AssertionError):
        test_an_example_prints_what_the_guide_says(Example("fails.py", source, ["python", "fails.py"], ""), home)
