"""A recipe: everything a run does, in one TOML file.

`load` reads the file, follows `extends`, lays `key=value` overrides over it and checks the whole before anything
heavy starts: an unknown key, a wrong type or an impossible combination is an error with the key's full name, the
value and what is allowed. Two conditions of the paper differ in one visible field of their recipes.

    stepalign train quickstart optimizer.lr=1e-4 --dry-run
"""

from stepalign.config.algorithms import (
    AlgorithmConfig,
    CreditGRPOConfig,
    DistillationConfig,
    GRPOConfig,
    GRPODistillationConfig,
    PolicyGradientConfig,
    PolicyRatioConfig,
    RLTFFMConfig,
    RLTFSDConfig,
    SeqKDConfig,
    SFTConfig,
)
from stepalign.config.contexts import ContextConfig, PythonContextConfig, TemplateContextConfig
from stepalign.config.critics import (
    ChecksConfig,
    CriticConfig,
    Fallback,
    LLMCriticConfig,
    LocateMendCriticConfig,
    OpenAICriticConfig,
    OpenAIMenderConfig,
    ProgramCriticConfig,
    ProgramMenderConfig,
    PythonCriticConfig,
    ReplayCriticConfig,
    SampledMenderConfig,
    SelfCriticConfig,
    SelfMenderConfig,
    UnitTestCriticConfig,
    ValidationConfig,
)
from stepalign.config.gates import CanariesConfig, PreflightConfig
from stepalign.config.graders import GraderConfig, MathGraderConfig, PythonGraderConfig, UnitTestGraderConfig
from stepalign.config.load import dump, load
from stepalign.config.locators import (
    CombinedLocatorConfig,
    CreditLocatorConfig,
    CriticLocatorConfig,
    DerivationLocatorConfig,
    EquationsLocatorConfig,
    LocatorConfig,
    OriginsLocatorConfig,
    ScoredLocatorConfig,
    ServedVerdictsLocatorConfig,
    StepValuesLocatorConfig,
    VerdictsConfig,
    VerdictsLocatorConfig,
)
from stepalign.config.model import ModelConfig
from stepalign.config.python import PythonObject
from stepalign.config.recipe import (
    VERSION,
    DistributedConfig,
    EvaluationConfig,
    ExampleConfig,
    LoraConfig,
    OptimizerConfig,
    ProbeConfig,
    PromptsConfig,
    Recipe,
    SamplingConfig,
    SelectionConfig,
    TrackingConfig,
    TrainingConfig,
)
from stepalign.config.registry import Table
from stepalign.config.samplers import SamplerConfig, TransformersConfig, VllmConfig, VllmServerConfig
from stepalign.config.served import ServedModelConfig
from stepalign.config.sources import (
    CodeColumnsConfig,
    CodeFileConfig,
    CodeSourceConfig,
    ColumnsConfig,
    FileConfig,
    Gsm8kConfig,
    GsmSymbolicConfig,
    HubConfig,
    HubSourceConfig,
    HumanEvalConfig,
    MbppConfig,
    OpenMathConfig,
    ProblemsConfig,
    ProcessBenchConfig,
    PythonSourceConfig,
    SourceConfig,
    SumsConfig,
)
from stepalign.config.teachers import (
    BaseTeacherConfig,
    EMATeacherConfig,
    LiveTeacherConfig,
    ModelTeacherConfig,
    ScaledTeacherConfig,
    TeacherConfig,
    TrustRegionTeacherConfig,
)
