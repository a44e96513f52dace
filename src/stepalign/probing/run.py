"""Credit of rollouts, sampled or given, under several contexts: a folder of records, measures, figures and a page.

    stepalign probe probe/gsm8k --rollouts planted --context refsol --context stepalign

Credit is appended to the folder as it is computed, so that a stopped probe continues. Its inputs (rollouts, critiques,
marks) are complete, and in the folder, before.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from accelerate import Accelerator
from pydantic import NonNegativeInt, PositiveInt

from stepalign import config, models, prompts
from stepalign.algorithms.teacher_prompt import limited_teacher
from stepalign.append_log import AppendLog
from stepalign.arguments import checked
from stepalign.chat import load_chat
from stepalign.config import machine, registry
from stepalign.console import Console
from stepalign.contexts import Context, load
from stepalign.contexts.wrong import check_has_wrong
from stepalign.critics.own_model import own_model
from stepalign.critics.run import dump_tables
from stepalign.data import prepare
from stepalign.errors import StepalignError
from stepalign.io import claim, kept_date, read_json, sha256
from stepalign.manifest import manifest
from stepalign.objects import AnyContext, AnyRecipe, Objects, with_objects
from stepalign.policy import ADAPTER, Policy
from stepalign.probing import figures, folder, inputs, page
from stepalign.probing.credit import CreditScorer
from stepalign.probing.display import remarks
from stepalign.probing.folder import Cost, Probe
from stepalign.probing.measures import measure
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Credit
from stepalign.rollouts.generate import solver_on
from stepalign.teachers import Teacher, build_teacher
from stepalign.trainer.checkpoints import adapter_folder, load_algorithm_state


@checked
def probe(
    recipe: AnyRecipe,
    out: Path | str,
    *,
    rollouts: Path | str | None = None,
    contexts: AnyContext | Sequence[AnyContext] = (),
    adapter: Path | str | None = None,
    top: NonNegativeInt = 0,
    limit: PositiveInt | None = None,
    contrast: NonNegativeInt = 0,
    **objects: Unpack[Objects],
) -> Probe:
    """Probe contexts, and write the folder `out`; or continue what was begun there.

    Args:
        recipe: model, prompts, teacher and critic; problems and sampling where rollouts are sampled.
        out: the probe's folder.
        rollouts: a file, or a folder that `inputs.read` reads. None samples one rollout of each training problem,
            or `training.num_generations` where a context shows siblings.
        contexts: one or several, by name or file, or as functions; by default the recipe's own. Credit that the
            folder has under other contexts stays.
        adapter: the student's: a folder of its own, a checkpoint's, or a run's, whose last checkpoint is taken. None
            probes the base itself. The teacher is the recipe's.
        top: the number of likeliest tokens kept beside each sampled one.
        limit: the number of rollouts, from the first. Sampled groups stay whole.
        contrast: the most wrong contexts that each context is contrasted with; 0 is no contrast.
        objects: problems, grader and critic in place of the recipe's (`objects.Objects`).

    Raises:
        StepalignError: the input is bad, which is raised before long work where possible; or `out` holds another probe.
    """
    settings, out = with_objects(recipe, **objects), Path(out)
    rollouts = Path(rollouts) if rollouts else None
    adapter = adapter_folder(adapter)
    machine.check(settings, "model", "teacher", *(() if rollouts else ("problems", "grader")))
    kept = out / "settings.json"
    settings, date = models.with_precision(settings, kept, Accelerator().device), kept_date(kept)
    designs = [contexts] if isinstance(contexts, str | config.PythonObject) or callable(contexts) else contexts
    templates, words = _load(designs or [settings.context.design])
    with ExitStack() as stack, prompts.recorded() as texts:
        prompt = SolverPrompt(settings.prompts)
        grader = stack.enter_context(registry.build(settings.grader))
        if settings.critic is not None:  # for the texts that it loads
            own = own_model(settings, stack, date)
            registry.build(settings.critic, grader=grader, folder=out, own=own, before=prompt.before)
    started = (out / "rollouts.jsonl").exists()
    earlier_words = _kept(out, "settings", "contexts") if started else {}
    asked = dump_tables(settings, {"model", "prompts", "teacher", "sampling", "critic", "grader", "seed"})
    asked |= {
        "adapter": adapter and str(adapter),
        "rollouts": str(rollouts) if rollouts else settings.problems.model_dump(mode="json"),
        **({"rollouts_sha256": sha256(inputs.rollouts_file(rollouts))} if rollouts else {}),
        "contexts": words | earlier_words | words,  # these first
        "words": prompts.digests(texts),
        "date": str(date),
        "top": top,
        "limit": limit,
        **({"contrast": contrast} if contrast else {}),
    }
    if contrast:
        for context in templates:
            check_has_wrong(context, "--contrast")
    if (out / "manifest.json").exists() and not (out / "settings.json").exists():
        raise StepalignError(
            f"{out} holds something else than a probe, or one of another version: choose another --out"
        )
    claim(
        out / "settings.json",
        asked,
        started=started,
        optional=["contexts"],
        refusal="it holds another probe (choose another folder with --out, or delete that one)",
        free=tuple(settings.runtime_keys()),
    )
    group_size = 1 if rollouts else inputs.group_size(templates, settings, contrast=contrast > 0)
    if rollouts:
        given = inputs.read(rollouts, lambda: [p for part in prepare(settings.problems)[:2] for p in part], limit=limit)
    else:
        given = Probe(problems=tuple(prepare(settings.problems)[0][: limit and -(-limit // group_size)]), rollouts=())
    chat = load_chat(settings.model, prompt.before, date)
    limited = limited_teacher(settings, chat, models.context_limit(settings.model))
    policy = Policy(models.load_model(settings.model, adapter, Accelerator().device)).eval()
    scorer = CreditScorer(
        policy,
        chat,
        prompt.before,
        templates,
        _teacher(settings, policy, adapter),
        limited,
        top=top,
        num_wrong=contrast,
    )
    with Console() as console:
        with solver_on(settings, chat, policy.model) as solver:
            given = inputs.read(out) if started else given
            sampled = ADAPTER if adapter else None
            given = inputs.prepare(given, settings, solver, console, out, adapter=sampled, num_samples=group_size)
        credits, costs = _score(scorer, given, out, console, list(asked["contexts"]))
        earlier = _kept(out, "manifest", "skipped").items()  # of contexts that are not asked for now
        skipped = {reason: n for reason, n in earlier if reason.partition(": ")[0] not in words} | scorer.skipped
        cut = Counter(credit.context for credit in credits if credit.cut)
        for remark in remarks(skipped, cut):
            console.say(f"{out}: {remark}")
    tokens = {token for rollout in given.rollouts for token in rollout.completion_ids}
    tokens |= {token for credit in credits for top in (*credit.student_top, *credit.teacher_top) for token, _ in top}
    probed = replace(
        given,
        credits=credits,
        tokens={token: chat.token_text(token) for token in sorted(tokens)},
        measures=measure(given.rollouts, given.marks, credits, seed=settings.seed),
        manifest={
            **manifest(),
            "asked": asked,
            "skipped": skipped,
            "cut": dict(cut),
            "cost": {"tokens": sum(c.tokens for c in costs), "seconds": round(sum(c.seconds for c in costs), 1)},
            "command": " ".join(sys.argv),
        },
    )
    folder.write(probed, out)
    drawings = figures.write(probed, out / "figures")
    page.write(probed, out / "probe.html", drawings)
    return probed


def _load(designs: Sequence[AnyContext]) -> tuple[list[Context], dict[str, dict[str, str]]]:
    """Load contexts, without repetitions. Return digests of each one's texts by its name too."""
    templates, words = [], {}
    for design in dict.fromkeys(designs):
        with prompts.recorded() as texts:
            context = load(design)
        if context.name in words:
            raise StepalignError(f"contexts: two are named {context.name!r}; write one as a function with a name")
        templates.append(context)
        words[context.name] = prompts.digests(texts)
    return templates, words


def _teacher(settings: config.Recipe, policy: Policy, adapter: Path | None) -> Teacher:
    """Build the recipe's teacher of a policy that was trained, with its state where it has one."""
    teacher = build_teacher(settings.teacher, policy)
    if adapter is not None and teacher.state_dict():
        state = load_algorithm_state(adapter)
        if not state:
            raise StepalignError(
                f"teacher.kind = {settings.teacher.kind!r}: its state is in a run's checkpoint, and {adapter} has "
                "none. Give a checkpoint's folder, or another teacher (teacher.kind=base)"
            )
        teacher.load_state_dict(state)
    return teacher


def _kept(out: Path, name: str, key: str) -> dict[str, Any]:
    """Return a table of a JSON file that an earlier start wrote; an empty one without it."""
    path = out / f"{name}.json"
    kept = read_json(path, dict[str, Any]).get(key) if path.exists() else None
    return kept if isinstance(kept, dict) else {}


def _score(
    scorer: CreditScorer, given: Probe, out: Path, console: Console, contexts: Sequence[str]
) -> tuple[tuple[Credit, ...], list[Cost]]:
    """Compute the credit that the folder lacks. Return all of it, in the order of `contexts`, and what it cost."""
    log, costs = AppendLog(out / "credits.jsonl", Credit), AppendLog(out / "cost.jsonl", Cost)
    cached = {(credit.rollout_id, credit.context): credit for credit in log.read()}
    folder.check_credits(cached.values(), given.rollouts, log.path)
    log.truncate()
    spent = list(costs.read())
    keys = [(rollout.id, context.name) for context in scorer.contexts for rollout in given.rollouts]
    views, done, reported = len(keys), sum(key in cached for key in keys), 0
    with console.stage("credit", views, "views") as advance:
        advance(done)
        start, tokens = time.perf_counter(), scorer.tokens
        for batch in scorer.run(given, dict(cached)):
            log.append(*batch)
            spent.append(Cost(tokens=scorer.tokens - tokens, seconds=time.perf_counter() - start))
            costs.append(spent[-1])
            start, tokens = time.perf_counter(), scorer.tokens
            cached |= {(credit.rollout_id, credit.context): credit for credit in batch}
            done += len(batch)
            advance(len(batch))
            if not console.rich.is_terminal and 10 * done // views > reported:
                reported = 10 * done // views
                console.say(f"{out}: {done} of {views} views")
    speed = scorer.tokens / max(console.seconds["credit"], 1e-9)
    console.say(f"{out}: {done} of {views} views, {speed:,.0f} tokens/s")
    every = [(rollout.id, context) for context in contexts for rollout in given.rollouts]
    return tuple(cached[key] for key in every if key in cached), spent
