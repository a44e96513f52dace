"""A worked attempt with its critique: what a template is rendered with as soon as it is loaded.

So an attribute that no value has, a call or a filter that fails are errors before any work, not in its midst.
"""

from stepalign.critics.schema import compose
from stepalign.records import Critique, Grade, Problem, Rollout, Verdict

PROBLEM = Problem(
    id="sample",
    statement="Compute 47 + 38 + 12.",
    answer="97",
    solution="47 + 38 = 85\n85 + 12 = 97\nThe answer is 97.",
)
ROLLOUT = Rollout(
    id="sample",
    problem_id="sample",
    completion_ids=(),
    token_starts=(),
    text="### Step 1: Add 38\n47 + 38 = 85\n\n### Step 2: Add 12\n85 + 12 = 98\n\n### Final Answer:\n\\boxed{98}",
    finish="stop",
    grade=Grade(correct=False, outcome="wrong", final_answer="98", feedback="The final answer is wrong."),
)
_VERDICTS = (
    Verdict(step=1, correct=True),
    Verdict(step=2, correct=False, reason="85 + 12 is 97."),
    Verdict(step=3, correct=False, reason="It follows from step 2."),
)
_PARTS = (
    "### Step 1: Add 38\n47 + 38 = 85",
    "### Step 2: Add 12\n85 + 12 = 97",
    "### Final Answer:\n\\boxed{97}",
)
CRITIQUE = Critique(
    rollout_id="sample",
    critic="sample",
    case="D",
    verdicts=_VERDICTS,
    correct_part=_PARTS[0],
    corrected_step=_PARTS[1],
    continuation=_PARTS[2],
    text=compose("D", _VERDICTS, *_PARTS),
)
