"""Seconds from `m2 serve` to its first token: start, load, answer; each run a new process.

    python -m scripts.first_answer [MODEL] [--runs 5]

MODEL is what `m2 serve` takes, by default the built-in miniature. Prints every run and the median.
"""

from __future__ import annotations

import argparse
import http
import http.client
import json
import statistics
import subprocess
import sys
import time

from m2serve.cli.private_server import free_port

_POLL_S = 0.01
_MOST_S = 120.0
_REQUEST = json.dumps(
    {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0}
)


def first_answer_s(command: list[str]) -> float:
    """Raises RuntimeError when the server ends, refuses, or takes too long."""
    port = free_port()
    start = time.monotonic()
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while time.monotonic() - start < _MOST_S:
            if server.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with exit code {server.returncode}")
            status = _ask(port)
            if status == http.HTTPStatus.OK:
                return time.monotonic() - start
            if status is not None and status != http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise RuntimeError(f"the server answered with HTTP {status}")
            time.sleep(_POLL_S)
        raise RuntimeError(f"no token within {_MOST_S:g} s")
    finally:
        server.terminate()
        server.wait()


def _ask(port: int) -> int | None:
    """The status of one request, read to its end; None while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_MOST_S)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", _REQUEST, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except OSError:
        return None
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds from m2 serve to its first token.")
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    command = [sys.executable, "-m", "m2serve.cli.main", "serve"]
    command += [options.model] if options.model else []
    seconds = []
    for _ in range(options.runs):
        seconds.append(first_answer_s(command))
        print(f"{seconds[-1]:.2f} s", flush=True)
    print(f"median {statistics.median(seconds):.2f} s of {options.runs}")


if __name__ == "__main__":
    main()
