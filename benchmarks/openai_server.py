"""A small server that speaks the chat completions and batch endpoints of OpenAI, well or badly as it is told.

    python -m benchmarks.openai_server --port 8000 --script '["429", "cut", "ok"]' --log requests.jsonl

The n-th try of a prompt is answered as the n-th entry of the script says, and every further try with the last entry. A
model called `script:429,cut,ok` brings a script of its own.
The caption refiner's tests and throughput benchmark run against it: a process of its own behind a real socket, so that
what they measure is what a client meets. It prints its port when it listens. `BEHAVIOURS` lists what a script may say.
"""

import argparse
import asyncio
import hashlib
import json
import re
import time
from collections import Counter
from pathlib import Path


BEHAVIOURS = {
    "ok": "an answer that obeys the JSON schema of the request",
    "429": "too many requests, with `Retry-After: 0.2`",
    "500": "an internal error",
    "slow": "a right answer that begins after five seconds",
    "drip": "an answer that arrives one byte a second",
    "cut": "half an answer, then a closed connection",
    "malformed": "an answer that is not JSON",
    "wrong-schema": "JSON that does not obey the schema",
    "truncated": "an answer that was cut at the token limit",
    "refusal": "a refusal instead of an answer",
    "not-http-json": "a page of HTML instead of the API's JSON",
    "400": "a request that the server does not understand",
    "401": "a wrong key, quoted in the error as careless servers do",
    "quota": "an exhausted account: 429 with the code `insufficient_quota`",
}
STATUS_TEXTS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}
STATUS_TEXTS |= {429: "Too Many Requests", 500: "Internal Server Error"}


class Server:
    """Answers requests by a script and counts them.

    Args:
        script: What to do at the first, second, … try of a prompt; the last entry holds for all further tries.
        answer: What string properties of an answer are filled with.
        latency_in_s: How long every answer takes.
        log: Where to note each chat request: hash of its prompt, model, behaviour, how many were in flight, and when.
        key: The key that requests must bring; any when `None`.
    """

    def __init__(self, script: list[str], *, answer: str, latency_in_s: float, log: Path | None, key: str | None):
        unknown = sorted(set(script) - BEHAVIOURS.keys())
        if unknown or not script:
            raise ValueError(f"`script` must be a list of {sorted(BEHAVIOURS)}, got {script!r}.")
        self.script = script
        self.answer = answer
        self.latency_in_s = latency_in_s
        self.log = log.open("a", encoding="utf-8", buffering=1) if log else None
        self.key = key
        self.tries: Counter[str] = Counter()
        self.in_flight = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection until either side closes it."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"(?im)^content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                method, path, _ = head.split(" ", 2)
                authorization = re.search(r"(?im)^authorization: *(.*?)\r$", head)
                if not await self._answer(
                    writer, method, path.split("?")[0], authorization and authorization[1], body
                ):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, authorization: str | None, body: bytes
    ) -> bool:
        """Answers one request; returns whether the connection lives on."""
        if self.key is not None and authorization != f"Bearer {self.key}":
            return _send(writer, 401, _error(f"Incorrect API key provided: {authorization}", "invalid_api_key"))
        if path.endswith("/chat/completions"):
            return await self._chat(writer, json.loads(body), authorization)
        if path.endswith("/files") and method == "POST":
            return _send(writer, 200, self._store_file(body))
        if match := re.search(r"/files/([\w-]+)/content$", path):
            return _send(writer, 200, self.files[match[1]])
        if path.endswith("/batches") and method == "POST":
            return _send(writer, 200, self._start_batch(json.loads(body)))
        if path.endswith("/batches"):
            return _send(writer, 200, {"object": "list", "data": list(self.batches.values()), "has_more": False})
        if match := re.search(r"/batches/([\w-]+)$", path):
            return _send(writer, 200, self.batches[match[1]])
        return _send(writer, 404, _error(f"no such path {path}", "not_found"))

    async def _chat(self, writer: asyncio.StreamWriter, request: dict, authorization: str | None) -> bool:
        prompt = hashlib.sha256(json.dumps(request["messages"]).encode()).hexdigest()[:16]
        behaviour = self._choose(prompt, request["model"])
        self.in_flight += 1
        if self.log:
            entry = {"prompt": prompt, "model": request["model"], "behaviour": behaviour, "in_flight": self.in_flight}
            self.log.write(json.dumps(entry | {"time": time.monotonic()}) + "\n")
        try:
            await asyncio.sleep(self.latency_in_s + (5.0 if behaviour == "slow" else 0.0))
            return await self._behave(writer, behaviour, request, authorization)
        finally:
            self.in_flight -= 1

    def _choose(self, prompt: str, model: str) -> str:
        """Says how to answer the next try of a prompt."""
        script = model.removeprefix("script:").split(",") if model.startswith("script:") else self.script
        self.tries[prompt + model] += 1
        return script[min(self.tries[prompt + model], len(script)) - 1]

    async def _behave(
        self, writer: asyncio.StreamWriter, behaviour: str, request: dict, authorization: str | None
    ) -> bool:
        if behaviour == "429":
            return _send(writer, 429, _error("Rate limit reached.", "rate_limit_exceeded"), "Retry-After: 0.2\r\n")
        if behaviour == "quota":
            return _send(writer, 429, _error("You exceeded your current quota.", "insufficient_quota"))
        if behaviour == "500":
            return _send(writer, 500, _error("The server had an error.", None))
        if behaviour == "400":
            return _send(writer, 400, _error("Unsupported parameter: 'response_format'.", "unsupported_parameter"))
        if behaviour == "401":
            return _send(writer, 401, _error(f"Incorrect API key provided: {authorization}", "invalid_api_key"))
        if behaviour == "not-http-json":
            return _send(writer, 200, b"<html>hello</html>")
        completion = complete(request, behaviour, self.answer)
        if behaviour in ("cut", "drip"):
            await _send_badly(writer, json.dumps(completion).encode(), behaviour)
            return False
        return _send(writer, 200, completion)

    def _store_file(self, body: bytes) -> dict:
        """Takes a file from a multipart body."""
        boundary = body.split(b"\r\n", 1)[0]
        parts = [part.split(b"\r\n\r\n", 1) for part in body.split(boundary) if b"\r\n\r\n" in part]
        content = next(content for head, content in parts if b'name="file"' in head).removesuffix(b"\r\n")
        return self._add_file(content, "batch")

    def _add_file(self, content: bytes, purpose: str) -> dict:
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = content
        return {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": 0,
            "filename": f"{file_id}.jsonl",
            "purpose": purpose,
            "status": "processed",
        }

    def _start_batch(self, request: dict) -> dict:
        """Answers all requests of a file at once, each by the script, and keeps the batch."""
        answers, errors = [], []
        for line in self.files[request["input_file_id"]].splitlines():
            call = json.loads(line)
            prompt = hashlib.sha256(json.dumps(call["body"]["messages"]).encode()).hexdigest()[:16]
            behaviour = self._choose(prompt, call["body"]["model"])
            if behaviour == "500":
                response = {"status_code": 500, "body": _error("The server had an error.", None)}
                errors.append({"custom_id": call["custom_id"], "response": response, "error": None})
            elif behaviour == "slow":
                error = {"code": "batch_expired", "message": "This request could not be executed in time."}
                errors.append({"custom_id": call["custom_id"], "response": None, "error": error})
            else:
                response = {"status_code": 200, "body": complete(call["body"], behaviour, self.answer)}
                answers.append({"custom_id": call["custom_id"], "response": response, "error": None})
        files = [self._add_file(_to_jsonl(rows), "batch_output")["id"] if rows else None for rows in (answers, errors)]
        batch_id = f"batch-{len(self.batches)}"
        self.batches[batch_id] = {
            "id": batch_id,
            "object": "batch",
            "endpoint": request["endpoint"],
            "completion_window": request["completion_window"],
            "created_at": 0,
            "input_file_id": request["input_file_id"],
            "output_file_id": files[0],
            "error_file_id": files[1],
            "metadata": request.get("metadata"),
            "status": "completed",
            "request_counts": {
                "total": len(answers) + len(errors),
                "completed": len(answers),
                "failed": len(errors),
            },
        }
        return self.batches[batch_id]


def complete(request: dict, behaviour: str, answer: str) -> dict:
    """Returns a chat completion whose content obeys the request's JSON schema, or fails to, as `behaviour` says."""
    schema = request.get("response_format", {}).get("json_schema", {}).get("schema", {})
    content = json.dumps(_instance(schema, answer))
    if behaviour == "malformed":
        content = "Sure! Here is the caption: {"
    elif behaviour == "wrong-schema":
        content = json.dumps({"surprise": 1})
    elif behaviour == "truncated":
        content = content[: len(content) // 2]
    message = {"role": "assistant", "content": content, "refusal": None}
    if behaviour == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that."}
    prompt_tokens, completion_tokens = len(json.dumps(request["messages"])) // 4, len(content) // 4
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [
            {"index": 0, "message": message, "finish_reason": "length" if behaviour == "truncated" else "stop"}
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _instance(schema: dict, answer: str) -> object:
    """Returns a value that obeys a JSON schema of objects, arrays and plain values."""
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: _instance(part, answer) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [_instance(schema["items"], answer)] * schema.get("minItems", 1)
    return {"string": answer, "integer": 1, "number": 1.0, "boolean": True}[kind]


def _error(message: str, code: str | None) -> dict:
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


def _to_jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _send(writer: asyncio.StreamWriter, status: int, body: dict | bytes, headers: str = "") -> bool:
    """Sends a whole answer and keeps the connection."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} {STATUS_TEXTS[status]}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}{headers}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return True


async def _send_badly(writer: asyncio.StreamWriter, payload: bytes, behaviour: str) -> None:
    """Sends half of an answer, or all of it byte by byte."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n".encode()
    if behaviour == "cut":
        writer.write(head + payload[: len(payload) // 2])
        await writer.drain()
        return
    writer.write(head)
    for byte in payload:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(1.0)


async def run_server(server: Server, port: int) -> None:
    """Listens until the process is ended."""
    listener = await asyncio.start_server(server.serve, "127.0.0.1", port, limit=2**24)
    print(listener.sockets[0].getsockname()[1], flush=True)
    async with listener:
        await listener.serve_forever()


def main(argv: list[str] | None = None) -> None:
    """Runs the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="port to listen at (default: a free one)")
    parser.add_argument("--script", type=json.loads, default=["ok"], help="JSON list of behaviours, try by try")
    parser.add_argument("--answer", default="A piece of music.", help="what strings of an answer hold")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that every answer takes")
    parser.add_argument("--log", type=Path, help="JSONL file to note the chat requests in")
    parser.add_argument("--key", help="the key that requests must bring (default: any)")
    arguments = parser.parse_args(argv)
    server = Server(
        arguments.script,
        answer=arguments.answer,
        latency_in_s=arguments.latency,
        log=arguments.log,
        key=arguments.key,
    )
    asyncio.run(run_server(server, arguments.port))


if __name__ == "__main__":
    main()
