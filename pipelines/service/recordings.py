"""Recordings that clips begin with: sent along or named by address, looked at, and kept in the folder of their job."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import soundfile

from pipelines.service.errors import ServiceError
from pipelines.service.settings import ServiceSettings
from pipelines.service.sound import check_sound


Sound = bytes | Path  # what was sent, or a file that is here
SUFFIXES = {"WAV": ".wav", "WAVEX": ".wav", "FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3"}
OTHER_SUFFIX = ".sound"  # libsndfile looks inside
FILES_PATH = "v1/generations/"


@dataclass(frozen=True)
class Recording:
    """A recording that is kept.

    Args:
        name: Its file, in the folder of its job.
        seconds: Its length.
    """

    name: str
    seconds: float


def read_sound(
    name: str, value: Any, sent: bytes | None, *, base_url: str, find_file: Callable[[str, str], Path]
) -> Sound:
    """Reads a sound as the Generative Media Spec passes it: `{type, base64, media_type}` or `{type, url}`.

    Nothing is fetched: an address must be one of the service's own files.

    Args:
        name: The input.
        value: What was given.
        sent: The sound that was taken out of the body, where `base64` is empty.
        base_url: The service's address, as the client knows it.
        find_file: Returns the file of a generation's id and a name, or raises `ServiceError`.

    Raises:
        ServiceError: It is none.
    """
    if not isinstance(value, dict) or value.get("type") != "audio":
        raise ServiceError("invalid_request", f'`{name}` must be an object of the type "audio".')
    if value.keys() == {"type", "base64", "media_type"}:
        media_type = value["media_type"]
        if not isinstance(media_type, str) or not media_type.startswith("audio/"):
            raise ServiceError("invalid_request", f'`media_type` of `{name}` must be such as "audio/wav".')
        if value["base64"] != "" or not sent:
            raise ServiceError("invalid_request", f"`base64` of `{name}` must be a sound file in base64.")
        return sent
    if "url" not in value or not value.keys() <= {"type", "url", "media_type"}:
        raise ServiceError(
            "invalid_request", f"`{name}` must have `base64` and `media_type`, or `url`, got {sorted(value)}."
        )
    return _find_own_file(name, value["url"], base_url, find_file)


def _find_own_file(name: str, url: Any, base_url: str, find_file: Callable[[str, str], Path]) -> Path:
    try:
        address, own = urlsplit(url), urlsplit(base_url)
    except (ValueError, AttributeError, TypeError) as error:
        raise ServiceError("invalid_request", f"`url` of `{name}` must be an address.") from error
    parts = str(address.path).removeprefix(own.path).removeprefix(FILES_PATH).split("/")
    is_own = (address.scheme, address.netloc) == (own.scheme, own.netloc) and len(parts) == 3 and parts[1] == "files"
    if not is_own:
        raise ServiceError(
            "invalid_request",
            f"`url` of `{name}` must be a file that this service made, such as {base_url}{FILES_PATH}gen_…/files/0.wav; "
            "others are not fetched, send them as `base64`.",
        )
    return find_file(parts[0], parts[2])


def keep_recording(sound: Sound, folder: Path, settings: ServiceSettings) -> Recording:
    """Writes a recording into the folder of its job, and looks at it there.

    Raises:
        ServiceError: It is no sound file, or too long.
    """
    path = folder / f"recording{OTHER_SUFFIX}"
    try:
        path.write_bytes(sound) if isinstance(sound, bytes) else shutil.copyfile(sound, path)
    except FileNotFoundError as error:  # the generation that made it went meanwhile
        raise ServiceError("not_found", "The sound file is no longer there.") from error
    seconds = check_sound(path, min(settings.max_seconds, settings.max_upload_seconds))
    suffix = SUFFIXES.get(soundfile.info(path).format, OTHER_SUFFIX)
    return Recording(name=path.replace(path.with_suffix(suffix)).name, seconds=seconds)
