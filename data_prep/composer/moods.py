"""Moods: what each one is called in captions and how it shapes tempo, loudness, density and mode."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mood:
    """How a mood changes the way a style is played.

    Args:
        names: Words captions may use; the first one is the tag.
        modes: Modes that fit.
        tempo: Part of the style's tempo range it uses, as two fractions.
        velocity: Mean MIDI velocity.
        density: Which melody rhythms it draws from: "sparse", "medium" or "busy".
    """

    names: tuple[str, ...]
    modes: tuple[str, ...]
    tempo: tuple[float, float]
    velocity: int
    density: str

    @property
    def name(self) -> str:
        return self.names[0]


def _mood(names: str, modes: str, tempo: tuple[float, float], velocity: int, density: str) -> Mood:
    return Mood(
        names=tuple(names.split("/")), modes=tuple(modes.split()), tempo=tempo, velocity=velocity, density=density
    )


MOODS = {
    mood.name: mood
    for mood in (
        _mood("calm/peaceful/gentle", "major minor", (0.0, 0.4), 62, "sparse"),
        _mood("relaxed/laid-back/mellow", "major minor", (0.0, 0.5), 72, "medium"),
        _mood("happy/cheerful/joyful", "major", (0.4, 1.0), 92, "busy"),
        _mood("uplifting/bright/optimistic", "major", (0.4, 1.0), 96, "medium"),
        _mood("playful/bouncy/lighthearted", "major", (0.5, 1.0), 84, "busy"),
        _mood("romantic/tender/warm", "major minor", (0.0, 0.5), 74, "medium"),
        _mood("dreamy/floating/ethereal", "major minor", (0.0, 0.5), 64, "sparse"),
        _mood("sad/sorrowful/mournful", "minor", (0.0, 0.4), 66, "sparse"),
        _mood("melancholic/wistful/bittersweet", "minor", (0.1, 0.6), 70, "medium"),
        _mood("dark/brooding/ominous", "minor", (0.0, 0.8), 88, "medium"),
        _mood("mysterious/suspenseful", "minor", (0.1, 0.6), 74, "sparse"),
        _mood("dramatic/intense/epic", "minor", (0.4, 1.0), 104, "medium"),
        _mood("energetic/driving/powerful", "major minor", (0.5, 1.0), 108, "busy"),
        _mood("groovy/funky", "major minor", (0.2, 0.9), 96, "busy"),
        _mood("solemn/stately/dignified", "major minor", (0.0, 0.6), 84, "sparse"),
        _mood("triumphant/heroic/proud", "major", (0.4, 1.0), 108, "medium"),
    )
}
