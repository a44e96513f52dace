"""Benchmarks by name: data set, licence, grader and customary sampling, each with its basis.

    stepalign evaluate RECIPE --benchmark aime25

A benchmark's values are laid over a recipe, before overrides: `problems.evaluation.dataset=FOLDER` names a local copy,
`evaluation.num_samples=4` asks for less. Names, splits, columns and licences are those of the data sets' cards. The
data were not downloaded when this was written.
"""

import difflib
from dataclasses import dataclass
from functools import partial
from typing import Any

from stepalign.config.keywords import plain
from stepalign.config.recipe import SamplingConfig
from stepalign.config.sources import (
    ColumnsConfig,
    Gsm8kConfig,
    HubConfig,
    HumanEvalConfig,
    MbppConfig,
    SourceConfig,
)
from stepalign.errors import StepalignError


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A data set for evaluation, and how it is customarily used."""

    source: SourceConfig
    size: int
    """The number of problems on the data set's card."""
    stated_licence: str = ""
    """The licence on the data set's card, where the source's table has none."""
    grader: str = "math"
    """Its kind."""
    num_samples: int
    sampling: SamplingConfig
    basis: str
    """The origin of number of samples and sampling."""
    contamination: str
    """The chance that models have been trained on it."""

    @property
    def licence(self) -> str:
        """The problems' licence."""
        return self.source.licence or self.stated_licence

    def values(self) -> dict[str, Any]:
        """Return the recipe's values that evaluate on this benchmark."""
        sampling = {name: getattr(self.sampling, name) for name in SamplingConfig.model_fields}
        return {
            "problems": {"holdout": 0, "evaluation": plain(self.source)},
            "grader": {"kind": self.grader},
            "evaluation": {"num_samples": self.num_samples, "sampling": sampling},
        }


_greedy = partial(Benchmark, num_samples=1, sampling=SamplingConfig(temperature=0.0, top_p=1.0, max_new_tokens=1024))
_like_r1 = partial(
    Benchmark, num_samples=4, sampling=SamplingConfig(temperature=0.6, top_p=0.95, max_new_tokens=32_768)
)
_like_the_paper = partial(
    Benchmark,
    num_samples=12,
    sampling=SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=38_912, enable_thinking=True),
    basis="arXiv 2606.11173: n 12, T 1.0, top-p 0.95, 38,912 tokens, thinking on",
)
_MATHARENA = ColumnsConfig(statement="problem", solution="", id="problem_idx")

BENCHMARKS = {
    "gsm8k": _greedy(
        source=Gsm8kConfig(split="test"),
        size=1319,
        basis="greedy, one sample, as in arXiv 2409.12122 (Qwen2.5-Math); 1,024 tokens are ours",
        contamination="public since 2021: its training split, and paraphrases of both, are in many training sets",
    ),
    "math-500": _like_r1(
        source=HubConfig(
            dataset="HuggingFaceH4/MATH-500",
            split="test",
            columns=ColumnsConfig(statement="problem", id="unique_id", meta=("subject", "level")),
        ),
        size=500,
        stated_licence="none stated; MATH and PRM800K, of which it is made, are MIT",
        basis="arXiv 2501.12948 (DeepSeek-R1): T 0.6, top-p 0.95, 32,768 tokens, 4 to 64 samples, here 4",
        contamination="public since 2021: a part of MATH, whose other problems are in nearly every training set",
    ),
    "aime24": _like_the_paper(
        source=HubConfig(
            dataset="HuggingFaceH4/aime_2024", columns=ColumnsConfig(statement="problem", id="id", meta=("year",))
        ),
        size=30,
        stated_licence="none stated; the problems are the MAA's",
        contamination="public since February 2024: in training sets of models released later",
    ),
    "aime25": _like_the_paper(
        source=HubConfig(dataset="MathArena/aime_2025", columns=_MATHARENA),
        size=30,
        stated_licence="CC BY-NC-SA 4.0",
        contamination="public since February 2025; some of its problems have older twins on the web",
    ),
    "hmmt25": _like_the_paper(
        source=HubConfig(dataset="MathArena/hmmt_feb_2025", columns=_MATHARENA),
        size=30,
        stated_licence="CC BY-NC-SA 4.0",
        contamination="public since February 2025",
    ),
    "amc23": _like_r1(
        source=HubConfig(
            dataset="math-ai/amc23",
            split="test",
            columns=ColumnsConfig(statement="question", solution="", id="id"),
        ),
        size=40,
        stated_licence="none stated; the problems are the MAA's",
        basis="sampling as for math-500",
        contamination="public since November 2023: in training sets of models released later",
    ),
    "humaneval": _greedy(
        source=HumanEvalConfig(),
        size=164,
        grader="unit-tests",
        basis="greedy, one sample, as on EvalPlus' leaderboard; 1,024 tokens are ours",
        contamination="public since 2021, and in many training sets",
    ),
    "mbpp": _greedy(
        source=MbppConfig(split="test", shown_tests=3),
        size=500,
        grader="unit-tests",
        basis="all three tests shown, as in arXiv 2108.07732, but without its examples; greedy; 1,024 tokens are ours",
        contamination="public since 2021, and in many training sets",
    ),
}


def benchmark(name: str) -> Benchmark:
    """Return a benchmark by name, or raise a StepalignError with the names."""
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise StepalignError(f"no benchmark {name!r}; {meant}allowed: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
