"""What README.md and CONTRIBUTING.md tell people to type works."""

import ast
import contextlib
import importlib
import io
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
import soundfile

from pipelines import cli


ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {"qamdt": "pipelines.cli", "whisq": "whisq.cli"}
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/service.md")


def read_blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)


def read_commands() -> list[list[str]]:
    """All commands of the documents, split into words; comments removed, continued lines and quoted ones joined."""
    blocks = [block for document in DOCUMENTS for block in read_blocks(document, "bash")]
    commands, begun = [], ""
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        begun += line
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation that the next line ends
            begun += "\n"
            continue
        begun = ""
        if words:
            commands.append(words)
    assert not begun, begun
    return commands


def module_and_arguments(command: list[str]) -> tuple[str, list[str]] | None:
    """The module of ours that a command runs, and what it passes on; `None` for other programs."""
    if command[0] in COMMANDS:
        return COMMANDS[command[0]], command[1:]
    if command[:2] == ["python", "-m"]:
        return command[2], command[3:]
    if command[:3] == ["accelerate", "launch", "-m"]:
        return command[3], command[4:]
    if command[:2] == ["accelerate", "launch"]:
        return module_name(command[2]), command[3:]
    if command[0] == "python" and command[1].endswith(".py"):
        return module_name(command[1]), command[2:]
    return None


def module_name(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


OUR_COMMANDS = [parsed for command in read_commands() if (parsed := module_and_arguments(command))]


@cache
def help_text(module: str, *subcommand: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as exit_info:
        importlib.import_module(module).main([*subcommand, "--help"])
    assert exit_info.value.code == 0
    return output.getvalue()


@pytest.mark.parametrize(("module", "arguments"), OUR_COMMANDS, ids=lambda value: str(value)[:60])
def test_documented_options_exist(module, arguments):
    subcommand = arguments[:1] if module in COMMANDS.values() else []
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_text(module, *subcommand)))
    assert {word for word in arguments if re.match("--?[a-z]", word)} <= known  # -14 is a number


@pytest.mark.parametrize("block", [block for document in DOCUMENTS for block in read_blocks(document, "python")])
def test_python_examples_compile_and_import_what_exists(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_first_python_example_makes_music(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(read_blocks("README.md", "python")[0], "README.md", "exec"), {})
    samples, sampling_rate = soundfile.read(tmp_path / "music.wav")
    assert sampling_rate == 16_000
    assert len(samples) > 5 * sampling_rate
    assert abs(samples).max() > 0.01


def test_the_first_generate_command_writes_the_file_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = next(arguments for module, arguments in OUR_COMMANDS if arguments[:1] == ["generate"])
    assert not cli.main(arguments)
    path = tmp_path / arguments[arguments.index("-o") + 1]
    assert soundfile.info(path).duration == pytest.approx(float(arguments[arguments.index("--seconds") + 1]))


@pytest.mark.parametrize("target", ["music", "test", "lint"])
def test_make_targets_exist(target):
    assert any(command[:2] == ["make", target] for command in read_commands())
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_to_files_and_sections_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / document).read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, section = target.partition("#")
        linked = (ROOT / document).parent / path if path else ROOT / document
        assert linked.exists(), target
        if section:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
