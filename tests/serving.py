"""Start the real `m2 serve` on a free port, wait until it is ready, stop it."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2

from m2serve.cli.private_server import free_port

START_DEADLINE_S = 120.0
M2 = (sys.executable, "-m", "m2serve.cli.main")


@dataclass
class Serving:
    """A running server: `process` is the front, `url` its base, `log` what it has printed."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=30)

    def post(self, path: str, body: object) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=120)

    def wait_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"m2 serve ended with {self.process.returncode}:\n{self.log}")
            with contextlib.suppress(httpx2.HTTPError):
                if self.get("/ready").status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"not ready after {deadline_s} s:\n{self.log}")


def run_m2(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, as a person in a shell would."""
    return subprocess.run(
        [*M2, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=_environment(),
        check=False,
    )


@contextlib.contextmanager
def serving(
    *arguments: str,
    port: int = 0,
    deadline_s: float = START_DEADLINE_S,
    env: Mapping[str, str] | None = None,
) -> Iterator[Serving]:
    """`port` 0: a free one. `env` is added to this process's."""
    port = port or free_port()
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*M2, "serve", *arguments, "--port", str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=_environment() | (env or {}),
            )
        server = Serving(process, port, log_path)
        try:
            server.wait_ready(deadline_s)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}
