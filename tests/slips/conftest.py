from pathlib import Path

import pytest

from stepalign import recipe, tokens
from stepalign.tokens import Chat


@pytest.fixture(scope="session")
def chat(tiny_llama: Path) -> Chat:
    return tokens.load(recipe.Model(path=str(tiny_llama)))
