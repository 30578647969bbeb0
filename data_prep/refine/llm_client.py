"""Asks a language model behind any server that speaks the chat completions of OpenAI (OpenAI, vLLM, Ollama, …).

A row is asked for until its answer is accepted, with pauses that grow. What no waiting can mend — a refused key, an
empty account, an unknown model, a server that is not there — stops the whole run instead of failing row after row.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from data_prep.refine.rate_limit import RateLimiter
from data_prep.refine.spending import CostLimitReached, Spending, Usage, bound_tokens


RESPONSE_FORMATS = ("json_schema", "json_object", "text")
KEY_VARIABLE = "OPENAI_API_KEY"
NO_KEY = "none"  # servers of one's own ask for none, but the client wants something to send
_FIRST_BACKOFF_IN_S = 0.5
_LONGEST_BACKOFF_IN_S = 60.0
_AUDIO_BYTES_PER_SECOND = 32_000
_MOST_TOKENS_PER_AUDIO_SECOND = 50  # models that hear take 10 to 25
_LONGEST_CONNECT_IN_S = 10.0
_LONGEST_RETRY_AFTER_IN_S = 600.0
_SECONDS_BETWEEN_LOOKS = 0.05  # at the purse, when it is nearly empty
_LONGEST_REASON = 300  # characters
_EXHAUSTED = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated"}


class RunStopped(RuntimeError):
    """No further request makes sense; rows that were not answered stay to be done."""


class RowFailed(RuntimeError):
    """One row has no acceptable answer, while others may have one.

    Args:
        reason: Why, with nothing secret in it.
        usage: What the tries cost.
    """

    def __init__(self, reason: str, usage: Usage):
        super().__init__(reason)
        self.usage = usage


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What decides the answers of a language model; part of the fingerprint of stored results.

    Args:
        model: Name of the model, as the server knows it.
        response_format: How the answer's form is asked for; `json_object` and `text` are for servers without schemas.
        temperature: How freely the model chooses its words; the server's default when `None`.
        max_tokens: Most tokens of an answer.
    """

    model: str
    response_format: str = "json_schema"
    temperature: float | None = None
    max_tokens: int = 800

    def __post_init__(self):
        if self.response_format not in RESPONSE_FORMATS:
            raise ValueError(f"`response_format` must be one of {RESPONSE_FORMATS}, got {self.response_format!r}.")
        if self.max_tokens < 1:
            raise ValueError(f"`max_tokens` must be at least 1, got {self.max_tokens}.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON can hold them."""
        return asdict(self)

    def write_body(self, messages: list[dict[str, Any]], json_schema: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the body of a request."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, "max_completion_tokens": self.max_tokens}
        if self.response_format == "json_schema":
            schema = {"name": "answer", "strict": True, "schema": json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            note = f"Answer with one JSON object that obeys this schema: {json.dumps(json_schema)}"
            body["messages"] = [*messages, {"role": "system", "content": note}]
        if self.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return body

    def bound_usage(self, body: Mapping[str, Any]) -> Usage:
        """Returns the most tokens that a request may take."""
        num_bytes, audio_in_s = measure_messages(body["messages"])
        return Usage(bound_tokens(num_bytes) + round(audio_in_s * _MOST_TOKENS_PER_AUDIO_SECOND), self.max_tokens, 1)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the model runs and how to treat it; decides nothing about the answers.

    Args:
        base_url: Address of the API, ending in `/v1` as a rule; OpenAI's own when `None`.
        key_variable: Environment variable that holds the key.
        timeout_in_s: Longest wait for an answer.
        max_tries: How often a row is asked for before it fails.
        concurrency: Most requests under way.
        requests_per_minute: Most requests a minute; no limit when `None`.
        tokens_per_minute: Most tokens a minute; no limit when `None`.
    """

    base_url: str | None = None
    key_variable: str = KEY_VARIABLE
    timeout_in_s: float = 120.0
    max_tries: int = 8
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self):
        if self.base_url is not None and urlsplit(self.base_url).username is not None:
            raise ValueError(
                f"`base_url` must not hold a user name or password; put the key into the environment variable "
                f"`{self.key_variable}`."
            )
        if self.base_url is not None and urlsplit(self.base_url).scheme not in ("http", "https"):
            raise ValueError(f"`base_url` must begin with http:// or https://, got {self.base_url!r}.")
        if self.max_tries < 1 or self.concurrency < 1 or self.timeout_in_s <= 0:
            raise ValueError(
                f"`max_tries` and `concurrency` must be at least 1 and `timeout_in_s` above 0, got {self.max_tries}, "
                f"{self.concurrency} and {self.timeout_in_s}."
            )

    def share(self, num_clients: int) -> "Server":
        """Returns what each of several clients may ask of the server, so that together they keep its limits."""
        return replace(
            self,
            concurrency=max(1, self.concurrency // num_clients),
            requests_per_minute=self.requests_per_minute and self.requests_per_minute / num_clients,
            tokens_per_minute=self.tokens_per_minute and self.tokens_per_minute / num_clients,
        )

    def read_key(self) -> str:
        """Takes the key from the environment; a server of your own may need none."""
        key = os.environ.get(self.key_variable, "").strip()
        if not key and self.base_url is None:
            raise ValueError(
                f"OpenAI needs a key: set the environment variable `{self.key_variable}`, or give the `base_url` of "
                "another server."
            )
        return key or NO_KEY


class LlmClient:
    """Asks a model, patiently, within the limits of its server and of the purse.

    Args:
        config: The model and how it is asked.
        server: Where it runs.
        spending: Running totals and the most that may be spent.
        key: The server's key; taken from the environment when `None`.
    """

    def __init__(self, config: ModelConfig, server: Server, spending: Spending, *, key: str | None = None):
        self.config = config
        self.server = server
        self.limiter = RateLimiter(server.requests_per_minute, server.tokens_per_minute)
        self.spending = spending
        self.stopped: Exception | None = None
        self._was_reached = False
        self._key = key or server.read_key()
        openai = import_openai()
        timeout = openai.Timeout(server.timeout_in_s, connect=min(_LONGEST_CONNECT_IN_S, server.timeout_in_s / 2))
        self._client = openai.AsyncOpenAI(
            base_url=server.base_url,
            api_key=self._key,
            max_retries=0,  # `ask` tries again itself, within the limits and knowing what no waiting mends
            timeout=timeout,
            http_client=openai.DefaultAioHttpClient(timeout=timeout),  # half the work of the usual one
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()

    async def ask(
        self,
        messages: list[dict[str, Any]],
        json_schema: Mapping[str, Any],
        accept: Callable[[str, Usage], dict[str, Any]],
    ) -> dict[str, Any]:
        """Asks until an answer is accepted, and returns what `accept` made of it.

        Args:
            messages: The chat so far.
            json_schema: Schema of the answer.
            accept: Takes an answer and what all tries cost; raises `ValueError` when it is unusable.

        Raises:
            RowFailed: No try brought an acceptable answer.
            RunStopped: No request to this server makes sense any more.
            CostLimitReached: The request might cost more than is left.
        """
        body = self.config.write_body(messages, json_schema)
        usage = Usage()
        for number in range(self.server.max_tries):
            try:
                content, used = await self._request(body)
                usage += used
                return without_key(accept(content, usage), self._key)
            except _TryFailed as error:
                usage += error.usage
                reason, delay = str(error), error.retry_after_in_s
            except ValueError as error:
                reason, delay = self._redact(f"unusable answer: {error}"), 0.0
            if delay is None:
                break
            if number + 1 < self.server.max_tries:
                backoff = min(_FIRST_BACKOFF_IN_S * 2**number, _LONGEST_BACKOFF_IN_S)
                await asyncio.sleep(delay + backoff * random.uniform(0.5, 1.0))
        if not self._was_reached:
            raise self.stop(f"cannot reach the server at {self._client.base_url}: {reason}; check `base_url`.")
        raise RowFailed(without_key(f"{reason} (try {number + 1} of {self.server.max_tries})", self._key), usage)

    async def _request(self, body: dict[str, Any]) -> tuple[str, Usage]:
        """Makes one request and returns the text of the answer and the tokens it took."""
        bound = self.config.bound_usage(body)
        num_tokens = bound.input_tokens + bound.output_tokens
        await self.limiter.acquire(num_tokens)
        if self.stopped is not None:
            raise self.stopped
        reserved = await self._reserve(bound)
        used = Usage()
        try:
            completion = await self._post(body)
            used = _read_usage(completion)
            return _read_content(completion), used
        except _TryFailed as error:
            error.usage = used
            raise
        finally:
            self.spending.settle(reserved, used)
            self.limiter.settle(num_tokens, used.input_tokens + used.output_tokens)

    async def _reserve(self, bound: Usage) -> float:
        """Sets money aside; what requests under way have set aside too much may come back, so they are waited for."""
        while True:
            try:
                return self.spending.reserve(bound)
            except CostLimitReached as error:
                if not self.spending.is_any_reserved:
                    self.stopped = self.stopped or error
                    raise
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    async def _post(self, body: dict[str, Any]) -> Any:
        """Posts a body and returns the decoded answer; every error becomes one that `ask` understands."""
        openai = import_openai()
        try:
            # Half the work of `chat.completions.create`, which checks and converts each field of the request and the
            # answer; a slow trickle of bytes never trips the client's own timeout, hence the one around it.
            async with asyncio.timeout(self.server.timeout_in_s):
                completion = await self._client.post("/chat/completions", body=body, cast_to=object)
        except openai.APIStatusError as error:
            self._was_reached = True
            # `from None`, here and below: what is chained holds the request and, with it, the key.
            raise self._judge(error.status_code, error.code, error.message, error.response.headers) from None
        except (TimeoutError, openai.APIConnectionError) as error:
            self._was_reached |= not _failed_to_connect(error)
            is_timeout = isinstance(error, (TimeoutError, openai.APITimeoutError))
            reason = f"no answer within {self.server.timeout_in_s:g} s" if is_timeout else "connection failed"
            raise _TryFailed(self._redact(f"{reason}: {error.__cause__ or error}".rstrip(": "))) from None
        except (openai.APIError, ValueError, RecursionError) as error:
            self._was_reached = True
            raise _TryFailed(self._redact(f"the answer is no JSON: {error}")) from None
        self._was_reached = True
        return completion

    def _judge(self, status: int, code: str | None, message: str, headers: Mapping[str, str]) -> Exception:
        """Says what an error status means: try again, fail the row, or stop the run."""
        detail = self._redact(message)
        if status in (401, 403):
            return self.stop(
                f"the server refused the key ({status}): {detail}; set the environment variable "
                f"`{self.server.key_variable}`."
            )
        if status == 402 or (status == 429 and code in _EXHAUSTED):
            return self.stop(f"the account is exhausted ({status}): {detail}; top it up and run again.")
        if status == 404:
            return self.stop(f"the server knows no such model or path (404): {detail}; check `model`.")
        if status not in (408, 409, 429) and status < 500:
            return _TryFailed(f"the server refused the request ({status}): {detail}", retry_after_in_s=None)
        retry_after = _read_retry_after(headers)
        if retry_after > _LONGEST_RETRY_AFTER_IN_S:
            return self.stop(f"the server asks to wait for {retry_after:.0f} s ({status}): {detail}")
        if retry_after:
            self.limiter.pause(retry_after)
        return _TryFailed(f"server error {status}: {detail}", retry_after_in_s=retry_after)

    def stop(self, reason: str) -> RunStopped:
        """Lets no further request start, and returns the error to raise."""
        self.stopped = self.stopped or RunStopped(reason)
        return self.stopped

    def _redact(self, text: str) -> str:
        return redact(text, self._key)


class _TryFailed(Exception):
    """One try brought no answer; `retry_after_in_s` is `None` where another one would not either."""

    def __init__(self, reason: str, *, retry_after_in_s: float | None = 0.0):
        super().__init__(reason)
        self.retry_after_in_s = retry_after_in_s
        self.usage = Usage()


def measure_messages(messages: list[dict[str, Any]]) -> tuple[int, float]:
    """Returns the bytes of text in a chat and the seconds of its audio (16 kHz, 16 bit, as it is sent)."""
    contents = [message["content"] for message in messages]
    sounds = [
        part["input_audio"]["data"]
        for content in contents
        if not isinstance(content, str)
        for part in content
        if part["type"] == "input_audio"
    ]
    num_encoded = sum(map(len, sounds))  # base64: four characters for three bytes
    return len(json.dumps(messages)) - num_encoded, num_encoded * 3 / 4 / _AUDIO_BYTES_PER_SECOND


def _failed_to_connect(error: BaseException | None) -> bool:
    """Whether an error means that there was no connection at all, rather than one that broke."""
    import aiohttp

    while error is not None:
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def redact(text: str, key: str) -> str:
    """Shortens a text from outside and takes the key out, should a server have quoted it."""
    text = text if key == NO_KEY else text.replace(key, "***")
    return " ".join(text.split())[:_LONGEST_REASON]


def without_key(value: Any, key: str) -> Any:
    """Takes the key out of all texts in what was made of an answer, should a server have sent it back."""
    if isinstance(value, dict):
        return {name: without_key(part, key) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_key(part, key) for part in value]
    return value.replace(key, "***") if isinstance(value, str) and key != NO_KEY else value


def import_openai():
    """Imports the package of extra `refine`."""
    try:
        import aiohttp  # noqa: F401  the transport that `openai` takes when it is there
        import openai
    except ImportError as error:
        raise RuntimeError(f"a language model needs {error.name!r}: pip install 'qamdt[refine]'.") from error
    return openai


def read_answer(completion: Any) -> tuple[str, Usage]:
    """Returns the text and the usage of a decoded chat completion, as the Batch API hands it over.

    Raises:
        RowFailed: The completion holds no answer.
    """
    usage = _read_usage(completion)
    try:
        return _read_content(completion), usage
    except _TryFailed as error:
        raise RowFailed(str(error), usage) from error


def _read_usage(completion: Any) -> Usage:
    usage = completion.get("usage") if isinstance(completion, dict) else None
    if not isinstance(usage, dict):
        return Usage(requests=1)
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    # Servers differ in what they count and how; what is no number of tokens says nothing.
    return Usage(*(int(count) if type(count) in (int, float) and 0 <= count < 1e12 else 0 for count in counts), 1)


def _read_content(completion: Any) -> str:
    """Returns the text of the first choice; what is no complete answer is an error."""
    try:
        choice = completion["choices"][0]
        message = choice["message"]
        content = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _TryFailed("the answer is no chat completion") from None
    if message.get("refusal"):
        raise _TryFailed(f"the model refused: {str(message['refusal'])[:_LONGEST_REASON]}")
    if choice.get("finish_reason") == "length":
        raise _TryFailed("the answer was cut at `max_tokens`")
    if not isinstance(content, str) or not content.strip():
        raise _TryFailed("the answer is empty")
    return _strip_fence(content)


def _strip_fence(content: str) -> str:
    """Takes away the ``` lines that models like to put around JSON."""
    content = content.strip()
    if content.startswith("```") and content.endswith("```"):
        return content[3:-3].strip().removeprefix("json").strip()
    return content


def _read_retry_after(headers: Mapping[str, str]) -> float:
    """Returns the seconds that the server asks to wait, 0 if none or unreadable."""
    try:
        seconds = float(headers.get("retry-after-ms", "nan")) / 1000
        if not seconds >= 0:
            seconds = float(headers.get("retry-after", "0"))
    except ValueError:
        try:
            seconds = parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if seconds < float("inf") else 0.0
