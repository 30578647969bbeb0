"""Checks the installed wheel: every module imports, and every data file of the checkout is inside.

python -P check_installed.py CHECKOUT
"""

import importlib
import sys
from importlib.metadata import files
from pathlib import Path


DATA_FOLDERS = {  # in the checkout: in the wheel
    "qamdt/weights": "qamdt/weights",
    "whisq/weights": "whisq/weights",
    "configs/qamdt": "qamdt/configs/qamdt",
    "configs/accelerate": "qamdt/configs/accelerate",
    "configs/whisq": "whisq/configs",
    "data_prep/sample_corpus": "data_prep/sample_corpus",
}


def main() -> None:
    checkout = Path(sys.argv[1])
    installed = {file.as_posix(): file for file in files("qamdt")}

    modules = [name for name in installed if name.endswith(".py")]
    for name in modules:
        module = importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        if Path(module.__file__).is_relative_to(checkout):
            sys.exit(f"{name} was imported from the checkout, not from the wheel.")

    data_files = []
    for source, target in DATA_FOLDERS.items():
        for path in (checkout / source).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                name = f"{target}/{path.relative_to(checkout / source).as_posix()}"
                if name not in installed or installed[name].locate().read_bytes() != path.read_bytes():
                    sys.exit(f"{path} is not in the wheel, or differs there.")
                data_files.append(name)
    if not any(name.endswith(".safetensors") for name in data_files):
        sys.exit("The wheel holds no weights.")

    print(f"{len(modules)} modules imported, {len(data_files)} data files present.")


if __name__ == "__main__":
    main()
