"""Credit of rollouts, sampled or given, under several contexts: a folder of records, measures, figures and a page.

    stepalign probe recipes/probe/gsm8k.toml --rollouts planted --context refsol --context stepalign

Credit is appended to the folder as it is computed, so that a stopped probe continues. Its inputs (rollouts, critiques,
marks) are complete, and in the folder, before.
"""

import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from accelerate import Accelerator

from stepalign import config, models
from stepalign.algorithms.teacher_prompt import limit_to_context
from stepalign.chat import Chat, load_chat
from stepalign.console import Console
from stepalign.contexts import Context, load
from stepalign.data import prepare
from stepalign.errors import StepalignError
from stepalign.io import AppendLog, claim
from stepalign.manifest import manifest
from stepalign.policy import ADAPTER, Policy
from stepalign.probing import figures, folder, inputs, page
from stepalign.probing.credit import CreditScorer
from stepalign.probing.folder import Probe
from stepalign.probing.inputs import ProbeInputs
from stepalign.probing.measures import measure
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Credit, Problem, Rollout
from stepalign.rollouts.generate import solver_on


def probe(
    settings: config.Recipe,
    out: Path,
    *,
    rollouts: Path | None = None,
    contexts: Sequence[str] = (),
    adapter: Path | None = None,
    top: int = 0,
    limit: int | None = None,
) -> Probe:
    """Probe contexts, and write the folder `out`; or continue what was begun there.

    Args:
        settings: model, prompts, teacher and critic; problems and sampling where rollouts are sampled.
        out: the probe's folder.
        rollouts: a file of rollouts, or a folder of them with problems, critiques, and slips or marks. None samples one
            rollout of each training problem.
        contexts: by name or file; by default the recipe's own.
        adapter: the student's; the teacher is the base. None probes the base itself.
        top: how many of the likeliest tokens to keep beside each sampled one.
        limit: how many rollouts to probe, from the first.

    Raises:
        StepalignError: the input is bad, which is raised before long work where possible; or `out` holds another probe.
    """
    templates = [load(name) for name in dict.fromkeys(contexts or [settings.context.template])]
    asked = {
        **{
            name: getattr(settings, name).model_dump(mode="json")
            for name in ("model", "prompts", "teacher", "sampling")
        },
        "seed": settings.seed,
        "adapter": adapter and str(adapter),
        "rollouts": str(rollouts) if rollouts else settings.problems.model_dump(mode="json"),
        "contexts": {context.name: _digest(context) for context in templates},
        "top": top,
        "limit": limit,
    }
    if (out / "manifest.json").exists() and not (out / "settings.json").exists():
        raise StepalignError(
            f"{out} holds something else than a probe, or one of another version: choose another --out"
        )
    started = (out / "rollouts.jsonl").exists()
    claim(
        out / "settings.json",
        asked,
        started=started,
        optional=["contexts"],
        refusal="it holds another probe (choose another folder with --out, or delete that one)",
    )
    given: ProbeInputs | list[Problem] = (
        inputs.read(rollouts, _recipe_problems(settings, rollouts)).first(limit)
        if rollouts
        else list(prepare(settings.problems)[0][:limit])
    )
    chat, prompt = load_chat(settings.model), SolverPrompt(settings.prompts)
    policy = Policy(models.load_model(settings.model, adapter, Accelerator().device)).eval()
    teacher = limit_to_context(settings.teacher, models.context_limit(settings.model))
    scorer = CreditScorer(policy, chat, prompt.before, templates, teacher, top=top)
    with Console() as console:
        with solver_on(settings, chat, policy.model) as solver:
            given = inputs.read(out) if started else given
            name = ADAPTER if adapter else None
            complete = inputs.prepare(given, settings, solver, console, out, adapter=name)
        credits = _score(scorer, complete, out, console)
    found = Probe(
        problems=tuple(complete.problems.values()),
        rollouts=tuple(complete.rollouts),
        critic_results=tuple(complete.critic_results),
        marks=complete.marks,
        credits=credits,
        tokens=_token_texts(chat, complete.rollouts, credits),
        measures=measure(complete.rollouts, complete.marks, credits, seed=settings.seed),
        manifest={**manifest(), "asked": asked, "skipped": dict(scorer.skipped), "command": " ".join(sys.argv)},
    )
    folder.write(found, out)
    figures.write(found, out / "figures")
    page.write(found, out / "probe.html")
    return found


def _score(scorer: CreditScorer, given: ProbeInputs, out: Path, console: Console) -> tuple[Credit, ...]:
    """Compute the credit that the folder lacks, and return all of it by context."""
    log = AppendLog(out / "credits.jsonl", Credit)
    cached = {(credit.rollout_id, credit.context): credit for credit in log.read()}
    log.truncate()
    views, reported = len(given.rollouts) * len(scorer.contexts), 0
    with console.stage("credit", views, "views") as advance:
        advance(len(cached))
        for credits in scorer.run(given.rollouts, given.problems, given.critiques, dict(cached)):
            log.append(*credits)
            cached |= {(credit.rollout_id, credit.context): credit for credit in credits}
            advance(len(credits))
            if not console.rich.is_terminal and 10 * len(cached) // views > reported:
                reported = 10 * len(cached) // views
                console.say(f"{out}: {len(cached)} of {views} views")
    ordered = tuple(
        cached[rollout.id, context.name]
        for context in scorer.contexts
        for rollout in given.rollouts
        if (rollout.id, context.name) in cached
    )
    speed = scorer.tokens / max(console.seconds["credit"], 1e-9)
    console.say(f"{out}: {len(ordered)} of {views} views, {speed:,.0f} tokens/s {dict(scorer.skipped) or ''}")
    return ordered


def _recipe_problems(settings: config.Recipe, rollouts: Path) -> dict[str, Problem]:
    """Prepare the recipe's problems by id, unless the rollouts' folder has its own."""
    if (rollouts / "problems.jsonl").exists():
        return {}
    train, evaluation, _ = prepare(settings.problems)
    return {problem.id: problem for problem in (*train, *evaluation)}


def _token_texts(chat: Chat, rollouts: Iterable[Rollout], credits: Iterable[Credit]) -> dict[int, str]:
    ids = {token for rollout in rollouts for token in rollout.completion_ids}
    for credit in credits:
        ids |= {token for entries in (*credit.student_top, *credit.teacher_top) for token, _ in entries}
    return {token: chat.token_text(token) for token in sorted(ids)}


def _digest(context: Context) -> str:
    return hashlib.blake2b(Path(str(context.template.filename)).read_bytes(), digest_size=8).hexdigest()
