"""The files made for the peers have the shape's tensors under GGUF's names."""

import math
from pathlib import Path

import numpy as np
import pytest

from m2serve.bench.shapes import MINIATURE
from m2serve.spec.cost import count_parameters
from scripts.peers.mid_checkpoint import FIRST_TEXT_ID, make_tokenizer
from scripts.peers.sections import SECTIONS
from scripts.peers.serve_client import random_prompts
from scripts.peers.setup import Setup
from scripts.peers.wide_gguf import random_blocks, tensor_plan


def test_the_plan_has_every_parameter_once() -> None:
    sizes = {name: size for name, (_, size) in tensor_plan(MINIATURE).items()}
    assert sum(map(math.prod, sizes.values())) == count_parameters(MINIATURE).total
    assert sizes["blk.4.ffn_down_exps.weight"] == (16, 256, 128)
    assert sizes["blk.0.attn_q.weight"] == (384, 256)


@pytest.mark.parametrize(("format", "row_bytes"), [("Q4_0", 72), ("Q8_0", 136)])
def test_blocks_are_a_scale_and_codes(format: str, row_bytes: int) -> None:
    blocks = random_blocks(format, (2, 3, 128), np.random.default_rng(0))
    assert blocks.shape == (2, 3, row_bytes)
    scales = blocks.reshape(-1, row_bytes // 4)[:, :2].copy().view(np.float16)
    assert np.ptp(scales) == 0
    assert 0 < scales[0, 0] < 0.1


def test_text_ids_are_letters_by_themselves() -> None:
    tokenizer = make_tokenizer(4096)
    text = [tokenizer.decode([index]) for index in range(FIRST_TEXT_ID, 4096 - 64)]
    assert all(piece.isascii() and piece.isalpha() for piece in text)
    assert len(set(text)) == len(text)
    assert tokenizer.token_to_id("</minimax:tool_call>") == 4096 - 10 - 1


def test_prompts_are_repeatable_and_distinct() -> None:
    ids = range(256, 4000)
    prompts = random_prompts(ids, 64, 512, "0 32")
    assert prompts == random_prompts(ids, 64, 512, "0 32")
    assert prompts[0] != random_prompts(ids, 64, 512, "1 32")[0]
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 64
    assert {len(prompt) for prompt in prompts} == {512}


def test_every_target_names_contenders_of_its_case(tmp_path: Path) -> None:
    folder = tmp_path / "mid"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 4096}')
    here = Path("venv/bin/program")
    setup = Setup(here, here, here, here, here, tmp_path, tmp_path)
    for section in SECTIONS.values():
        for case in section(setup):
            names = [contender.name for contender in case.contenders]
            assert len(names) == len(set(names))
            assert case.targets
            for target in case.targets:
                assert {*target.ours, *target.against} <= set(names)
