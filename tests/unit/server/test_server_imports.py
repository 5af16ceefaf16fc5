import subprocess
import sys


def test_the_server_starts_without_torch() -> None:
    code = "import sys, m2serve.server.run; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
