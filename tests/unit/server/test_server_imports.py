import subprocess
import sys


def test_the_server_starts_without_torch() -> None:
    code = "import sys, m2serve.server.run; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
