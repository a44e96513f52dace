"""A recipe: everything a run does, in one TOML file.

`load` reads the file, follows `extends`, lays `key=value` overrides over it and checks the whole before anything
heavy starts: an unknown key, a wrong type or an impossible combination is an error with the key's full name, the
value and what is allowed. Two conditions of the paper differ in one visible field of their recipes.

    stepalign train recipes/quickstart.toml optimizer.lr=1e-4 --dry-run
"""

from stepalign.config.algorithms import Distillation, Grpo, Objective
from stepalign.config.critics import (
    AskedCritic,
    Checked,
    Checks,
    Critic,
    Fallback,
    OpenAICritic,
    Policy,
    ProgramCritic,
    ReplayCritic,
    SelfCritic,
)
from stepalign.config.load import differences, dump, load
from stepalign.config.recipe import (
    VERSION,
    Adapter,
    Columns,
    Context,
    Distribution,
    Evaluation,
    Example,
    File,
    Grading,
    Gsm8k,
    GsmSymbolic,
    Model,
    OpenMath,
    Optimizer,
    Probe,
    Problems,
    Prompts,
    Recipe,
    Sampling,
    Selection,
    Source,
    Sums,
    Teacher,
    Tracking,
    Training,
)
from stepalign.config.samplers import Sampler, Transformers, Vllm, VllmServer
from stepalign.config.table import Section

__all__ = [
    "VERSION",
    "Adapter",
    "AskedCritic",
    "Checked",
    "Checks",
    "Columns",
    "Context",
    "Critic",
    "Distillation",
    "Distribution",
    "Evaluation",
    "Example",
    "Fallback",
    "File",
    "Grading",
    "Grpo",
    "Gsm8k",
    "GsmSymbolic",
    "Model",
    "Objective",
    "OpenAICritic",
    "OpenMath",
    "Optimizer",
    "Policy",
    "Probe",
    "Problems",
    "ProgramCritic",
    "Prompts",
    "Recipe",
    "ReplayCritic",
    "Sampler",
    "Sampling",
    "Section",
    "Selection",
    "SelfCritic",
    "Source",
    "Sums",
    "Teacher",
    "Tracking",
    "Training",
    "Transformers",
    "Vllm",
    "VllmServer",
    "differences",
    "dump",
    "load",
]
