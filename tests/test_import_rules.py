"""Who may import whom: `qamdt` nobody, `whisq` its root modules, `pipelines` and `data_prep` both, not each other."""

import ast
import re
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
OURS = {*ALLOWED, "benchmarks", "configs", "tests"}
# What `whisq` may take from `qamdt`: tools that know nothing of its models.
ROOT_MODULES = {
    f"qamdt.{name}"
    for name in (
        "audio complete_weights cpu_memory embedded files keyed_rows line_index manifest outputs precision quality quality_words run_control "
        "settings sound_files work_share"
    ).split()
}


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
        if (top := name.split(".")[0]) in OURS and top not in ALLOWED[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_whisq_takes_only_root_modules_of_qamdt():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / "whisq").rglob("*.py"))
        for line, name in imported_names(path)
        if name.split(".")[0] == "qamdt" and name not in ROOT_MODULES
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_of_whisq_open_towards_its_commands_alone():
    commands = {"ablation", "cli", "evaluate", "train", "train_clap"}
    open_to = {"scoring": {"scoring"}, "evaluation": {"evaluation", "training"}, "training": {"training"}}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / "whisq").rglob("*.py"))
        for line, name in imported_names(path)
        for room, rooms in open_to.items()
        if name.startswith(f"whisq.{room}.") and path.parent.name not in rooms and path.stem not in commands
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["data_prep", "pipelines", "qamdt", "whisq"])
def test_no_module_leads_back_to_itself(package):
    """Imports inside functions and for type checkers count too: a circle is two ideas that are one."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / package).rglob("*.py")}
    leads_to = {module: {name for _, name in imported_names(path)} & paths.keys() for module, path in paths.items()}
    while ends := {module for module, names in leads_to.items() if not names & leads_to.keys()}:
        leads_to = {module: names for module, names in leads_to.items() if module not in ends}
    assert not leads_to


def test_front_doors_import_nothing_until_a_name_is_asked_for():
    assert {name for _, name in imported_names(ROOT / "qamdt" / "__init__.py")} == {"importlib"}
    code = "import sys, qamdt, pipelines; assert not {'torch', 'numpy', 'whisq'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_front_doors_lead_to_the_homes():
    import pipelines
    import qamdt
    from pipelines.pipeline_qamdt import QAMDTPipeline
    from pipelines.request import GenerationRequest
    from whisq.scorer import WhisQScorer

    assert qamdt.QAMDTPipeline is pipelines.QAMDTPipeline is QAMDTPipeline
    assert (qamdt.WhisQScorer, pipelines.GenerationRequest) == (WhisQScorer, GenerationRequest)
    for package in (qamdt, pipelines):
        with pytest.raises(AttributeError, match="has no attribute 'QAMDT'"):
            _ = package.QAMDT
        assert all(hasattr(package, name) for name in package.__all__)
    stub = (ROOT / "qamdt" / "__init__.pyi").read_text(encoding="utf-8")
    assert set(re.findall(r" as (\w+)", stub)) == {name for name in qamdt.__all__ if not name.startswith("_")}


def test_our_own_code_goes_to_the_homes():
    """So that a door, which leads from `qamdt` to what stands on it, closes no circle."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ALLOWED
        for path in sorted((ROOT / package).rglob("*.py")) or [ROOT / f"{package}.py"]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in {"qamdt", "pipelines"}
        if any(alias.name[0].isupper() for alias in node.names)
    ]
    assert not wrong


def test_importing_qamdt_imports_nothing_slow():
    program = "import sys, qamdt; print(sorted({'numpy', 'torch', 'transformers', 'diffusers'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_bars_are_for_terminals():
    """Every progress bar says `disable=`; what it says ends in `None`, which is tqdm's word for "not a terminal"."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ALLOWED
        for path in sorted((ROOT / package).rglob("*.py")) or [ROOT / f"{package}.py"]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "tqdm"
        if not any(keyword.arg == "disable" for keyword in node.keywords)
    ]
    assert not wrong
