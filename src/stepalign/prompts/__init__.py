"""Prompt templates: whole text files beside this one, or anywhere a recipe points to.

The authors' templates are lost (the paper's Figures 8–11 are images); each file says whether it is reconstructed or
ours. Templates are Jinja, sandboxed. Text of models and data sets enters as values and is never evaluated.
"""

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from stepalign.config.trust import is_within
from stepalign.errors import StepalignError

_HERE = Path(__file__).parent
_DIALECTS = frozenset({_HERE / "code"})
"""Folders that have only what they word otherwise. Any other template is the general one with their `format.txt`."""
_recordings: ContextVar[tuple[dict[str, str], ...]] = ContextVar("recordings", default=())


def load(name: str, allowed: frozenset[str]) -> tuple[Template, frozenset[str]]:
    """Load a template, and find the variables it uses.

    Args:
        name: a template that ships with the package (`solver`, `refsol`, …), or the path of a file.
        allowed: the variables that a template in this place may use.

    Raises:
        StepalignError: there is no such template, it is not valid Jinja, or it uses another variable.
    """
    path = _find(name)
    environment = _environment(path.parent)
    try:
        sources = _sources(environment, path.name)
        trees = map(environment.parse, sources.values())
        used = frozenset[str]().union(*map(meta.find_undeclared_variables, trees))
        template = environment.get_template(path.name)
    except (TemplateError, UnicodeDecodeError) as error:
        raise StepalignError(f"{path}: not a valid template: {error}") from None
    if used - allowed:
        unknown, known = (", ".join(sorted(names)) for names in (used - allowed, allowed))
        raise StepalignError(f"{path}: unknown variables {unknown}; allowed: {known}")
    file = path.relative_to(_HERE) if path.is_relative_to(_HERE) else path
    for each, source in sources.items():
        record(str(file.with_name(Path(each).name)), source)
    return template, used


def record(name: str, text: str) -> None:
    """Add a text to the recordings that are under way."""
    for recording in _recordings.get():
        recording[name] = text


@contextmanager
def recorded() -> Iterator[dict[str, str]]:
    """Record the texts of the templates that are loaded meanwhile, and of what they include, by file."""
    texts: dict[str, str] = {}
    token = _recordings.set((*_recordings.get(), texts))
    try:
        yield texts
    finally:
        _recordings.reset(token)


def kept_path(run_folder: Path, name: str) -> Path:
    """Return the file of a run's folder that keeps a recorded text. It lies in `prompts/` whatever the name is."""
    return run_folder / "prompts" / Path(*(part for part in Path(name).parts if part not in ("/", "..")))


def digests(texts: Mapping[str, str]) -> dict[str, str]:
    """Return a digest of each text."""
    return {name: hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for name, text in texts.items()}


def render(template: Template, values: Mapping[str, object]) -> str:
    """Fill a template's values in. White space around the text is removed."""
    try:
        return template.render(values).strip()
    except Exception as error:  # a template is code
        raise StepalignError(f"{template.filename}: cannot be rendered: {error}") from None


def _find(name: str) -> Path:
    shipped = _HERE / f"{name}.txt"
    if shipped.is_file() and shipped.resolve().is_relative_to(_HERE):
        return shipped
    if Path(name).is_file():
        return Path(name)
    if shipped.parent in _DIALECTS and (_HERE / shipped.name).is_file():
        return shipped  # the general template, which finds what it includes in the folder first
    names = sorted(str(path.relative_to(_HERE).with_suffix("")) for path in _HERE.rglob("*.txt"))
    close = difflib.get_close_matches(name, names, n=1)
    advice = f"; did you mean {close[0]}?" if close else f": neither a file nor one of {', '.join(names)}"
    raise StepalignError(f"no template {name!r}{advice}")


@cache
def _environment(folder: Path) -> SandboxedEnvironment:
    loader = FileSystemLoader([folder, _HERE])  # a user's template may include those that ship with the package
    return SandboxedEnvironment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _sources(environment: SandboxedEnvironment, name: str, within: tuple[str, ...] = ()) -> dict[str, str]:
    """Read a template and those that it includes."""
    loader = environment.loader
    assert isinstance(loader, FileSystemLoader)
    if name in within:
        raise TemplateError(f"{name} includes itself")
    source, file, _ = loader.get_source(environment, name)
    if within and not is_within(Path(file), [Path(folder).resolve() for folder in loader.searchpath]):
        raise TemplateError(f"it includes {name}, which is hidden or a link to another folder")
    sources = {name: source}
    for included in meta.find_referenced_templates(environment.parse(source)):
        if included is None:
            raise TemplateError("it includes a template that a variable names")
        sources |= _sources(environment, included, (*within, name))
    return sources
