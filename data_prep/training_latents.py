"""The latents that a training reads are those of its manifest: they are brought up to date before it begins."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from data_prep.latent_encoders import describe_text_encoder, load_text_encoder
from data_prep.latent_update import EncodingOptions, digest_manifest, encode_corpus
from data_prep.make_sample_corpus import SAMPLE_CORPUS_DIR
from qamdt.latent_folder import INDEX_NAME, LatentFolder, open_folder
from qamdt.training.online_texts import OnlineTexts


logger = logging.getLogger(__name__)
SAMPLE_LATENTS = Path("data/sample/latents")  # the corpus itself may lie where nobody may write


def find_latents(manifest: str | None, latents: str | None, *, text: str = "cached") -> str:
    """Returns the folder or URL of the latents that a training reads, and sees to it that they are the manifest's.

    A folder is brought up to date, by the options that it was encoded with before, or by the defaults.

    Args:
        manifest: The manifest of the corpus, or `sample`, the corpus that ships with the project.
        latents: Folder or URL; `latents` beside the manifest, or `data/sample/latents`, when `None`.
        text: "cached" encodes the texts that are missing, too; "online" leaves them to the training.

    Raises:
        ValueError: Both are `None`, or what lies behind a URL was made from another manifest.
    """
    if manifest is None:
        if latents is None:
            raise ValueError("`data.manifest` or `data.latents` must say what to train on; both are null.")
        _warn_of_changes(latents)
        return latents
    path = SAMPLE_CORPUS_DIR / "manifest.jsonl" if manifest == "sample" else Path(manifest)
    latents = latents or str(SAMPLE_LATENTS if manifest == "sample" else path.parent / "latents")
    if "://" in latents:
        if digest_manifest(path) != open_folder(latents).index["manifest"]["sha256"]:
            raise ValueError(
                f"`data.latents` {latents!r} was made from another `data.manifest` than {str(path)!r}; run `python -m "
                "data_prep.encode_latents` and upload its folder again, or set `data.manifest` to null."
            )
        return latents
    options = EncodingOptions(text=text)
    if (Path(latents) / INDEX_NAME).is_file():
        options = replace(EncodingOptions(**open_folder(latents).index["options"]), text=text)
    report = encode_corpus(path, latents, options)
    if PartialState().is_main_process:
        logger.info(f"Latents of {path} in {latents}: {report}.")
        if report.num_bad:
            logger.warning(f"{report.num_bad} bad clips are left out, listed in {latents}/bad_clips.jsonl.")
    return latents


def _warn_of_changes(latents: str) -> None:
    """Says so if the manifest that a folder was made from is another one now."""
    if "://" in latents or not (Path(latents) / INDEX_NAME).is_file():
        return
    made_from = open_folder(latents).index.get("manifest")
    if made_from is None or not Path(made_from["path"]).is_file():
        return
    if os.environ.get("RANK", "0") == "0" and digest_manifest(made_from["path"]) != made_from["sha256"]:
        logger.warning(
            f"{made_from['path']} has changed since {latents} was made from it; with `data.manifest` the latents are "
            "brought up to date."
        )


def load_online_texts(folder: LatentFolder, device: torch.device) -> OnlineTexts:
    """Loads the text encoder that the folder of encoded music names, for a training that runs it.

    Raises:
        ValueError: It is another one today than the cached states were made with.
    """
    index = folder.index
    if "options" not in index:
        raise ValueError(
            f"`data.text=online` needs to know the text encoder of {folder.name!r}, and its index names none; encode again."
        )
    options = EncodingOptions(**index["options"])
    if describe_text_encoder(options.text_encoder, options.max_text_tokens) != index["read_by"]:
        raise ValueError(
            f"the text encoder {options.text_encoder or 'of the package'!r} has changed since {folder.name!r} was written; "
            "run `python -m data_prep.encode_latents` again."
        )
    tokenizer, encoder = load_text_encoder(options.text_encoder)
    return OnlineTexts(tokenizer, encoder.to(device), max_tokens=options.max_text_tokens)
