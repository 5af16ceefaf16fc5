"""The fitted constants of the speed model as a file: speed_constants.toml beside this one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from m2serve.errors import ConfigError
from m2serve.plan.speed_fit import SpeedConstants

CONSTANTS_PATH = Path(__file__).with_name("speed_constants.toml")
_HEAD = """# Written by scripts/fit_speed_model.py; run it to change anything here.
# Logarithms of milliseconds, shares and factors, named in speed_model.py and speed_fit.py.
"""


@cache
def load_constants(path: Path = CONSTANTS_PATH) -> SpeedConstants:
    """Raises ConfigError for a file that is not one of ours."""
    try:
        table: Mapping[str, Any] = tomllib.loads(path.read_text("utf-8"))
        spread = table["spread"]
        return SpeedConstants(
            tpot={name: float(value) for name, value in table["tpot"].items()},
            ttft={name: float(value) for name, value in table["ttft"].items()},
            tpot_spread=(float(spread["tpot"]), float(spread["tpot_unmeasured"])),
            ttft_spread=(float(spread["ttft"]), float(spread["ttft_unmeasured"])),
            ascend_spread=float(spread["ascend"]),
            num_ascend=int(table["ascend"]["figures"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} does not hold the constants of the speed model") from error


def measured_accelerators(constants: SpeedConstants) -> frozenset[str]:
    """Those whose own rows were among the fitted ones."""
    return frozenset(name.partition("@")[2] for name in constants.tpot if name.startswith("eff@"))


def dump_constants(constants: SpeedConstants) -> str:
    spread = {
        "tpot": constants.tpot_spread[0],
        "tpot_unmeasured": constants.tpot_spread[1],
        "ttft": constants.ttft_spread[0],
        "ttft_unmeasured": constants.ttft_spread[1],
        "ascend": constants.ascend_spread,
    }
    ascend = {"figures": constants.num_ascend}
    tables: dict[str, Mapping[str, float]] = {
        "spread": spread,
        "ascend": ascend,
        "tpot": constants.tpot,
        "ttft": constants.ttft,
    }
    parts = [_HEAD]
    for title, values in tables.items():
        lines = [f'"{name}" = {round(value, 5)}' for name, value in values.items()]
        parts.append(f"\n[{title}]\n" + "\n".join(lines) + "\n")
    return "".join(parts)
