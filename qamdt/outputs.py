"""What a command may write over: nothing that it reads, and nothing that it did not make itself."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from qamdt.files import read_json


OVERWRITE_HINT = ", or pass `--overwrite`"


def check_output(
    path: str | Path,
    *,
    inputs: Iterable[str | Path | None] = (),
    is_ours: Callable[[Path], bool] = lambda path: False,
    hint: str = "",
) -> None:
    """Refuses a file to write that is an input, or that is there and that something else made.

    Args:
        path: The file to write.
        inputs: Files that the command reads.
        is_ours: Says of a file that is there whether an earlier run of the same command wrote it.
        hint: What else can be done about a file that is not ours.

    Raises:
        ValueError: It is an input.
        FileExistsError: It is there and not ours.
    """
    path = Path(path)
    for given in inputs:
        if given is not None and _is_same_file(path, Path(given)):
            raise ValueError(f"{str(path)!r} would be written over, and it is an input; give another output.")
    if path.is_dir():
        raise FileExistsError(f"{str(path)!r} is a folder; give the name of a file to write.")
    if path.exists() and not is_ours(path):
        raise FileExistsError(
            f"{str(path)!r} is there already, and this command did not make it; give another output{hint}."
        )


def check_distinct(*paths: str | Path | None) -> None:
    """Refuses to write two things to one file.

    Args:
        paths: Files that a command will write; `None` for one that it will not.

    Raises:
        ValueError: Two of them are the same.
    """
    given = [Path(path) for path in paths if path is not None]
    for number, path in enumerate(given):
        if any(_is_same_file(path, other) for other in given[:number]):
            raise ValueError(f"{str(path)!r} would be written twice, each time with something else; give two names.")


def check_output_folder(folder: str | Path, names: Collection[str], *, is_ours: bool) -> None:
    """Refuses a folder to write to in which something else lies under the names that will be written.

    Args:
        folder: The folder; it need not be there.
        names: Files and folders that will be written or replaced in it, as patterns.
        is_ours: Whether an earlier run of the same command made the folder.

    Raises:
        FileExistsError: Something is there and not ours.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} must be a folder to write to, and it is a file; give another one.")
    foreign = [] if is_ours else sorted(path.name for name in names for path in folder.glob(name))
    if foreign:
        raise FileExistsError(
            f"{str(folder)!r} holds {foreign[0]!r}, which would be replaced, and this command did not make it; "
            "give another folder."
        )


def is_readable_by(read: Callable[[Path], Any], path: Path) -> bool:
    """Whether a file is of the kind that `read` reads: a `ValueError` of it says that it is not."""
    try:
        read(path)
    except (ValueError, OSError):
        return False
    return True


def has_fields(path: Path, names: Collection[str]) -> bool:
    """Whether a file holds a JSON object with these fields."""
    if not is_readable_by(read_json, path):
        return False
    values = read_json(path)
    return isinstance(values, dict) and set(names) <= values.keys()


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them is not there
        return path.absolute() == other.absolute()
