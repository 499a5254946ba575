"""How many texts a second a server answers, and how soon: against bulk prediction, a plain server, LitServe.

    python benchmarks/serve_load.py RUN --data test.csv --text title
    python benchmarks/serve_load.py RUN --data test.csv --parts open --seconds 600

The load comes from a process of its own, over connections to this machine. In a closed loop each client
sends its next text when the one before is answered; in an open loop texts come at random times, whatever the
server does, and a text's time counts from when it was due. RUN needs the exports onnx-int8 and, for the plain
servers, merged (``newsdesk export RUN --to merged``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

PARTS = ("bulk", "closed", "open", "overload", "pipeline", "litserve")
WARM_UP = 3.0

PIPELINE = """
import os, sys, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline
app, classify = FastAPI(), pipeline("text-classification", model=sys.argv[1], top_k=None, truncation=True)
class Inputs(BaseModel):
    inputs: str
@app.get("/health")
def health(): return {}
@app.post("/predict")
def predict(asked: Inputs): return classify(asked.inputs)
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""
LITSERVE = """
import sys, litserve
from transformers import pipeline
class Api(litserve.LitAPI):
    def setup(self, device):
        self.classify = pipeline("text-classification", model=sys.argv[1], top_k=None, truncation=True)
    def decode_request(self, request): return request["inputs"]
    def predict(self, texts): return self.classify(list(texts), batch_size=len(texts))
    def encode_response(self, output): return output
if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.01, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="error")
"""


# --- the process that makes the load


@dataclass
class Load:
    """What is sent: ``rate`` texts a second at random times, or None: each client one after the other."""

    port: int
    texts: list[str]
    clients: int
    seconds: float
    rate: float | None = None
    warm_up: float = WARM_UP


@dataclass
class Results:
    """What came back, after the warm-up."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> tuple[int, bool]:
    """Send a text and read its answer; its status, and whether the connection ends with it."""
    body = json.dumps({"inputs": text}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    lines = answer.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(answer[9:12]), b"connection: close" in lines


async def generate(load: Load) -> Results:
    """Send the load, and measure."""
    found, begun, generator = Results(seconds=load.seconds), time.perf_counter(), random.Random(0)
    first, last = begun + load.warm_up, begun + load.warm_up + load.seconds
    due: asyncio.Queue[float] = asyncio.Queue()

    def note(since: float, status: str) -> None:
        if first <= since < last:
            found.statuses[status] = found.statuses.get(status, 0) + 1
            if status == "200":
                found.latencies.append(time.perf_counter() - since)

    async def client(number: int) -> None:
        connection = None
        for turn in range(1 << 30):
            since = time.perf_counter() if load.rate is None else await due.get()
            if since >= last or (load.rate is None and time.perf_counter() >= last):
                break
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", load.port)
                text = load.texts[(number + turn * load.clients) % len(load.texts)]
                status, ends = await asyncio.wait_for(exchange(*connection, text), 60)
                note(since, str(status))
                if ends:
                    connection[1].close()
                    connection = None
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                note(since, type(error).__name__)
                if connection is not None:
                    connection[1].close()
                connection = None

    tasks = [asyncio.create_task(client(number)) for number in range(load.clients)]
    if load.rate is not None:
        at = begun
        while at < last:
            at += generator.expovariate(load.rate)
            if (wait := at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            due.put_nowait(at)
        for _ in tasks:
            due.put_nowait(last)
    await asyncio.gather(*tasks)
    return found


def in_another_process(load: Load) -> Results:
    """``generate`` in a process of its own."""
    command = [sys.executable, __file__, "--generate"]
    done = subprocess.run(
        command, input=json.dumps(asdict(load)), stdout=subprocess.PIPE, text=True, check=True
    )
    return Results(**json.loads(done.stdout))


# --- the servers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def memory_of(process: int) -> float:
    """Megabytes in memory of a process and those that it started."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            number, parent = (
                int(folder.name),
                int((folder / "stat").read_text().rpartition(")")[2].split()[1]),
            )
            if process in (number, parent):
                total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return total / 1e6


def processor_seconds(process: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(command: list[str]):
    """A server that answers; its port and the number of its process."""
    port = free_port()
    full = [part.replace("PORT", str(port)) for part in command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(full, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(600):
                time.sleep(0.2)
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command[:3]} ended: {log.read()[-2000:].decode(errors='replace')}")
                with suppress(OSError, asyncio.IncompleteReadError):
                    if asyncio.run(answers(port)):
                        break
            else:
                sys.exit(f"{command[:3]} did not answer within two minutes")
            yield port, process.pid
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # LitServe's workers stay behind


async def answers(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    status, _ = await asyncio.wait_for(exchange(reader, writer, "shares fall"), 60)
    writer.close()
    return status == 200


# --- what is measured


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def line(what: str, results: Results, memory: tuple[float, float], processor: float) -> str:
    ok = len(results.latencies)
    marks = "  ".join(
        f"p{round(100 * share)} {1000 * percentile(results.latencies, share):7.1f} ms"
        for share in (0.5, 0.95, 0.99)
    )
    others = {status: count for status, count in results.statuses.items() if status != "200"}
    return (
        f"{what:34} {ok / results.seconds:8.1f} texts/s  {marks}  others {dict(others) or 'none'}  "
        f"processor {1000 * processor:.2f} ms a text  memory {memory[0]:.0f} -> {memory[1]:.0f} MB"
    )


def measured(what: str, command: list[str], loads: list[tuple[str, Load]]) -> dict[str, float]:
    """Put loads on a server in turn; the texts that it answered a second under each."""
    rates = {}
    with server(command) as (port, process):
        for name, load in loads:
            load.port = port
            before, used = memory_of(process), processor_seconds(process)
            results = in_another_process(load)
            share = load.seconds / (load.seconds + load.warm_up)
            each = (processor_seconds(process) - used) * share / max(1, len(results.latencies))
            print(line(f"{what}, {name}", results, (before, memory_of(process)), each), flush=True)
            rates[name] = len(results.latencies) / results.seconds
    return rates


def bulk_rate(run: Path, texts: list[str]) -> tuple[float, float]:
    """Texts a second of ``newsdesk predict`` and processor seconds a text, by what more rows take."""
    with tempfile.TemporaryDirectory() as folder:
        times = {}
        for rows in (len(texts) // 10, len(texts)):
            source = Path(folder) / f"{rows}.jsonl"
            source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:rows]))
            command = [sys.executable, "-m", "newsdesk", "predict", str(run), "--input", str(source)]
            command += ["--output", f"{source}.csv", "--text", "text"]
            begun, used = time.perf_counter(), sum(os.times()[2:4])
            subprocess.run(command, check=True, capture_output=True)
            times[rows] = (time.perf_counter() - begun, sum(os.times()[2:4]) - used)
        (few, (short, little)), (many, (long, much)) = times.items()
        return (many - few) / (long - short), (much - little) / (many - few)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--text", default="text", help="the column of the texts")
    parser.add_argument("--parts", default=",".join(PARTS[:-1]), help=", ".join(PARTS))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rate", type=float, help="texts a second of capacity; default: measured")
    parser.add_argument(
        "--litserve", default=sys.executable, metavar="PYTHON", help="the interpreter that has LitServe"
    )
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.generate:
        results = asyncio.run(generate(Load(**json.load(sys.stdin))))
        print(json.dumps(asdict(results)))
        return
    from newsdesk.data.stream import read_table

    table = read_table(asked.data)
    texts = [str(cell) for cell in table.column(asked.text)][: asked.rows]
    parts = asked.parts.split(",")
    newsdesk = [sys.executable, "-m", "newsdesk", "serve", str(asked.run), "--port", "PORT"]
    capacity, bulk = asked.rate, None
    if "bulk" in parts:
        bulk, each = bulk_rate(asked.run, texts)
        print(
            f"{'newsdesk predict, bulk':34} {bulk:8.1f} texts/s  processor {1000 * each:.2f} ms a text",
            flush=True,
        )

    def load(clients: int, rate: float | None = None) -> Load:
        return Load(0, texts, clients, asked.seconds, rate)

    if "closed" in parts or (capacity is None and {"open", "overload"} & set(parts)):
        name = f"closed loop, {asked.clients} clients"
        capacity = measured("newsdesk serve", newsdesk, [(name, load(asked.clients))])[name]
        if bulk:
            print(f"{'':34} {capacity / bulk:8.1%} of the bulk rate")
    if "open" in parts:
        measured("newsdesk serve", newsdesk, [("open loop, 70 % of that", load(256, 0.7 * (capacity or 0)))])
    if "overload" in parts:  # with fewer texts waiting than clients, so that there is always one to send
        hurried = [*newsdesk, "--deadline", "2"]
        measured("newsdesk serve", hurried, [("twice that, --deadline 2", load(900, 2 * (capacity or 0)))])
    merged = str(asked.run / "export" / "merged")
    for name, python, program in (
        ("pipeline", sys.executable, PIPELINE),
        ("litserve", asked.litserve, LITSERVE),
    ):
        if name in parts:
            loop = f"closed loop, {asked.clients} clients"
            with tempfile.TemporaryDirectory() as folder:  # LitServe's workers read it again
                script = Path(folder) / "plain_server.py"
                script.write_text(program)
                command = [python, str(script), merged, "PORT"]
                found = measured(name, command, [(loop, load(asked.clients))])
            if capacity:
                print(f"{'':34} newsdesk answers {capacity / max(found[loop], 1e-9):.1f} times as many")


if __name__ == "__main__":
    main()
