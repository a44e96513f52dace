from pathlib import Path

import pytest

from stepalign import config
from stepalign.chat import Chat, load_chat


@pytest.fixture(scope="session")
def chat(tiny_llama: Path) -> Chat:
    return load_chat(config.ModelConfig(name_or_path=str(tiny_llama)))
