"""What becomes of a service that is asked for more than it can make, and for nonsense in between.

    qamdt serve --port 8000 --folder files & python -m benchmarks.service_load --port 8000 --pid $! --folder files

It talks to this machine alone. Reported: answers by status, what became of everything that was accepted, the memory of
the service over time, and what it left in its folder that belongs to no job.
"""

import argparse
import base64
import http.client
import io
import json
import random
import threading
import time
import wave
from collections import Counter
from pathlib import Path


NONSENSE = (
    b"{",
    b"[]",
    b"x" * 70_000,
    b'{"inputs": {}}',
    b'{"inputs": {"prompt": "x"}, "parameters": {"duration": 1e9}}',
    b'{"inputs": {"prompt": "x"}, "parameters": {"steps": -1}}',
    b'{"inputs": {"prompt": "\\ud800"}}',
    b'{"inputs": {"prompt": "x", "init_audio": {"type": "audio", "url": "http://127.0.0.1/etc/passwd"}}}',
    b'{"inputs": {"prompt": "x", "init_audio": {"type": "audio", "media_type": "audio/wav", "base64": "AAAA"}}}',
    b'{"inputs": {"restore_audio": {"type": "audio", "media_type": "audio/wav", "base64": "'
    + b"A" * 400_000
    + b'"}}}',
)


def make_recording() -> dict[str, str]:
    """A third of a second of noise, as an input."""
    file, draw = io.BytesIO(), random.Random(0)
    with wave.open(file, "wb") as recording:
        recording.setparams((1, 2, 16_000, 0, "NONE", ""))
        recording.writeframes(draw.randbytes(10_000))
    return {"type": "audio", "media_type": "audio/wav", "base64": base64.b64encode(file.getvalue()).decode()}


RECORDING = make_recording()


def make_body(draw: random.Random) -> bytes:
    """What makes sense: music from text, or from a recording."""
    kind = draw.choice(("text", "text", "init_audio", "inpaint_audio"))
    inputs = {"prompt": "calm piano"} | ({} if kind == "text" else {kind: RECORDING})
    parameters = {"steps": draw.randint(2, 12)} | ({} if kind == "init_audio" else {"duration": 0.4})
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()


class Load:
    """Clients of a service, one a thread.

    Args:
        port: Where the service answers.
    """

    def __init__(self, port: int):
        self.port = port
        self.end = 0.0  # when to stop, as `time.monotonic` counts
        self.answers: Counter[str] = Counter()
        self.accepted: list[str] = []
        self.deleted: set[str] = set()

    def call(self, method: str, path: str, body: bytes | None = None, *, wait_in_s: int = 0) -> tuple[int, bytes]:
        """Sends one request and returns status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60 + wait_in_s)
        try:
            connection.request(method, path, body, {"prefer": f"wait={wait_in_s}"} if wait_in_s else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def run(self, seed: int) -> None:
        """Asks until it is time to stop."""
        draw = random.Random(seed)
        while time.monotonic() < self.end:
            if draw.random() < 0.4:
                status, _ = self.call("POST", "/v1/generations", draw.choice(NONSENSE))
                self.answers[f"nonsense {status}"] += 1
                continue
            status, content = self.call("POST", "/v1/generations", make_body(draw))
            self.answers[f"music {status}"] += 1
            if status == 201:
                self.accepted.append(json.loads(content)["id"])
                if draw.random() < 0.1:
                    self.deleted.add(self.accepted[-1])
                    self.call("DELETE", f"/v1/generations/{self.accepted[-1]}")
            else:
                time.sleep(0.2)

    def states(self) -> Counter[str]:
        """What became of everything that was accepted."""
        states: Counter[str] = Counter()
        for job in self.accepted:
            status, content = self.call("GET", f"/v1/generations/{job}")
            states["deleted" if job in self.deleted else str(json.loads(content).get("status", status))] += 1
        return states


def memory_in_mib(pid: int) -> int:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))


def find_litter(folder: Path) -> list[str]:
    """What lies in the folder of a service and belongs to no job."""
    half = [path.name for path in (folder / "jobs").iterdir() if not (path / "job.json").exists()]
    return half + [path.name for path in folder.rglob("*.tmp")]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="of the service")
    parser.add_argument("--folder", type=Path, required=True, help="of the service")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=6)
    arguments = parser.parse_args()
    load = Load(arguments.port)
    load.call("POST", "/v1/generations", make_body(random.Random(0)), wait_in_s=300)  # until the model is loaded
    load.end = time.monotonic() + 60 * arguments.minutes
    threads = [threading.Thread(target=load.run, args=(seed,)) for seed in range(arguments.clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(memory_in_mib(arguments.pid))
        time.sleep(5)
    while {"queued", "generating"} & set(states := load.states()):
        time.sleep(2)
    print(f"answers: {dict(sorted(load.answers.items()))}")
    print(f"{len(load.accepted)} accepted: {dict(states)}")
    print(f"left behind: {find_litter(arguments.folder) or 'nothing'}")
    print(f"memory in MiB, every half minute: {', '.join(map(str, memory[::6]))}")


if __name__ == "__main__":
    main()
