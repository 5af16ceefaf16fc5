"""Medians, paired ratios, the best peer, and what the table and the rows say of them."""

import csv
import io
from pathlib import Path

import pytest

from scripts.peers.compare import without
from scripts.peers.figures import Figures
from scripts.peers.processes import Failed
from scripts.peers.rounds import Case, Sample, Target, read_samples, run_case
from scripts.peers.tables import COLUMNS, Origin, csv_rows, markdown
from scripts.peers.verdicts import judge, summarize

RATE = "decode_tokens_per_s"
READ = "read_bandwidth_gb_per_s"


class Scripted:
    """A contender that gives these figures in turn; an exception is raised."""

    def __init__(self, name: str, *figures: Figures | Exception) -> None:
        self.name = name
        self.command = f"run {name}"
        self.is_open = False
        self._figures = list(figures)

    def open(self) -> None:
        self.is_open = True

    def measure(self) -> Figures:
        assert self.is_open
        figures = self._figures.pop(0)
        if isinstance(figures, Exception):
            raise figures
        return figures

    def close(self) -> None:
        self.is_open = False


def rates(name: str, *values: float) -> Scripted:
    return Scripted(name, *({RATE: value, READ: 30.0} for value in values))


def measured(tmp_path: Path, case: Case, num_rounds: int) -> list[Sample]:
    file = tmp_path / "samples.jsonl"
    run_case(case, num_rounds, file)
    return read_samples(file)


def case_of(*contenders: Scripted, **target: object) -> Case:
    fields = {"metric": RATE, "ours": ("ours",), "against": ("peer",), "limit": 2.0, **target}
    return Case("decode", "bf16", contenders, (Target(**fields),))


def test_rounds_are_interleaved_and_contenders_closed(tmp_path: Path) -> None:
    ours, peer = rates("ours", 1, 2), rates("peer", 3, 4)
    samples = measured(tmp_path, case_of(ours, peer), 2)
    assert [(s.round, s.contender) for s in samples] == [
        (0, "ours"),
        (0, "peer"),
        (1, "ours"),
        (1, "peer"),
    ]
    assert not ours.is_open
    assert not peer.is_open


def test_the_ratio_pairs_figures_of_one_round(tmp_path: Path) -> None:
    # The memory halves in the second round: the ratio does not notice.
    case = case_of(rates("ours", 100, 50, 110), rates("peer", 40, 20, 44))
    (verdict,) = judge(case, measured(tmp_path, case, 3))
    assert verdict.result is not None
    assert verdict.result.median == verdict.result.minimum == verdict.result.maximum == 2.5
    assert verdict.passed is True
    assert verdict.our_value is not None
    assert verdict.our_value.median == 100


def test_the_best_peer_and_the_best_of_ours_count(tmp_path: Path) -> None:
    case = case_of(
        rates("ours int8", 90, 90),
        rates("ours fp8", 100, 100),
        rates("slow", 10, 10),
        rates("fast", 80, 80),
        ours=("ours int8", "ours fp8"),
        against=("slow", "fast"),
    )
    (verdict,) = judge(case, measured(tmp_path, case, 2))
    assert (verdict.ours, verdict.theirs) == ("ours fp8", "fast")
    assert verdict.passed is False


def test_at_most_takes_the_least(tmp_path: Path) -> None:
    case = case_of(
        *(rates("ours", 5), rates("one", 4), rates("two", 10)),
        against=("one", "two"),
        limit=1.0,
        kind="at most",
    )
    (verdict,) = judge(case, measured(tmp_path, case, 1))
    assert verdict.theirs == "one"
    assert verdict.passed is False


def test_a_target_without_a_peer_is_the_figure_itself(tmp_path: Path) -> None:
    case = case_of(rates("ours", 2.5, 3.5, 2.9), against=(), limit=3.0, kind="at most")
    (verdict,) = judge(case, measured(tmp_path, case, 3))
    assert verdict.result is not None
    assert verdict.result.median == 2.9
    assert verdict.passed is True


def test_who_fails_sits_out_and_the_others_go_on(tmp_path: Path) -> None:
    broken = Scripted("peer", Failed("aborted: GGML_ASSERT"))
    case = case_of(rates("ours", 1, 2, 3), broken)
    samples = measured(tmp_path, case, 3)
    assert [s.contender for s in samples] == ["ours", "peer", "ours", "ours"]
    (verdict,) = judge(case, samples)
    assert verdict.passed is None
    assert summarize(case, samples)[1].error == "aborted: GGML_ASSERT"
    table = markdown([case], samples)
    assert "not measured" in table
    assert "failed: aborted: GGML_ASSERT" in table


def test_the_table_says_everything_once(tmp_path: Path) -> None:
    case = case_of(rates("ours", 100), rates("peer", 40))
    unmeasured = Case("prefill", "bf16", (rates("ours"),), ())
    table = markdown([case, unmeasured], measured(tmp_path, case, 1))
    row = next(line for line in table.splitlines() if line.startswith("| decode"))
    assert row == (
        "| decode bf16: decode_tokens_per_s | ours | 100 (100 to 100) | peer | 40 (40 to 40) "
        "| 2.50 (2.50 to 2.50) | at least 2 x | 30.0 | pass |"
    )
    assert "- peer: `run peer`: decode_tokens_per_s 40 (40 to 40) of 1" in table
    assert "prefill" not in table


def test_rows_have_the_columns_of_perf(tmp_path: Path) -> None:
    header = (Path(__file__).resolve().parents[3] / "perf" / "README.md").read_text()
    assert ",".join(COLUMNS) in header
    case = case_of(rates("ours", 100, 104), rates("peer", 40, 60), limit=2.5)
    samples = measured(tmp_path, case, 2)
    origin = Origin("2026-01-02", "abc1234", "box", "compare --sections decode")
    rows = list(csv.reader(io.StringIO(csv_rows([case], samples, origin))))
    assert [len(row) for row in rows] == [8, 8, 8]
    assert rows[0][:7] == ["2026-01-02", "abc1234", "box", "run ours", RATE, "102", "tokens/s"]
    assert rows[2][3:7] == [
        "compare --sections decode",
        "decode_tokens_per_s of ours / peer",
        "2.117",
        "ratio",
    ]
    assert rows[2][7].startswith("at least 2.5 x: FAIL; median of 2 rounds (1.733 to 2.5)")
    assert "read bandwidth 30.0 GB/s" in rows[2][7]


def test_a_target_without_a_peer_and_a_failure_have_rows_too(tmp_path: Path) -> None:
    broken = Scripted("peer", Failed("aborted:\nGGML_ASSERT"))
    case = case_of(rates("ours", 2.5), broken, against=(), limit=3.0)
    origin = Origin("2026-01-02", "abc1234", "box", "compare")
    rows = list(csv.reader(io.StringIO(csv_rows([case], measured(tmp_path, case, 1), origin))))
    assert rows[1][3:7] == ["run peer", "failed", "", ""]
    assert rows[1][7].startswith("peer; failed: aborted: GGML_ASSERT; decode bf16")
    assert rows[2][4:7] == [f"{RATE} of ours, judged", "2.5", "tokens/s"]
    assert rows[2][7].startswith("at least 3: FAIL; median of 1 rounds")


def test_a_verdict_names_peers_that_gave_no_figure(tmp_path: Path) -> None:
    broken = Scripted("fast", Failed("aborted"))
    case = case_of(rates("ours", 8), rates("slow", 4), broken, against=("slow", "fast"))
    samples = measured(tmp_path, case, 1)
    assert "| slow (no figure of fast) |" in markdown([case], samples)
    origin = Origin("2026-01-02", "abc1234", "box", "compare")
    assert "(no figure of fast)" in csv_rows([case], samples, origin)


def test_who_is_left_out_is_not_held_against_ours() -> None:
    both = case_of(rates("ours"), rates("slow"), rates("fast"), against=("slow", "fast"))
    kept = without(both, ("fa",))
    assert [one.name for one in kept.contenders] == ["ours", "slow"]
    assert kept.targets[0].against == ("slow",)
    assert without(both, ("fast", "slow")).targets == ()
    assert without(both, ()) == both


def test_an_unexpected_error_still_closes_everyone(tmp_path: Path) -> None:
    ours = Scripted("ours", RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        measured(tmp_path, case_of(ours, rates("peer", 1)), 1)
    assert not ours.is_open
