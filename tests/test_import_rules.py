"""Who may import whom: `qamdt` and `whisq` are leaves, `pipelines` and `data_prep` stand on both, not on each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "qamdt": {"qamdt"},
    "whisq": {"whisq"},
    "pipelines": {"pipelines", "qamdt", "whisq"},
    "data_prep": {"data_prep", "qamdt", "whisq"},
    "train_qamdt": {"train_qamdt", "data_prep", "pipelines", "qamdt", "whisq"},
}
OURS = {*ALLOWED, "benchmarks", "configs", "tests"}


def imported_names(path: Path) -> list[tuple[int, str]]:
    """Lists (line number, top-level name) of every absolute import in a file, those inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append((node.lineno, node.module.split(".")[0]))
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_follow_the_arrows(package):
    paths = sorted((ROOT / package).rglob("*.py")) or [ROOT / f"{package}.py"]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for line, name in imported_names(path)
        if name in OURS and name not in ALLOWED[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_qamdt_itself_imports_nothing():
    assert imported_names(ROOT / "qamdt" / "__init__.py") == []


def test_importing_qamdt_takes_less_than_a_second():
    program = "import time; start = time.perf_counter(); import qamdt; print(time.perf_counter() - start)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(result.stdout) < 1.0
