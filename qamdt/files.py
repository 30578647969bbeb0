"""Files that survive a kill: written whole or not at all, and read without the line that a killed process tore.

Text is UTF-8 on every machine, whatever its locale, and a line ends at a line feed alone: captions may hold the other
characters (U+0085, U+2028, U+2029) at which `str.splitlines` cuts.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


try:
    import fcntl
except ImportError:  # Windows, where a second writer goes unnoticed
    fcntl = None


_MOST_LEVELS = 100  # of JSON inside JSON; what is nested deeper comes from nobody who means well


def claim(path: str | Path, *, shared: bool = False) -> IO[bytes]:
    """Opens a file for appending, and keeps other processes that claim it away until it is closed.

    Args:
        path: The file.
        shared: Whether others may claim it too, if they want to share it.

    Raises:
        RuntimeError: Another process has claimed it.
    """
    while True:
        file = Path(path).open("ab", buffering=0)
        try:
            if fcntl is not None:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise RuntimeError(
                f"another process is writing {str(path)!r}; wait for it to end, or give this run another folder."
            ) from error
        # While it was being claimed, the process before may have put another file in its place.
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        file.close()


@contextmanager
def claim_folder(folder: str | Path, *, is_main_process: bool = True) -> Iterator[None]:
    """Keeps other processes that claim the folder away; of processes that work together, the main one claims it.

    Raises:
        RuntimeError: Another process has claimed it.
    """
    if not is_main_process:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with claim(Path(folder) / ".lock"):
        yield


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file to fill, which takes the place of `path` at the end; an exception leaves nothing behind.

    The temporary file lies beside `path`, so its folder must exist, and is on the disk before it is renamed, so a power
    cut leaves the old content or the new one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file and renames it to `path`; a failure leaves nothing behind."""
    with replacing(path) as temporary:
        write(temporary)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file in one step."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, values: Any) -> None:
    """Writes a JSON file in one step, to be read by people too."""
    write_atomically(path, lambda file: file.write_bytes(_encode(values, indent=2)))


def write_tensors(path: str | Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file in one step.

    Raises:
        OSError: It does not fit onto the disk.
    """
    from safetensors import SafetensorError  # here, as they bring torch, which commands need not for `--help`
    from safetensors.torch import save_file

    try:
        write_atomically(path, lambda file: save_file(tensors, file, metadata))
    except SafetensorError as error:
        raise OSError(f"{str(path)!r} could not be written: {error}; free disk space and run again.") from error


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Writes a JSON Lines file in one step; `rows` are taken one by one."""

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            stream.writelines(map(encode_json_line, rows))

    write_atomically(path, write)


def append_json_line(path: str | Path, values: Any) -> None:
    """Adds a line to a JSON Lines file, which is made if there is none."""
    with Path(path).open("ab") as file:
        file.write(encode_json_line(values))


def encode_json_line(values: Any) -> bytes:
    """Returns the line of a JSON Lines file that holds `values`, with its newline."""
    return _encode(values)


def _encode(values: Any, *, indent: int | None = None) -> bytes:
    # Lone surrogates, which JSON can hold and UTF-8 cannot, become escapes that JSON reads back.
    return json.dumps(values, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace") + b"\n"


def iterate_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yields where each line begins, in bytes, and the line; a last one without its newline is passed over.

    Lines are bytes, because a torn one may end inside a character.
    """
    offset = 0
    with Path(path).open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
                offset += len(line)


def read_json_lines(path: str | Path) -> Iterator[Any]:
    """Yields what each line of a JSON Lines file holds; a last line without its newline is passed over.

    Raises:
        ValueError: A whole line is not JSON; the message names it by its number.
    """
    for number, (_, line) in enumerate(iterate_lines(path), start=1):
        try:
            values = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); delete this line.") from error
        yield values


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text holds.

    Raises:
        ValueError: It is not JSON, not UTF-8, or nested so deep that not everything could be done with it.
    """
    try:
        # A file that a Windows program wrote begins with a byte order mark.
        values = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"it is nested more than {_MOST_LEVELS} levels deep") from None
    openings = (text.count("["), text.count("{")) if isinstance(text, str) else (text.count(b"["), text.count(b"{"))
    if sum(openings) > _MOST_LEVELS:
        _check_depth(values)
    return values


def _check_depth(values: Any) -> None:
    level = [values]
    for _ in range(_MOST_LEVELS):
        parents = [value for value in level if isinstance(value, dict | list)]
        level = [child for parent in parents for child in (parent.values() if isinstance(parent, dict) else parent)]
    if level:
        raise ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")


def read_json(path: str | Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no JSON; the message names it.
    """
    try:
        return parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON file in UTF-8: {error}.") from error


def read_text_lines(path: str | Path) -> list[str]:
    """Returns the lines of a text file that a person wrote, without their ends and without a byte order mark.

    Raises:
        ValueError: It is not UTF-8; the message names it.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} must be a text file in UTF-8: {error}; save it as UTF-8.") from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def is_text(text: str) -> bool:
    """Whether every character of a string is one: names of files and JSON can hold halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """Returns the name of a file with escapes for the bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def cut_torn_line(path: str | Path) -> None:
    """Cuts off a last line that a killed process left half written; does nothing where there is no file."""
    path = Path(path)
    if path.is_file():
        end = _end_of_last_line(path)
        if end < path.stat().st_size:
            os.truncate(path, end)


def _end_of_last_line(path: Path) -> int:
    """Returns the length of a file up to its last newline."""
    block = 1 << 16
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def cut_log(path: str | Path, counter: str, last: int) -> None:
    """Removes the lines of a log that a resumed run will write again, and a torn one.

    Args:
        path: JSON Lines file; nothing happens where there is none.
        counter: Field that says how far the run was, such as "step".
        last: Highest value of it to keep.
    """
    if Path(path).is_file():
        try:
            lines = [line for _, line in iterate_lines(path) if parse_json(line)[counter] <= last]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} is no log of a run: {error!r}; move it away.") from error
        write_atomically(path, lambda file: file.write_bytes(b"".join(lines)))


def replace_folder(temporary: Path, folder: Path) -> None:
    """Puts a finished folder in the place of an older one."""
    # A folder cannot replace another in one step, so for a moment there is none.
    outdated = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(outdated, ignore_errors=True)
    if folder.exists():
        os.replace(folder, outdated)
    os.replace(temporary, folder)
    shutil.rmtree(outdated, ignore_errors=True)


def flush_to_disk(path: str | Path) -> None:
    """Waits until a file or folder is on the disk, so that a power cut after its rename loses nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
