"""Arguments of the public functions are checked before any work."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import NonNegativeInt, PositiveInt

import stepalign
from stepalign.arguments import checked
from stepalign.config import ModelConfig
from stepalign.errors import StepalignError

FUNCTIONS = [name for name in stepalign.__all__ if inspect.isfunction(getattr(stepalign, name))]


@checked
def example(
    recipe: stepalign.Recipe | Path | str,
    out: Path | str | None = None,
    *,
    samples: PositiveInt = 1,
    seed: NonNegativeInt = 0,
    flag: bool = False,
    dtype: Literal["float32", "float16"] | None = None,
    contexts: Callable[..., str] | str | Sequence[Callable[..., str] | str] = (),
    rollouts: Path | str | Sequence[stepalign.Rollout] = (),
    **others: object,
) -> dict[str, object]:
    return {"out": out, "samples": samples, "contexts": contexts, **others}


def test_arguments_of_the_right_types_arrive_as_they_are() -> None:
    given = {"out": Path("a"), "samples": 3, "contexts": [repr, "refsol"], "problems": 3}
    assert example("recipe.toml", **given) == given  # type: ignore[arg-type]
    assert example(Path("recipe.toml"), contexts=repr, seed=0, dtype="float16")["contexts"] is repr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": None}, "recipe: a Recipe or a path is wanted, found None"),
        ({"recipe": {"name": "a"}}, r"recipe: a Recipe or a path is wanted, found \{'name': 'a'\}"),
        ({"out": ["a"]}, r"out: a path or None is wanted, found \['a'\]"),
        ({"out": b"a"}, "out: a path or None is wanted"),
        ({"out": ""}, "out: a path or None is wanted, found ''"),
        ({"samples": "2"}, "samples: a whole number from 1 is wanted, found '2'"),
        ({"samples": 0}, "samples: a whole number from 1 is wanted, found 0"),
        ({"samples": True}, "samples: a whole number from 1 is wanted, found True"),
        ({"seed": -1}, "seed: a whole number from 0 is wanted, found -1"),
        ({"flag": 1}, "flag: True or False is wanted, found 1"),
        ({"dtype": "int8"}, "dtype: 'float32' or 'float16' or None is wanted, found 'int8'"),
        ({"contexts": 3}, "contexts: a function or a string or a list of functions or strings is wanted, found 3"),
        ({"contexts": [3]}, "contexts: a function"),
        ({"rollouts": [{"id": "a"}]}, r"rollouts: a path or a list of Rollouts is wanted, found \[\{'id': 'a'\}\]"),
        ({"rollouts": 3}, "rollouts: a path or a list of Rollouts is wanted, found 3"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(StepalignError, match=message):
        example(**{"recipe": "recipe.toml"} | wrong)


@pytest.mark.parametrize("name", [*FUNCTIONS, "TrainResult"])
def test_every_public_function_names_an_argument_of_another_type(name: str) -> None:
    function = getattr(stepalign, name)
    parameters = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
    required: dict[str, Any] = {one.name: "missing" for one in parameters if one.default is one.empty}
    if "model" in required:
        required["model"] = ModelConfig(name_or_path="lab")
    if name == "compare":
        required = dict.fromkeys(required, ())
    for parameter in parameters:
        with pytest.raises(StepalignError, match=rf"^{parameter.name}: .* wanted, found <object"):
            function(**required | {parameter.name: object()})
