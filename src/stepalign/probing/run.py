"""The stage: rollouts, sampled or given, under several contexts; a folder of credit, measures and a page.

    stepalign probe recipes/probe/gsm8k.toml --rollouts planted --context refsol --context stepalign

What is seen of a rollout is appended to the folder as soon as it is there, so that a probe that was stopped goes on
where it was. What is looked at (rollouts, critiques, marks) is settled before, once.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import TypeAdapter, ValidationError

from stepalign import config, models
from stepalign import contexts as designs
from stepalign import data as problems
from stepalign.algorithms.self_distillation import within
from stepalign.chat import Chat, load_chat
from stepalign.console import Console
from stepalign.errors import StepalignError
from stepalign.io import differences, to_json, write_json
from stepalign.policy import ADAPTER, Policy
from stepalign.probing import figures, folder, page
from stepalign.probing import inputs as material
from stepalign.probing.credit import Crediting, Key
from stepalign.probing.folder import Probe
from stepalign.probing.gathering import drawn, settled
from stepalign.probing.inputs import Material
from stepalign.probing.measures import measure
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Credit, Problem, Rollout
from stepalign.rollouts.build import solver_on
from stepalign.trainer.run_folder import manifest


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
    """Look at rollouts under contexts, and write the folder `out`; or go on with what was begun there.

    Args:
        settings: model, prompts, teacher and critic; problems and sampling where rollouts are to be drawn.
        out: the probe's folder.
        rollouts: a file of rollouts, or a folder of them with problems, critiques, and slips or marks; None draws one
            rollout of each training problem.
        contexts: designs by name or file; by default the recipe's own.
        adapter: the student's; the teacher is the base. None looks at the base itself.
        top: how many of the likeliest tokens are kept beside each sampled one.
        limit: look at the first so many rollouts only.

    Raises:
        StepalignError: bad input, before any long work where it can be known; or `out` holds another probe.
    """
    chosen = [designs.load(name) for name in dict.fromkeys(contexts or [settings.context.template])]
    asked = {
        **_about(settings),
        "adapter": adapter and str(adapter),
        "rollouts": str(rollouts) if rollouts else settings.problems.model_dump(mode="json"),
        "contexts": {context.name: _digest(context) for context in chosen},
        "top": top,
        "limit": limit,
    }
    _claim(out, asked)
    chat, prompt = load_chat(settings.model), SolverPrompt(settings.prompts)
    given = (
        material.read(rollouts, _problems(settings, rollouts)).first(limit)
        if rollouts
        else problems.prepare(settings.problems)[0][:limit]
    )
    policy = Policy(models.load_model(settings.model, adapter, Accelerator().device)).eval()
    with Console() as console:
        shown = _shown(settings, out, given, chat, policy, adapter, console)
        kept = _kept(out / "credits.jsonl")
        crediting = Crediting(
            policy,
            chat,
            prompt.before,
            chosen,
            within(settings.teacher, models.context_limit(settings.model)),
            top=top,
        )
        views, said = len(shown.rollouts) * len(chosen), 0
        with console.stage("credit", views, "views") as advance:
            advance(len(kept))
            for new in crediting.run(shown.rollouts, shown.problems, shown.critiques, kept):
                _append(out / "credits.jsonl", new)
                kept |= {(credit.rollout_id, credit.context): credit for credit in new}
                advance(len(new))
                if not console.rich.is_terminal and 10 * len(kept) // views > said:
                    said = 10 * len(kept) // views
                    console.say(f"{out}: {len(kept)} of {views} views")
        credits = [
            kept[rollout.id, context.name]
            for context in chosen
            for rollout in shown.rollouts
            if (rollout.id, context.name) in kept
        ]
        speed = crediting.tokens / max(console.seconds["credit"], 1e-9)
        console.say(f"{out}: {len(credits)} of {views} views, {speed:,.0f} tokens/s {dict(crediting.skipped) or ''}")
    found = Probe(
        problems=tuple(shown.problems.values()),
        rollouts=tuple(shown.rollouts),
        answers=tuple(shown.answers),
        marks=shown.marks,
        credits=tuple(credits),
        tokens=_texts(chat, shown.rollouts, credits),
        measures=measure(shown.rollouts, shown.marks, credits, seed=settings.seed),
        manifest={
            **manifest(),
            "asked": asked,
            "skipped": dict(crediting.skipped),
            "command": " ".join(sys.argv),
        },
    )
    folder.write(found, out)
    figures.write(found, out / "figures")
    page.write(found, out / "probe.html")
    return found


def _about(settings: config.Recipe) -> dict[str, Any]:
    """The recipe's part in what is seen."""
    names = ("model", "prompts", "teacher", "sampling")
    return {name: getattr(settings, name).model_dump(mode="json") for name in names} | {"seed": settings.seed}


def _shown(
    settings: config.Recipe,
    out: Path,
    given: Material | Sequence[Problem],
    chat: Chat,
    policy: Policy,
    adapter: Path | None,
    console: Console,
) -> Material:
    """What is looked at: as the folder has it, as given, or drawn of problems; kept in the folder from then on."""
    with solver_on(settings, chat, policy.model) as solver:
        if (out / "rollouts.jsonl").exists():
            begun = material.read(out)
        else:
            name = ADAPTER if adapter else None
            begun = given if isinstance(given, Material) else drawn(given, settings, solver, console, adapter=name)
            begun.write(out)
        shown = settled(begun, settings, solver, console, out)
    shown.write(out)
    (out / "asked.jsonl").unlink(missing_ok=True)
    return shown


def _problems(settings: config.Recipe, rollouts: Path) -> dict[str, Problem]:
    """The recipe's problems, where the rollouts do not bring their own."""
    if (rollouts / "problems.jsonl").exists():
        return {}
    train, evaluation, _ = problems.prepare(settings.problems)
    return {problem.id: problem for problem in (*train, *evaluation)}


def _texts(chat: Chat, rollouts: Iterable[Rollout], credits: Iterable[Credit]) -> dict[int, str]:
    ids = {token for rollout in rollouts for token in rollout.completion_ids}
    for credit in credits:
        ids |= {token for top in (*credit.student_top, *credit.teacher_top) for token, _ in top}
    return {token: chat.token_text(token) for token in sorted(ids)}


# ── going on ──────────────────────────────────────────────────────────────────────────────────────────────────


def _digest(context: designs.Context) -> str:
    return hashlib.blake2b(Path(str(context.template.filename)).read_bytes(), digest_size=8).hexdigest()


def _claim(out: Path, asked: dict[str, Any]) -> None:
    """Write down what the folder is about, or hold it against what it was begun with.

    Contexts may come and go, but a name must keep its wording. Before there are rollouts nothing was looked at: what
    was asked for then was refused, and has been mended since.
    """
    path = out / "manifest.json"
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["asked"]
        except (ValueError, KeyError, TypeError) as error:
            raise StepalignError(f"{path}: not a probe's manifest ({error!r})") from None
        if not (out / "rollouts.jsonl").exists():
            before = asked
        shared = before["contexts"].keys() & asked["contexts"].keys()
        for one in (before := dict(before), mine := dict(asked)):
            one["contexts"] = {name: one["contexts"][name] for name in shared}
        if different := differences(before, mine):
            raise StepalignError(
                f"{out} holds another probe; what differs:\n  " + "\n  ".join(different) + "\n"
                "Choose another folder with --out, or delete that one."
            )
    write_json(path, {"asked": asked})


def _kept(path: Path) -> dict[Key, Credit]:
    """The credit of an earlier run. A half-written last line is cut off: a kill leaves one."""
    adapter, kept, whole = TypeAdapter(Credit), {}, 0
    if not path.exists():
        return {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                credit = adapter.validate_json(line)
            except ValidationError as error:
                raise StepalignError(f"{path}, line {number}: not a Credit ({error.error_count()} faults)") from None
            kept[credit.rollout_id, credit.context] = credit
            whole = file.tell()
    os.truncate(path, whole)
    return kept


def _append(path: Path, credits: Sequence[Credit]) -> None:
    try:
        with path.open("ab") as file:
            file.write("".join(to_json(credit) + "\n" for credit in credits).encode())
            file.flush()
    except OSError as error:
        raise StepalignError(f"{path}: could not be written: {error.strerror}; nothing else was lost") from None
