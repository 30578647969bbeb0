import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from qamdt.settings import build, check_resumption, find_settings, format_settings, load_settings, override


@dataclass(frozen=True, kw_only=True)
class Part:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    names: list[str] = field(default_factory=list)
    precision: Literal["no", "bf16"] = "no"
    length: int | list[int] = 8
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    folder: str
    part: Part = field(default_factory=Part)
    model: dict[str, Any] | None = None


def test_written_settings_read_back_the_same(tmp_path):
    settings = Whole(folder="ö", part=Part(rate=1e-6, sizes=(3,), names=["a"], length=[4, 5]), model={"dim": [1, 2]})
    (tmp_path / "settings.yaml").write_text(format_settings(settings))
    assert load_settings(Whole, tmp_path / "settings.yaml") == settings


def test_overrides_are_read_as_yaml(tmp_path):
    (tmp_path / "settings.yaml").write_text("folder: a\nmodel: {dim: 1}\n")
    overrides = ["part.sizes=[7, 8]", "part.precision=no", "model.depth=2", "part.rate=3"]
    settings = load_settings(Whole, tmp_path / "settings.yaml", overrides)
    assert settings == Whole(folder="a", part=Part(sizes=(7, 8), rate=3.0), model={"dim": 1, "depth": 2})
    assert override(settings, {"part.sizes": (1, 2), "model": None, "part.rate": 0.1}) == Whole(folder="a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("part.sizes=[1, x]", r"`part.sizes\[1\]` must be of type int, got 'x'"),
        ("part.sizes=1", "`part.sizes` must be of type list, got 1"),
        ("part.names=[1]", r"`part.names\[0\]` must be of type str, got 1"),
        ("part.length=[1.5]", r"`part.length\[0\]` must be of type int, got 1.5"),
        ("part.length=null", "`part.length` must be of type int, got None"),
        ("part.limit=1.5", "`part.limit` must be of type int, got 1.5"),
        ("part.precision=true", r"`part.precision` must be one of \['no', 'bf16'\], got True"),
        ("part.rate=1e-4", "must be of type float, got '1e-4' .*write 1.0e-4"),
        ("part.speed=1", r"unknown key `part.speed`; expected one of \['length'"),
        ("folder.more=1", "in the override of `folder.more`, `folder` is no group of settings"),
        ("part.rate", "an override must read `key=value`, got 'part.rate'"),
        ("part.sizes=[1", r"the value of the override 'part.sizes=\[1' is no valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path, change, message):
    (tmp_path / "settings.yaml").write_text("folder: a\n")
    with pytest.raises(ValueError, match=f"settings.yaml: .*{message}"):
        load_settings(Whole, tmp_path / "settings.yaml", [change])


def test_presets_are_found_by_name_and_by_their_place_in_a_checkout(tmp_path):
    (tmp_path / "mini.yaml").write_text("folder: a\n")
    for name in ("mini", "configs/thing/mini.yaml", tmp_path / "mini.yaml"):
        assert find_settings(name, tmp_path, folder="configs/thing") == tmp_path / "mini.yaml"
    with pytest.raises(FileNotFoundError, match=r"no config 'configs/other/mini.yaml'.*\['mini'\]"):
        find_settings("configs/other/mini.yaml", tmp_path, folder="configs/thing")


def test_a_resumed_run_may_change_what_is_free_and_nothing_else():
    started = build(Whole, {"folder": "a", "part": {"rate": 0.1}})
    free = {"part.rate", "folder"}
    assert check_resumption(started, started, free=free, source="config.yaml") is None
    faster = dataclasses.replace(started, part=Part(rate=0.2), folder="b")
    assert check_resumption(started, faster, free=free, source="config.yaml") == (
        "Resuming with other settings: `folder` was 'a' and is now 'b', `part.rate` was 0.1 and is now 0.2."
    )
    other = dataclasses.replace(faster, part=Part(rate=0.2, precision="bf16", limit=3))
    words = (
        "`part.precision` was 'no' and is now 'bf16', `part.limit` was null and is now 3; .* settings of config.yaml"
    )
    with pytest.raises(ValueError, match=f"cannot be resumed with other settings: {words}"):
        check_resumption(started, other, free=free, source="config.yaml")
    with pytest.raises(ValueError, match=r"other settings: `model\.dim` was null and is now 2; give another"):
        check_resumption(started, dataclasses.replace(started, model={"dim": 2}), free=free, source="config.yaml")
