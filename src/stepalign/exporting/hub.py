"""Upload to the Hugging Face hub of what `export` wrote."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, HfApi

from stepalign.arguments import checked
from stepalign.config.model import is_local
from stepalign.errors import StepalignError, first_line
from stepalign.exporting import export
from stepalign.exporting.dataset import WITHOUT_WEIGHTS, export_dataset, refuse_options


@dataclass(frozen=True)
class Pushed:
    """Files that were uploaded to a repository, or would be."""

    repo: str
    kind: Literal["model", "dataset"]
    files: dict[str, int]
    """Bytes by name."""
    url: str | None
    """The address of the upload; None for a dry run."""


@checked
def push(
    folder: Path | str,
    repo: str,
    *,
    dataset: bool = False,
    dry_run: bool = False,
    private: bool = False,
    **options: Any,
) -> Pushed:
    """Upload a run's checkpoint, or its rollouts and critiques, or a folder that `export` wrote.

    Args:
        folder: the folder of a run, or of an export, which is uploaded as it is.
        repo: `owner/name`; it is made if it does not exist.
        dataset: upload a run's rollouts and critiques.
        dry_run: upload nothing, and return what would be.
        private: a repository that is made is private.
        **options: `export`'s, for the folder of a run.

    Raises:
        StepalignError: nobody else could load the adapter's base, an option would do nothing, or the hub refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise StepalignError(f"repository {repo!r}: owner/name is wanted")
    folder = Path(folder)
    kind: Literal["model", "dataset"] = "dataset" if dataset else "model"
    is_dataset = any(folder.glob("*.parquet")) and not (folder / "rollouts").is_dir()
    if is_dataset and not dataset:
        raise StepalignError(f"{folder}: a data set, which is uploaded with --dataset")
    if dataset:
        refuse_options(options, WITHOUT_WEIGHTS)
    with TemporaryDirectory() as temporary:
        made = Path(temporary) / "export"
        if dataset and not is_dataset:
            export_dataset(folder, made)
        elif not dataset and (folder / "checkpoints").is_dir():
            export(folder, made, repo=repo, **options)
        else:
            made = folder
            refuse_options(options, f"{folder} is no run with checkpoints: give it to `stepalign export`")
        _check(made, kind)
        files = {str(path.relative_to(made)): path.stat().st_size for path in sorted(made.rglob("*")) if path.is_file()}
        return Pushed(repo, kind, files, None if dry_run else _upload(made, files, repo, kind, private))


def _check(folder: Path, kind: str) -> None:
    """Refuse a folder of something else, a checkpoint, and an adapter whose base is on this machine alone."""
    if (folder / "state.json").exists():
        raise StepalignError(f"{folder}: a checkpoint, with the optimizer's state: name the run's folder, and its step")
    if kind == "model" and not any((folder / name).exists() for name in ("adapter_config.json", "config.json")):
        raise StepalignError(f"{folder}: neither a run with checkpoints nor a folder that `stepalign export` wrote")
    path = folder / "adapter_config.json"
    base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"] if path.exists() else ""
    if base and (is_local(base) or Path(base).is_dir()):
        raise StepalignError(
            f"the adapter's base is the folder {base}, which others do not have: name it as they find it with "
            "--base owner/model, or merge with --merge. An exported folder is to be exported again with one of these"
        )


def _upload(folder: Path, files: Iterable[str], repo: str, kind: Literal["model", "dataset"], private: bool) -> str:
    """Upload files in one commit. The vLLM line of an export's card names the repository there, not the folder."""
    additions = [CommitOperationAdd(name, folder / name) for name in files if name != "README.md"]
    if (card := folder / "README.md").exists():
        serve = re.compile(r"^(vllm serve (?:.*[ =])?)\.$", re.MULTILINE)
        text = serve.sub(rf"\g<1>{repo}", card.read_text(encoding="utf-8"))
        additions.append(CommitOperationAdd("README.md", text.encode()))
    api = HfApi()
    try:
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        commit = api.create_commit(repo, additions, commit_message="Upload by Stepalign", repo_type=kind)
        return str(commit.repo_url)
    except Exception as error:  # HTTP errors, no token, no connection: types of several packages
        raise StepalignError(f"{repo}: the hub refused: {first_line(error)}") from None
