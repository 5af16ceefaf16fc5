"""Known issues of a plan: which it has, which its settings avoid, which a remedy takes away."""

from __future__ import annotations

from m2serve.plan.configuration import Configuration
from m2serve.plan.setting import Settings
from m2serve.records import IssueNote, Setting, Workload
from m2serve.spec.hardware import Accelerator
from m2serve.spec.known_issues import KnownIssue, issues_for
from m2serve.spec.situation import Situation

_BROKEN_TEXT = {"garbled", "loops"}
# A remedy must not change what the memory plan was made with.
_PLANNED = ("--max-model-len", "--max-num-batched-tokens", "--gpu-memory-utilization")


def open_issues(c: Configuration, settings: Settings, workload: Workload) -> tuple[KnownIssue, ...]:
    """What the plan still has, on any of its kinds of devices."""
    found: dict[str, KnownIssue] = {}
    for device in dict.fromkeys(c.devices):
        for issue in issues_for(situation(c, settings, workload, device)):
            found.setdefault(issue.id, issue)
    return tuple(found.values())


def is_serious(issue: KnownIssue) -> bool:
    """The engine itself fails or generates nonsense, and a thread or text names the cause. What
    its parsers get wrong is not: our own front parses.
    """
    is_broken = issue.effect == "wrong" and bool(_BROKEN_TEXT.intersection(issue.symptoms))
    return issue.confidence == "A" and (issue.effect == "fails" or is_broken)


def with_remedies(c: Configuration, settings: Settings, workload: Workload) -> Settings:
    """The settings with the remedies of its serious issues, where the release knows them."""
    for issue in open_issues(c, settings, workload):
        if is_serious(issue):
            settings = _remedied(c, settings, issue)
    return settings


def issue_notes(
    c: Configuration, settings: Settings, bare: Settings, workload: Workload
) -> tuple[IssueNote, ...]:
    """Issues of the plan and those that `bare`, the settings without workarounds, would have."""
    left = open_issues(c, settings, workload)
    avoided = [i for i in open_issues(c, bare, workload) if i not in left]
    notes = [_note(i, f"avoided by {_what_avoids(i, settings)}") for i in avoided]
    return tuple(notes + [_note(i, f"open: {i.fix}") for i in left])


def situation(
    c: Configuration, settings: Settings, workload: Workload, device: Accelerator
) -> Situation:
    """The plan as flat facts, as one of its devices sees it."""
    cut = c.parallelism
    return Situation(
        engine=c.engine.name,
        engine_version=c.version,
        arch=device.arch,
        accelerator=device.name,
        vendor=device.vendor,
        num_devices=len(c.devices),
        num_nodes=c.hardware.num_nodes,
        model=c.variant.name,
        model_base=c.variant.base,
        quantization=c.variant.quantization,
        group_size=c.variant.group_size,
        num_experts=c.variant.num_experts,
        tensor_parallel=cut.tensor,
        pipeline_parallel=cut.pipeline,
        data_parallel=cut.data,
        expert_parallel=cut.expert_parallel,
        kv_cache_dtype=c.kv_cache_dtype,
        max_model_len=c.max_model_len,
        checkpoint_max_model_len=c.variant.max_model_len,
        gpu_memory_utilization=c.gpu_memory_utilization,
        host_memory_bytes=c.hardware.host_memory_bytes,
        device_memory_bytes=device.memory_bytes,
        draft="eagle3" if c.draft else "",
        prefix_hit=workload.prefix_hit,
        flags=frozenset(_joined(s.name, s.value) for s in settings if s.kind == "flag"),
        env=frozenset(f"{s.name}={s.value}" for s in settings if s.kind == "env"),
    )


def _remedied(c: Configuration, settings: Settings, issue: KnownIssue) -> Settings:
    remedy = issue.settings
    added: list[Setting] = []
    for text in remedy.add_flags:
        name, separator, value = text.partition("=")
        if c.engine.knows_flag(name, c.version) and name not in _PLANNED:
            added.append(_setting("flag", name, value if separator else None, issue))
    for text in remedy.add_env:
        name, _, value = text.partition("=")
        if c.engine.knows_env(name, c.version):
            added.append(_setting("env", name, value, issue))
    gone = {s.name for s in added} | set(remedy.drop_flags) | set(remedy.drop_env)
    return (*(s for s in settings if s.name not in gone), *added)


def _setting(kind: str, name: str, value: str | None, issue: KnownIssue) -> Setting:
    reason = f"against {issue.id}, {issue.title}"
    return Setting(kind, name, value, reason, issue.reference)  # type: ignore[arg-type]


def _joined(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


def _what_avoids(issue: KnownIssue, settings: Settings) -> str:
    remedy = issue.settings
    wanted = {entry.partition("=")[0] for entry in (*remedy.add_flags, *remedy.add_env)}
    names = dict.fromkeys(s.name for s in settings if s.name in wanted)
    return ", ".join(names) or "the plan's settings"


def _note(issue: KnownIssue, action: str) -> IssueNote:
    return IssueNote(issue.id, issue.title, action, issue.reference)
