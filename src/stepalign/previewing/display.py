"""A preview on the terminal and as a page. Control tokens are framed, the loss span is marked.

Text of models and data sets is escaped, and hidden characters appear as their code points.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from stepalign import config
from stepalign.io import write_atomically
from stepalign.previewing.views import RolloutPreview, ViewPreview, ViewToken
from stepalign.records import Critique
from stepalign.report.display import environment, visible_text

_FOLDER = Path(__file__).parent
_STYLES = {"control": "bold magenta", "prompt": "dim", "loss": "green", "completion": ""}
LEGEND = "‹control token›, prompt dim, loss span green"


def render(rollouts: Sequence[RolloutPreview], *, ids: bool = False) -> RenderableType:
    """Lay out views for a terminal. With `ids`, the ids follow each text."""
    parts: list[RenderableType] = []
    for one in rollouts:
        parts.append(Text(f"\n{title(one)}", style="bold"))
        parts += [Panel(_view(view, ids=ids), title=f"{view.name}: {view.size}", title_align="left")
                  for view in one.views]  # fmt: skip
    return Group(*parts, Text(LEGEND, style="dim"))


def title(one: RolloutPreview) -> str:
    """Return a rollout's id, grade and critique in words."""
    grade = one.rollout.grade.outcome if one.rollout.grade else "not graded"
    critique, said = one.critique, ""
    if isinstance(critique, Critique):
        said = f", critique of case {critique.case}"
    elif critique is not None:
        said = f", no critique: {critique.reason}" + (f" ({critique.detail})" if critique.detail else "")
    return visible_text(f"{one.rollout.id}: {grade}{said}{'' if one.views else ', no example'}")


def html(rollouts: Sequence[RolloutPreview], summary: str) -> str:
    """Return the views for a notebook, below a line."""
    fragment = environment(_FOLDER).get_template("notebook.html.jinja")
    return fragment.render(rollouts=rollouts, summary=summary, title_of=title, runs=runs)


def write(settings: config.Recipe, rollouts: Sequence[RolloutPreview], counts: str, out: Path) -> None:
    """Write the page. It loads nothing from the network."""
    page = environment(_FOLDER).get_template("preview.html.jinja")
    write_atomically(out, page.render(settings=settings, rollouts=rollouts, counts=counts, title_of=title, runs=runs))


def runs(view: ViewPreview) -> Iterator[tuple[str, list[ViewToken]]]:
    """Group a view's tokens by kind: `control`, `prompt`, `loss`, or `completion` outside the loss."""
    for kind, tokens in groupby(view.tokens, _kind):
        yield kind, list(tokens)


def _kind(token: ViewToken) -> str:
    """Return how a token is shown. A control token in the loss is framed and marked."""
    part = "prompt" if token.is_prompt else "loss" if token.in_loss else "completion"
    return f"control {part}" if token.is_control else part


def _view(view: ViewPreview, *, ids: bool) -> Text:
    text = Text(visible_text(view.message))
    for kind, tokens in runs(view):
        words = "".join(f"‹{token.text}›" if token.is_control else token.text for token in tokens)
        text.append(visible_text(words), style=" ".join(_STYLES[part] for part in kind.split()))
    if ids and view.tokens:
        text.append("\n\n" + " ".join(map(str, view.ids)), style="dim")
    return text
