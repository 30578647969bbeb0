"""Progress files: one JSON line for each finished piece of work, so that a killed run can be taken up again."""

import json
from pathlib import Path
from typing import Any


def read_progress(path: Path) -> list[dict[str, Any]]:
    """Reads the finished work, and cuts off a last line that was only half written; nothing when there is no file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.decode("utf-8").splitlines()]
