"""Every form a plan can be written in. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from m2serve.launch.compose import compose_files
from m2serve.launch.docker import docker_files
from m2serve.launch.files import LaunchFile
from m2serve.launch.kubernetes import kubernetes_files
from m2serve.launch.options import DEFAULTS, LaunchOptions, placed
from m2serve.launch.recipe import recipe_files
from m2serve.launch.shell import shell_files
from m2serve.launch.slurm import slurm_files
from m2serve.records import Plan

FormName = Literal["shell", "docker", "compose", "kubernetes", "slurm", "recipe"]

FORMS: Mapping[FormName, Callable[[Plan, LaunchOptions], tuple[LaunchFile, ...]]] = {
    "shell": shell_files,
    "docker": docker_files,
    "compose": compose_files,
    "kubernetes": kubernetes_files,
    "slurm": slurm_files,
    "recipe": recipe_files,
}
# The others get devices from a scheduler and count them from 0.
_SEES_ALL_DEVICES: tuple[FormName, ...] = ("shell", "docker", "compose")


def launch_files(
    plan: Plan, form: FormName, options: LaunchOptions = DEFAULTS
) -> tuple[LaunchFile, ...]:
    """The files of a form, in the order the nodes start; raises UsageError where a form cannot
    hold the plan.
    """
    sees_all = form in _SEES_ALL_DEVICES
    return FORMS[form](plan, placed(plan, options) if sees_all else options)
