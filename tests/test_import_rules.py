"""Who may import whom: `qamdt` is a leaf, `whisq` may use its root modules, `pipelines` and `data_prep` stand on both."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "qamdt": {"qamdt"},
    "whisq": {"whisq", "qamdt"},
    "pipelines": {"pipelines", "qamdt", "whisq"},
    "data_prep": {"data_prep", "qamdt", "whisq"},
    "train_qamdt": {"train_qamdt", "data_prep", "pipelines", "qamdt", "whisq"},
}
NOT_FOR_WHISQ = ("qamdt.models", "qamdt.training", "qamdt.decoders", "qamdt.published")
OURS = {*ALLOWED, "benchmarks", "configs", "tests"}


def imported_names(path: Path) -> list[tuple[int, str]]:
    """Lists (line number, module) of every absolute import in a file, those inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append((node.lineno, node.module))
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_follow_the_arrows(package):
    paths = sorted((ROOT / package).rglob("*.py")) or [ROOT / f"{package}.py"]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for line, name in imported_names(path)
        if (root := name.split(".")[0]) in OURS and root not in ALLOWED[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_whisq_uses_nothing_of_qamdt_but_its_root_modules():
    imports = [name for path in (ROOT / "whisq").rglob("*.py") for _, name in imported_names(path)]
    assert [name for name in imports if f"{name}.".startswith(tuple(f"{room}." for room in NOT_FOR_WHISQ))] == []


def test_qamdt_itself_imports_nothing():
    assert imported_names(ROOT / "qamdt" / "__init__.py") == []


def test_importing_qamdt_takes_less_than_a_second():
    program = "import time; start = time.perf_counter(); import qamdt; print(time.perf_counter() - start)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(result.stdout) < 1.0
