"""The report of a refinement."""

from data_prep.refine.outcomes import (
    BELOW_THRESHOLD,
    ORIGINAL,
    Alignment,
    DroppedCandidate,
    Fusion,
    KeptCandidate,
    Refinement,
)
from data_prep.refine.report import NUM_EXAMPLES, write_report


def refinement(number, *, original=0.2, after=0.5, caption="Slow jazz.", fell_back=False, checks=()):
    dropped = DroppedCandidate(
        text="techno", source="model/x", similarity=-0.1, reason=BELOW_THRESHOLD, detail="similarity -0.100"
    )
    kept = KeptCandidate(text="jazz", source=ORIGINAL, similarity=original)
    return Refinement(
        id=f"clip-{number}",
        original_captions=("jazz",),
        alignment=Alignment(kept=(kept,), dropped=(dropped,)),
        fusion=Fusion(caption=caption, failed_checks=tuple(checks), fell_back=fell_back, similarity=after),
    )


def test_the_report_counts_clips_candidates_and_checks(tmp_path):
    refinements = [refinement(number) for number in range(20)]
    checks = ["the number '9' comes from no source"]
    refinements += [refinement(number, after=0.2, fell_back=True, checks=checks) for number in range(20, 25)]
    report = write_report(tmp_path / "r", iter(refinements), {"CLAP": "mini@1234"}).read_text()
    assert "25 clips: 20 with a fused caption, 5 that kept one of before." in report
    assert "| CLAP | mini@1234 |" in report
    assert "| original captions | 0.200 |" in report
    assert "| refined caption | 0.440 |" in report
    assert "It rose in 80% and fell in 0% of 25 clips." in report
    assert "| original | 25 | 25 | 0 |" in report
    assert "| model/x | 25 | 0 | 25 |" in report
    assert "| the number … comes from no source | 5 |" in report
    assert report.count("**clip") == NUM_EXAMPLES + 5
    for name in ("similarity.png", "dropped.png"):
        assert (tmp_path / "r" / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in report


def test_the_report_does_not_depend_on_the_order_of_the_clips(tmp_path):
    refinements = [refinement(number, original=number / 100) for number in range(30)]
    forward = write_report(tmp_path / "a", refinements, {}).read_text()
    assert write_report(tmp_path / "b", refinements[::-1], {}).read_text() == forward


def test_markup_in_captions_stays_text(tmp_path):
    hostile = "![x](http://evil.example/x.png) <script>alert(1)</script> | a | `b` # c"
    report = write_report(tmp_path, [refinement(0, caption=hostile + " long" * 200)], {}).read_text()
    assert "<script>" not in report
    assert "![x" not in report
    assert r"!\[x\](http://evil.example/x.png) &lt;script&gt;alert(1)&lt;/script&gt; \| a \|" in report
    assert max(map(len, report.splitlines())) < 600


def test_a_report_on_nothing_says_so(tmp_path):
    report = write_report(tmp_path, [], {}).read_text()
    assert "0 clips" in report
    assert "No clip has both" in report
    assert not list(tmp_path.glob("*.png"))


def test_without_matplotlib_the_report_has_no_plots(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    report = write_report(tmp_path, [refinement(0)], {}).read_text()
    assert "1 clips" in report
    assert ".png" not in report
