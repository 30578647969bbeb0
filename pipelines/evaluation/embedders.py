"""What turns a clip into a point in a space: any CLAP, or any function of a sound in a file of one's own."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qamdt.keyed_rows import make_key
from whisq.clap import EMBEDDED, Clap, load_clap


Function = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """An embedder, loaded.

    Args:
        name: Which one it is, down to its weights or the text of its file.
        embed: Maps mono samples `(samples,)` and their rate in Hz to an embedding `(size,)`.
        clap: The CLAP model, which embeds prompts too; `None` of a function.
    """

    name: str
    embed: Function
    clap: Clap | None


def load_embedder(spec: str = EMBEDDED, *, revision: str | None = None, device: str = "cpu") -> Embedder:
    """Loads an embedder.

    Args:
        spec: What `whisq.clap.load_clap` takes, or `FILE.py:FUNCTION`, a function of mono samples `(samples,)` and their
            rate in Hz that returns numbers `(size,)`.
        revision: Version of a model on the Hub.
        device: Where a CLAP computes.

    Raises:
        ValueError: The file has no such function.
    """
    if ".py:" in spec:
        if revision is not None:
            raise ValueError(f"`revision` goes with a model on the Hub, got {revision!r} with {spec!r}.")
        function, name = load_function(spec)
        return Embedder(name=name, embed=function, clap=None)
    clap = load_clap(spec, revision=revision, device=device)
    return Embedder(name=clap.name, embed=lambda samples, rate: clap.embed_audio([samples], rate)[0], clap=clap)


def load_function(spec: str) -> tuple[Function, str]:
    """Loads a function from a file of one's own.

    Args:
        spec: `FILE.py:FUNCTION`.

    Returns:
        The function, and a name for it that changes with its file.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"expected FILE.py:FUNCTION, got {spec!r}, whose file does not exist.")
    source = path.read_bytes()
    module_spec = importlib.util.spec_from_file_location(f"embedder_{make_key(str(path.resolve())):016x}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"expected FILE.py:FUNCTION, got {spec!r}, whose file has no function {name!r}.")
    return function, f"{path.name}:{name}@{hashlib.sha256(source).hexdigest()[:8]}"
