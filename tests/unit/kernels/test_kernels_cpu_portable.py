"""Code outside the kernels of an instruction set runs on any x86-64: the compiler may use AVX-512
anywhere in a file compiled for it, and one such function called on an older CPU ends the process.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from m2serve.kernels.cpu_library import find_cpu_library

_FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
# Registers and masks of AVX-512, tiles of AMX.
_WIDE = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b|%tmm|\btile(zero|load|store)")
# Registers of AVX, and what FMA and F16C do with the older ones.
_AVX = re.compile(rf"{_WIDE.pattern}|%ymm|\tv\w+ ")


def functions(wide: re.Pattern[str]) -> Iterator[str]:
    """The library's functions that use what the pattern finds."""
    path = find_cpu_library()
    if path is None or not shutil.which("objdump"):
        pytest.skip("needs the library and objdump")
    disassembly = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if " <m2::" not in disassembly:
        pytest.skip("the library has no symbols")
    name, is_reported = "", False
    for line in disassembly.splitlines():
        if found := _FUNCTION.match(line):
            name, is_reported = found[1], False
        elif not is_reported and wide.search(line):
            is_reported = True
            yield name


def test_wide_registers_stay_within_the_kernels_of_their_instruction_set() -> None:
    found = set(functions(_WIDE))
    assert any("m2::avx512::" in name for name in found)  # symbols are there, and are told apart
    assert not {name for name in found if not re.search(r"\bm2::(avx512|amx)::", name)}


def test_avx_stays_within_the_kernels() -> None:
    found = set(functions(_AVX))
    assert any("m2::avx2::" in name for name in found)
    assert not {name for name in found if not re.search(r"\bm2::(avx2|avx512|amx)::", name)}
