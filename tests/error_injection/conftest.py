from pathlib import Path

import pytest

from stepalign import chat as tokens
from stepalign import config
from stepalign.chat import Chat


@pytest.fixture(scope="session")
def chat(tiny_llama: Path) -> Chat:
    return tokens.load(config.ModelConfig(name_or_path=str(tiny_llama)))
