"""Post-train reasoning models from feedback whose structure you design.

    import stepalign
    recipe = stepalign.Recipe(name="first", model="lab", problems=rows, critic="program", max_steps=4)
    result = stepalign.train(recipe, grader=grade)

One function for each command of `stepalign --help`, and the classes that they take and return. Each is imported when
it is first used, so that `import stepalign` imports no torch.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's: `console` prints lines without ipywidgets

if TYPE_CHECKING:
    from stepalign.api import check_critiques as check_critiques
    from stepalign.api import critic_bench as critic_bench
    from stepalign.api import critique as critique
    from stepalign.api import evaluate as evaluate
    from stepalign.api import sample as sample
    from stepalign.api import select as select
    from stepalign.api import verify as verify
    from stepalign.config import Recipe as Recipe
    from stepalign.config import load as load_recipe
    from stepalign.config.migrate import migrate as migrate
    from stepalign.config.packaged import copy as copy_recipe
    from stepalign.critics import Critic as Critic
    from stepalign.error_injection.sets import plant_set as plant
    from stepalign.errors import StepalignError as StepalignError
    from stepalign.evaluation.metrics import Evaluation as Evaluation
    from stepalign.evaluation.metrics import compare as compare
    from stepalign.exporting import export as export
    from stepalign.exporting.dataset import export_dataset as export_dataset
    from stepalign.exporting.hub import push as push
    from stepalign.gates.run import preflight as preflight
    from stepalign.lab.running import run_lab as run_lab
    from stepalign.launch import train as train
    from stepalign.planning import plan as plan
    from stepalign.previewing import preview as preview
    from stepalign.probing.run import probe as probe
    from stepalign.process_supervision.run import process_bench as process_bench
    from stepalign.process_supervision.run import step_values as step_values
    from stepalign.records import Critique as Critique
    from stepalign.records import CritiqueFailure as CritiqueFailure
    from stepalign.records import Grade as Grade
    from stepalign.records import Problem as Problem
    from stepalign.records import Rollout as Rollout
    from stepalign.records import Verdict as Verdict
    from stepalign.report import write_report as write_report
    from stepalign.results import TrainResult as TrainResult
    from stepalign.rewards import FunctionGrader as FunctionGrader
    from stepalign.rewards import Grader as Grader
    from stepalign.trainer.loop import Trainer as Trainer
    from stepalign.trainer.loop import TrainerCallback as TrainerCallback

_API = {
    "Critic": "stepalign.critics:Critic",
    "Critique": "stepalign.records:Critique",
    "CritiqueFailure": "stepalign.records:CritiqueFailure",
    "Evaluation": "stepalign.evaluation.metrics:Evaluation",
    "FunctionGrader": "stepalign.rewards:FunctionGrader",
    "Grade": "stepalign.records:Grade",
    "Grader": "stepalign.rewards:Grader",
    "Problem": "stepalign.records:Problem",
    "Recipe": "stepalign.config:Recipe",
    "Rollout": "stepalign.records:Rollout",
    "StepalignError": "stepalign.errors:StepalignError",
    "TrainResult": "stepalign.results:TrainResult",
    "Trainer": "stepalign.trainer.loop:Trainer",
    "TrainerCallback": "stepalign.trainer.loop:TrainerCallback",
    "Verdict": "stepalign.records:Verdict",
    "check_critiques": "stepalign.api:check_critiques",
    "compare": "stepalign.evaluation.metrics:compare",
    "copy_recipe": "stepalign.config.packaged:copy",
    "critic_bench": "stepalign.api:critic_bench",
    "critique": "stepalign.api:critique",
    "evaluate": "stepalign.api:evaluate",
    "export": "stepalign.exporting:export",
    "export_dataset": "stepalign.exporting.dataset:export_dataset",
    "load_recipe": "stepalign.config:load",
    "migrate": "stepalign.config.migrate:migrate",
    "plan": "stepalign.planning:plan",
    "plant": "stepalign.error_injection.sets:plant_set",
    "preflight": "stepalign.gates.run:preflight",
    "preview": "stepalign.previewing:preview",
    "probe": "stepalign.probing.run:probe",
    "process_bench": "stepalign.process_supervision.run:process_bench",
    "push": "stepalign.exporting.hub:push",
    "run_lab": "stepalign.lab.running:run_lab",
    "sample": "stepalign.api:sample",
    "select": "stepalign.api:select",
    "step_values": "stepalign.process_supervision.run:step_values",
    "train": "stepalign.launch:train",
    "verify": "stepalign.api:verify",
    "write_report": "stepalign.report:write_report",
}
"""The Python API: the module and the name of each function and class."""

__all__ = [
    "Critic",
    "Critique",
    "CritiqueFailure",
    "Evaluation",
    "FunctionGrader",
    "Grade",
    "Grader",
    "Problem",
    "Recipe",
    "Rollout",
    "StepalignError",
    "TrainResult",
    "Trainer",
    "TrainerCallback",
    "Verdict",
    "__version__",
    "check_critiques",
    "compare",
    "copy_recipe",
    "critic_bench",
    "critique",
    "evaluate",
    "export",
    "export_dataset",
    "load_recipe",
    "migrate",
    "plan",
    "plant",
    "preflight",
    "preview",
    "probe",
    "process_bench",
    "push",
    "run_lab",
    "sample",
    "select",
    "step_values",
    "train",
    "verify",
    "write_report",
]


if not TYPE_CHECKING:  # a type checker would take any name

    def __getattr__(name: str) -> Any:
        if name not in _API:
            raise AttributeError(f"module 'stepalign' has no attribute {name!r}")
        module, _, function = _API[name].partition(":")
        return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return sorted(__all__)
