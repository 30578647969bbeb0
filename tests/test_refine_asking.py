"""A language model is asked over real sockets; the server answers well, badly, slowly, or not at all."""

import json
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import refiner_throughput as prepared
from data_prep.refine.async_engine import answer_questions
from data_prep.refine.batch_engine import BatchEngine, PartLimits
from data_prep.refine.fusion_prompt import FUSION_SCHEMA, write_messages
from data_prep.refine.jobs import RefineSettings
from data_prep.refine.llm_client import LlmClient, ModelConfig, RunStopped, Server, measure_messages, read_answer
from data_prep.refine.questions import (
    Question,
    iterate_fusion_questions,
    read_fusion,
    read_suggestions,
    write_audio_messages,
)
from data_prep.refine.spending import CostLimitReached, Prices, Spending, Usage, sum_usage
from qamdt.audio import write_audio
from qamdt.manifest import Record


SECRET = "sk-a-very-secret-key-1234567890"
BUSY = 120.0  # seconds that a busy machine may take over anything


@pytest.fixture(scope="module")
def server_log(tmp_path_factory):
    return tmp_path_factory.mktemp("server") / "requests.jsonl"


@pytest.fixture(scope="module")
def base_url(server_log):
    with prepared.running_server("--log", str(server_log)) as url:
        yield url


@pytest.fixture
def questions():
    """Asks about so many clips, each with a prompt of its own."""

    def ask_about(*names):
        return [
            Question(
                key=number,
                id=name,
                messages=write_messages([f"slow jazz, {name}"], {}, 1),
                json_schema=FUSION_SCHEMA,
                read=partial(read_fusion, model="m"),
            )
            for number, name in enumerate(names)
        ]

    return ask_about


def ask(questions, base_url, script, spending=None, **changes):
    """Returns the rows that come of questions to a server that follows a script, by clip."""
    rows = []
    server = Server(**{"base_url": base_url, "timeout_in_s": BUSY, "concurrency": 4} | changes)
    config = ModelConfig(model=f"script:{script}", max_tokens=100)
    client = LlmClient(config, server, spending or Spending())
    try:
        answer_questions(iter(questions), client, rows.append)
    finally:
        by_clip = {row["id"]: row for row in rows}
        assert len(by_clip) == len(rows), "no clip has two rows"
        ask.rows = by_clip
    return by_clip


def count_requests(server_log, script):
    entries = [json.loads(line) for line in server_log.read_text().splitlines()]
    return sum(entry["model"] == f"script:{script}" for entry in entries)


@pytest.mark.parametrize("trouble", ["429", "500", "cut", "malformed", "wrong-schema", "truncated", "not-http-json"])
def test_trouble_that_passes_is_waited_out(trouble, base_url, server_log, questions):
    script = f"{trouble},ok"
    rows = ask(questions(f"passing {trouble}", f"passing {trouble} 2"), base_url, script)
    assert [row["status"] for row in rows.values()] == ["done", "done"]
    assert count_requests(server_log, script) == 4
    answer = {"caption": "A piece of music.", "paraphrases": ["A piece of music."]}
    assert all(row["answer"] == answer for row in rows.values())


def test_a_slow_trickle_is_cut_off(base_url, questions):
    rows = ask(questions("drip"), base_url, "drip", timeout_in_s=1.5, max_tries=1)
    assert "no answer within 1.5 s (try 1 of 1)" in rows["drip"]["reason"]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("500", "server error 500"),
        ("malformed", "unusable answer: the answer must be JSON"),
        ("wrong-schema", "unusable answer"),
        ("refusal", "the model refused: I cannot help with that."),
        ("cut", "connection failed"),
        ("400", "the server refused the request (400): .*response_format"),
    ],
)
def test_trouble_that_stays_fails_the_row_with_its_reason(trouble, reason, base_url, server_log, questions):
    rows = ask(questions(f"staying {trouble}"), base_url, trouble, max_tries=2)
    [row] = rows.values()
    assert row["status"] == "failed"
    assert reason.split(".*")[0] in row["reason"]
    assert row["reason"].endswith("(try 1 of 2)" if trouble == "400" else "(try 2 of 2)")


def test_all_tries_are_paid_for(base_url, questions):
    spending = Spending()
    rows = ask(questions("paid"), base_url, "malformed,wrong-schema,ok", spending)
    assert rows["paid"]["usage"]["requests"] == 3
    assert spending.usage.to_dict() == rows["paid"]["usage"]
    failed = ask(questions("paid in vain"), base_url, "malformed,malformed", max_tries=2)["paid in vain"]
    assert failed["usage"]["requests"] == 2


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("401", "the server refused the key (401)"), ("quota", "the account is exhausted (429)")],
)
def test_what_no_waiting_mends_stops_the_run(trouble, reason, base_url, server_log, questions):
    with pytest.raises(RunStopped) as stop:
        ask(questions(*map(str, range(50))), base_url, trouble)
    assert reason in str(stop.value)
    assert ask.rows == {}, "the rows stay to be done"
    assert count_requests(server_log, trouble) <= 4


def test_a_key_that_a_server_quotes_is_not_passed_on(base_url, questions, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with pytest.raises(RunStopped, match=r"Incorrect API key provided: Bearer \*\*\*") as stop:
        ask(questions("quoted"), base_url, "401")
    assert SECRET not in "".join(str(error) for error in (stop.value, stop.value.__cause__))


def test_a_server_that_is_not_there_stops_the_run(questions):
    started = time.monotonic()
    with pytest.raises(RunStopped, match="cannot reach the server at http://127.0.0.1:9/v1/.*check `base_url`"):
        ask(questions(*map(str, range(50))), "http://127.0.0.1:9/v1", "ok", max_tries=2)
    assert time.monotonic() - started < BUSY


def test_a_key_in_an_answer_is_not_kept(questions, monkeypatch):
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in SECRET)
    answers = [f'{{"caption": "jazz {SECRET}", "paraphrases": ["jazz {escaped}"]}}', f"no JSON, but {SECRET}"]
    for answer in answers:

        async def answer_with_key(client, body, answer=answer):
            client._was_reached = True
            return answer, Usage()

        monkeypatch.setattr(LlmClient, "_request", answer_with_key)
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        rows = ask(questions("echo"), "http://localhost:1/v1", "ok", max_tries=1)
        assert SECRET not in json.dumps(rows)
        assert "***" in json.dumps(rows)


def test_many_failures_in_a_row_stop_the_run(base_url, questions, monkeypatch):
    monkeypatch.setattr("data_prep.refine.async_engine.MAX_FAILURES_IN_A_ROW", 6)
    with pytest.raises(RunStopped, match=r"6 rows in a row failed, the last one with: the server refused the request"):
        ask(questions(*(f"all {number}" for number in range(50))), base_url, "400")
    assert 6 <= len(ask.rows) <= 6 + 4


def test_no_more_requests_are_under_way_than_allowed(server_log, base_url, questions):
    script = "500,ok"
    ask(questions(*(f"bounded {number}" for number in range(12))), base_url, script, concurrency=3)
    entries = [json.loads(line) for line in server_log.read_text().splitlines()]
    assert max(entry["in_flight"] for entry in entries if entry["model"] == f"script:{script}") <= 3


def test_a_retry_after_is_kept_by_all(server_log, base_url, questions):
    script = "429,429,ok"
    ask(questions("pause"), base_url, script)
    entries = [json.loads(line) for line in server_log.read_text().splitlines()]
    first, second, third = (entry["time"] for entry in entries if entry["model"] == f"script:{script}")
    assert second - first >= 0.2 + 0.25  # what the server asks for, and the shortest first backoff
    assert third - second >= 0.2 + 0.5


def test_the_purse_is_never_overdrawn(base_url, questions):
    spending = Spending(Prices(input_price=1000.0, output_price=1000.0), max_cost=3.0)
    with pytest.raises(CostLimitReached, match="`max_cost` 3 is reached"):
        ask(questions(*(f"costly {number}" for number in range(50))), base_url, "ok", spending)
    assert 0 < len(ask.rows) < 50
    assert 1.0 < spending.cost <= 3.0


@pytest.mark.parametrize("response_format", ["json_object", "text"])
def test_servers_without_schemas_are_told_the_schema_in_words(response_format):
    config = ModelConfig(model="m", response_format=response_format, temperature=0.5, max_tokens=7)
    schema = {"type": "object", "properties": {"caption": {"type": "string"}}}
    body = config.write_body([{"role": "user", "content": "x"}], schema)
    assert json.dumps(schema) in body["messages"][-1]["content"]
    assert body.get("response_format") == ({"type": "json_object"} if response_format == "json_object" else None)
    assert (body["temperature"], body["max_completion_tokens"]) == (0.5, 7)


def test_sound_is_not_counted_as_text(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros(32_000, np.float32), 16_000)
    record = Record(id="a", path="a.wav", duration_in_s=2.0)
    messages = write_audio_messages(record, tmp_path / "manifest.jsonl")
    num_bytes, audio_in_s = measure_messages(messages)
    assert len(json.dumps(messages)) > 80_000
    assert num_bytes < 1000
    assert audio_in_s == pytest.approx(2.0, abs=0.01)
    bound = ModelConfig(model="m", max_tokens=10).bound_usage({"messages": messages})
    assert (100 < bound.input_tokens < 1000, bound.output_tokens) == (True, 10)


@pytest.mark.parametrize("count", [[1], "7", -3, float("nan"), 1e300, True, None, {}])
def test_a_count_of_tokens_that_is_none_counts_nothing(count):
    completion = {
        "choices": [{"message": {"content": "{}"}}],
        "usage": {"prompt_tokens": count, "completion_tokens": 5},
    }
    assert read_answer(completion) == ("{}", Usage(0, 5, 1))


@pytest.mark.parametrize("read", [partial(read_fusion, model="m"), partial(read_suggestions, model="m")])
def test_an_answer_that_is_nested_without_end_is_unusable(read):
    with pytest.raises(ValueError, match="the answer must be"):
        read("[" * 200_000)


def test_answers_of_a_batch_are_lines_whatever_is_in_them(run, base_url, tmp_path):
    engine = BatchEngine(tmp_path / "batches", run.settings.model, Server(base_url=base_url, timeout_in_s=BUSY))
    text = {"caption": "slow\u2028jazz\x85", "paraphrases": []}
    body = {"choices": [{"message": {"content": json.dumps(text, ensure_ascii=False)}}], "usage": None}
    answers = [
        {"custom_id": "1", "response": {"status_code": 200, "body": body}},
        {"custom_id": "2", "error": "none", "response": [1]},
        {"custom_id": "3", "response": {"status_code": 200, "body": [body]}},
        {"custom_id": "no key"},
        [],
    ]
    lines = [json.dumps(answer, ensure_ascii=False) for answer in answers] + ["[" * 200_000, ""]
    files = SimpleNamespace(content=lambda file_id: SimpleNamespace(text="\n".join(lines)))
    engine._client = SimpleNamespace(files=files)
    batch = SimpleNamespace(output_file_id="file", error_file_id=None)
    rows = [engine._make_row(key, f"clip {key}", answer) for key, answer in engine._iterate_answers(batch)]
    assert [row["status"] for row in rows] == ["done", "failed", "failed"]
    assert rows[0]["answer"] == text


def test_a_base_url_with_a_password_is_refused():
    with pytest.raises(ValueError, match="must not hold a user name or password") as error:
        Server(base_url=f"https://me:{SECRET}@example.org/v1")
    assert SECRET not in str(error.value)


def test_openai_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="set the environment variable `OPENAI_API_KEY`"):
        Server().read_key()


@pytest.fixture
def run(tmp_path):
    """The books of seven clips that are through stage 2."""
    run = prepared.open_run(prepared.write_prepared_corpus(tmp_path, 7))
    run.settings = replace(run.settings, model=ModelConfig(model="script:ok"))
    return run


def open_questions(run):
    return iterate_fusion_questions(
        run.iterate_jobs("fuse", retry_failed=True), run.settings, run.stores["fuse"].append
    )


def test_batches_are_submitted_once_and_collected_once(run, base_url, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server = Server(base_url=base_url, timeout_in_s=BUSY)

    def engine():
        return BatchEngine(tmp_path / "batches", run.settings.model, server)

    limits = PartLimits(max_requests=3)
    spending = Spending()
    assert engine().submit(open_questions(run), spending, limits) == (7, 3)
    assert engine().submit(open_questions(run), spending, limits) == (0, 0), "what is under way is not asked again"
    assert all("completed, 3 of 3 answered" in line or "1 of 1" in line for line in engine().describe())

    # A process that was killed right after a batch was started finds the batch again.
    notes = json.loads((tmp_path / "batches" / "batches.json").read_text())
    lost = notes.pop(next(iter(notes)))
    (tmp_path / "batches" / "batches.json").write_text(json.dumps(notes))
    assert engine().submit(open_questions(run), spending, limits) == (0, 0)
    assert lost["batch"] in (tmp_path / "batches" / "batches.json").read_text()

    assert engine().collect(run.stores["fuse"].append) == (3, 0)
    assert engine().collect(run.stores["fuse"].append) == (0, 0)
    run.refresh("fuse")
    assert run.count_open("fuse", retry_failed=True) == 0
    assert sum_usage(run.stores["fuse"].history()).requests == 7
    assert all(SECRET not in path.read_text() for path in (tmp_path / "batches").iterdir())


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("500", "the batch brought an error"),
        ("malformed", "unusable answer"),
        ("slow", None),
        ("truncated", "was cut"),
    ],
)
def test_what_a_batch_did_not_answer_can_be_submitted_again(trouble, reason, run, base_url, tmp_path):
    model = ModelConfig(model=f"script:{trouble},ok")
    run.settings = replace(run.settings, model=model)
    engine = BatchEngine(tmp_path / "batches", model, Server(base_url=base_url, timeout_in_s=BUSY))
    engine.submit(open_questions(run), Spending())
    engine.collect(run.stores["fuse"].append)
    run.refresh("fuse")
    if reason is None:  # the batch expired before its requests were worked on
        assert len(run.stores["fuse"]) == 0
    else:
        rows = [json.loads(line) for line in run.stores["fuse"].path.read_text().splitlines()]
        assert all(row["status"] == "failed" and reason in row["reason"] for row in rows)
    assert engine.submit(open_questions(run), Spending()) == (7, 1)
    engine.collect(run.stores["fuse"].append)
    run.refresh("fuse")
    assert run.count_open("fuse", retry_failed=True) == 0


def test_a_batch_that_costs_too_much_is_not_submitted(run, base_url, tmp_path):
    engine = BatchEngine(tmp_path / "batches", run.settings.model, Server(base_url=base_url, timeout_in_s=BUSY))
    spending = Spending(Prices(input_price=1000.0, output_price=1000.0, discount=0.5), max_cost=1.0)
    with pytest.raises(CostLimitReached, match="`max_cost`"):
        engine.submit(open_questions(run), spending)
    assert engine.describe() == []


@pytest.mark.parametrize(
    "content", ["nothing", "[]", '{"caption": "jazz"}', '{"captions": "jazz"}', '{"captions": [1]}']
)
def test_suggestions_of_another_form_are_refused(content):
    with pytest.raises(ValueError, match="of the answer must be|the answer must be"):
        read_suggestions(content, model="m")


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="`response_format` must be one of"):
        ModelConfig(model="m", response_format="xml")
    with pytest.raises(ValueError, match="`num_paraphrases` must not be negative"):
        RefineSettings(num_paraphrases=-1)
    with pytest.raises(ValueError, match="`concurrency` must be at least 1"):
        Server(concurrency=0)
