import pytest

from whisq.ratings import RatedClip, leave_systems_out
from whisq.training.musiceval import parse_name, read_musiceval


def name(system, prompt):
    return f"audiomos2025-track1-S{system:03d}_P{prompt:03d}"


@pytest.fixture
def release(tmp_path):
    """A release of five rated clips; system 1 is one of those whose prompts come from demo pages."""
    for folder in ("wav", "sets", "person_mos", "system_mos"):
        (tmp_path / folder).mkdir()
    rows = {"train": [(2, 1, 3.4, 2.0), (2, 2, 5.0, 4.6), (1, 1, 1.0, 2.2)], "dev": [(3, 1, 2.2, 3.0)]}
    rows["test"] = [(3, 2, 4.0, 4.0)]
    for split, clips in rows.items():
        lines = [f"{name(system, prompt)}.wav,{overall},{textual}\n" for system, prompt, overall, textual in clips]
        (tmp_path / "sets" / f"{split}_mos_list.txt").write_text("".join(lines))
        for system, prompt, *_ in clips:
            (tmp_path / "wav" / f"{name(system, prompt)}.wav").write_bytes(b"sound")
    (tmp_path / "prompt_info.txt").write_text('id\ttext\nP001\tA calm piano.\nP002\t"He said ""play"", loud."\n')
    (tmp_path / "demo_prompt_info.txt").write_text(
        f"id\ttext\n{name(1, 1)}.wav\tAnother piano, 安静\n", encoding="utf-8"
    )
    persons = [f"{name(2, 1)}.wav,R{i},{rating},2\n" for i, rating in enumerate((3, 3, 3, 4, 4))]
    (tmp_path / "person_mos" / "train_person_mos.txt").write_text("".join(persons))
    (tmp_path / "system_mos" / "system_mos_phase1.csv").write_text("S001,1.5,2.5\nS002,4.1,3.9\nS003,3.0,3.5\n")
    return tmp_path


def append(path, line):
    path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")


def test_a_release_is_read_as_it_is(release):
    music = read_musiceval(release)
    assert music.faults == []
    assert [len(music.splits[split]) for split in ("train", "dev", "test")] == [3, 1, 1]
    assert music.splits["train"][0] == RatedClip(
        id=name(2, 1),
        path=release / "wav" / f"{name(2, 1)}.wav",
        system="S002",
        overall_quality=3.4,
        prompt="A calm piano.",
        text_alignment=2.0,
    )
    assert music.splits["train"][1].prompt == 'He said "play", loud.'
    assert music.system_ratings["S002"] == (4.1, 3.9)
    assert music.person_ratings == {name(2, 1): {f"R{i}": (r, 2.0) for i, r in enumerate((3, 3, 3, 4, 4))}}


def test_a_demo_system_takes_its_prompt_from_the_demo_list_by_file_name(release):
    assert read_musiceval(release).splits["train"][2].prompt == "Another piano, 安静"
    (release / "demo_prompt_info.txt").write_text("id\ttext\n")
    music = read_musiceval(release)
    assert music.splits["train"][2].prompt is None
    assert music.splits["train"][2].text_alignment is None
    assert music.splits["train"][2].overall_quality == 1.0
    assert "has no prompt in demo_prompt_info.txt" in str(music.faults[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{name(2, 1)}.wav,3.0", "a row must read name,overall,textual"),
        (f"{name(3, 1)}.wav,good,3.0", "a rating must be a number, got 'good'"),
        (f"{name(3, 1)}.wav,5.2,3.0", "must lie between 1 and 5, got '5.2'"),
        (f"{name(3, 1)}.wav,nan,3.0", "must lie between 1 and 5, got 'nan'"),
        (f"{name(9, 9)}.wav,3.0,3.0", f"wav/{name(9, 9)}.wav does not exist"),
        ("piano.wav,3.0,3.0", "must end in a system and a prompt"),
        (f"../wav/{name(2, 1)}.wav,3.0,3.0", "must not lead to another folder"),
        (f"{name(2, 1)}.wav,3.0,3.0", "is listed in sets/train_mos_list.txt, line 1, already"),
    ],
)
def test_bad_rows_are_listed_and_the_rest_is_read(release, line, message):
    append(release / "sets" / "dev_mos_list.txt", f"{line}\n")
    music = read_musiceval(release)
    assert len(music.splits["dev"]) == 1
    assert [(fault.file, fault.line) for fault in music.faults] == [("sets/dev_mos_list.txt", 2)]
    assert message in music.faults[0].error


def test_a_prompt_without_text_leaves_the_overall_quality(release):
    (release / "wav" / f"{name(4, 7)}.wav").write_bytes(b"sound")
    append(release / "sets" / "dev_mos_list.txt", f"{name(4, 7)}.wav,3.0,3.0\n")
    append(release / "prompt_info.txt", "P008 no tab\nP001\tsomething else\n")
    music = read_musiceval(release)
    assert music.splits["dev"][1].text_alignment is None
    assert [fault.line for fault in music.faults] == [4, 5, 2]


def test_ratings_of_persons_that_do_not_fit_are_listed(release):
    persons = release / "person_mos" / "train_person_mos.txt"
    append(persons, f"{name(2, 1)}.wav,R0,3,3\n{name(9, 9)}.wav,R0,3,3\n{name(2, 2)}.wav,R0,1,4\n")
    errors = [fault.error for fault in read_musiceval(release).faults]
    assert "rated" in errors[0]
    assert "is in none of the lists" in errors[1]
    assert "average 1.00, but its list says 5.00" in errors[2]


def test_a_folder_that_is_no_release_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be the folder of a MusicEval release"):
        read_musiceval(tmp_path)


def test_names_tell_system_and_prompt():
    assert parse_name("audiomos2025-track1-S002_P044.wav") == ("S002", "P044")
    assert parse_name("S033_P100") == ("S033", "P100")


def test_systems_left_out_are_in_one_split_only_and_each_is_tested_once():
    clips = [RatedClip(id=f"{i}", path=None, system=f"S{i % 7}", overall_quality=3.0) for i in range(40)]
    tested = []
    for fold in range(5):
        splits = leave_systems_out(clips, 5, fold)
        systems = [{clip.system for clip in splits[split]} for split in ("train", "dev", "test")]
        assert sum(map(len, systems)) == 7
        assert sum(map(len, splits.values())) == 40
        tested += systems[2]
    assert sorted(tested) == [f"S{i}" for i in range(7)]
    with pytest.raises(ValueError, match="3 <= `num_folds`"):
        leave_systems_out(clips, 8, 0)
