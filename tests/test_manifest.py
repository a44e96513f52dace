from pathlib import Path

import pytest

from stepalign.errors import StepalignError
from stepalign.manifest import read_manifest


def test_a_folder_without_a_manifest_has_an_empty_one(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == {}
    (tmp_path / "file").touch()
    assert read_manifest(tmp_path / "file") == {}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("{", "the whole"),
        ("[]", "the whole"),
        ('{"base": 3}', "base"),
        ('{"date": "soon"}', "date"),
        ('{"float32_matmul_precision": "low"}', "float32_matmul_precision"),
        ('{"problems": {"dropped": {"duplicate": -1}}}', "problems.dropped.duplicate"),
    ],
)
def test_a_damaged_manifest_is_an_error_that_names_the_key(content: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StepalignError, match=rf"manifest\.json: not a valid Manifest: {key}: "):
        read_manifest(tmp_path)
