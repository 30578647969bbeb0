"""The wheel holds what the checkout holds: packages, weights, presets, commands and declared dependencies."""

import ast
import importlib
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

import qamdt


ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
CODE = ["qamdt", "whisq", "pipelines", "data_prep", "train_qamdt.py"]


def package_folder(package: str) -> Path:
    return ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))


def source_files() -> list[Path]:
    return [path for name in CODE for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))]


def distribution_names(requirements: list[str]) -> set[str]:
    """Normalises `Py_YAML>=6` to `py-yaml`."""
    return {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower() for requirement in requirements}


def third_party_imports(path: Path, *, module_level_only: bool) -> set[str]:
    """Collects the top-level names that a file imports from outside the standard library and this project."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body if module_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {name.removesuffix(".py") for name in CODE}


@cache
def find_distributions() -> dict[str, list[str]]:
    """What every installed package came with; reading that from the disk takes a third of a second."""
    return packages_distributions()


def undeclared(names: set[str], requirements: list[str]) -> set[str]:
    declared = distribution_names(requirements)
    distributions = find_distributions()
    return {name for name in names if not declared & distribution_names(distributions.get(name, [name]))}


def test_every_folder_with_an_init_file_is_a_declared_package():
    folders = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for name in CODE
        for path in (ROOT / name).rglob("__init__.py")
    }
    data_packages = {"qamdt.configs", "whisq.configs"}
    assert folders | data_packages == set(SETUPTOOLS["packages"])


def test_every_data_file_matches_a_package_data_pattern():
    shipped = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in package_folder(package).glob(pattern)
    }
    for package in SETUPTOOLS["package-data"]:
        files = (path for path in package_folder(package).rglob("*") if path.is_file())
        data_files = {path for path in files if path.suffix not in (".py", ".pyc")}
        assert data_files, f"no data files under {package_folder(package)}"
        assert data_files <= shipped


def test_version_has_one_source():
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "qamdt.__version__"}
    assert version("qamdt") == qamdt.__version__


@pytest.mark.parametrize("command", sorted(PYPROJECT["project"]["scripts"]))
def test_command_resolves_to_a_function(command):
    module_name, function_name = PYPROJECT["project"]["scripts"][command].split(":")
    assert callable(getattr(importlib.import_module(module_name), function_name))


def test_module_level_imports_are_core_dependencies():
    """So that a plain install can import every module; what an extra brings is imported where it is used."""
    wrong = {
        path.relative_to(ROOT).as_posix(): names
        for path in source_files()
        if (
            names := undeclared(
                third_party_imports(path, module_level_only=True), PYPROJECT["project"]["dependencies"]
            )
        )
    }
    assert not wrong


def test_every_import_is_declared():
    extras = PYPROJECT["project"]["optional-dependencies"]
    requirements = PYPROJECT["project"]["dependencies"] + [r for extra in extras.values() for r in extra]
    imported = set().union(*(third_party_imports(path, module_level_only=False) for path in source_files()))
    assert not undeclared(imported, requirements)


def test_the_dev_extra_holds_every_other_extra():
    extras = PYPROJECT["project"]["optional-dependencies"]
    # These need a GPU, or packages that do not get along with the others on a CPU; no test builds the site.
    apart = {"laion-clap", "muq", "adam8bit", "docs"}
    others = {requirement for name, extra in extras.items() if name not in {"dev", *apart} for requirement in extra}
    assert others <= set(extras["dev"])


def test_constraints_pin_every_dependency():
    extras = PYPROJECT["project"]["optional-dependencies"]
    requirements = PYPROJECT["project"]["dependencies"] + extras["dev"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = distribution_names([line for line in lines if "==" in line])
    assert distribution_names(requirements) <= pins
