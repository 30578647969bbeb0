"""The former place of `qamdt.tempo_and_key`, for scripts that still import it from here."""

from qamdt.tempo_and_key import key_and_margin, key_name, tempo_and_clarity, tempo_bpm


__all__ = ["key_and_margin", "key_name", "tempo_and_clarity", "tempo_bpm"]
