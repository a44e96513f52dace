import base64
import json
import zlib

import numpy as np

from stepalign.probing import page
from stepalign.probing.packing import FLOOR, UNIT, Arrays, Table, pack_top, script_json


def decode(block: str) -> dict:
    """A rollout's block as `data.js` reads it."""
    content = zlib.decompress(base64.b64decode(block))
    size = int.from_bytes(content[:4], "little")
    head = json.loads(content[4 : 4 + size])
    start = -(-(4 + size) // 4) * 4
    arrays = []
    for array in head["arrays"]:
        kind = "<u4" if array["type"] == "u4" else "<u2"
        assert (start + array["at"]) % 4 == 0  # a browser's typed arrays ask for it
        numbers = np.frombuffer(content, kind, array["length"], start + array["at"])
        arrays.append(-UNIT * numbers if array["type"] == "log" else numbers)
    return {**head, "arrays": arrays}


def test_what_a_block_holds_is_the_record(build_probe) -> None:
    probe = build_probe(4, contexts=2)
    _, table, blocks = page.pack(probe)
    texts = json.loads(zlib.decompress(base64.b64decode(table)))
    for rollout, packed in zip(probe.rollouts, blocks, strict=True):
        found = decode(packed)
        arrays = found["arrays"]
        assert "".join(found["pieces"]) == rollout.text
        assert [texts[dense] for dense in arrays[found["ids"]]] == [probe.tokens[t] for t in rollout.completion_ids]
        credits = [credit for credit in probe.credits if credit.rollout_id == rollout.id]
        for credit, kept in zip(credits, found["credits"], strict=True):
            assert kept["prompt"] == credit.prompt
            for side in ("student", "teacher"):
                assert np.abs(arrays[kept[side]] - getattr(credit, side)).max() <= UNIT / 2 + 1e-9
            top = kept["teacher_top"]
            ids = arrays[top["ids"]].reshape(-1, top["size"])
            assert [[texts[dense] for dense in row] for row in ids] == [
                [probe.tokens[token] for token, _ in entry] for entry in credit.teacher_top
            ]


def test_the_student_is_kept_once(build_probe) -> None:
    _, _, blocks = page.pack(build_probe(1, contexts=4))
    credits = decode(blocks[0])["credits"]
    assert len({credit["student"] for credit in credits}) == 1
    assert len({credit["teacher"] for credit in credits}) == 4


def test_less_likely_than_the_scale_goes_reads_as_its_end() -> None:
    arrays = Arrays()
    arrays.logs([-200.0, -0.0004, 0.0])
    _, content = arrays.write()
    assert list(np.frombuffer(content, "<u2", 3) * UNIT) == [FLOOR, 0, 0]


def test_many_tokens_take_wider_ids_and_short_lists_are_filled_up() -> None:
    arrays, table = Arrays(), Table({token: str(token) for token in range(70_000)})
    assert pack_top([((5, -1.0), (6, -2.0)), ((7, -0.5),)], table, arrays) == {"ids": 0, "logs": 1, "size": 2}
    directory, content = arrays.write()
    assert directory[0]["type"] == "u4"
    assert list(np.frombuffer(content, "<u4", 4)) == [0, 1, 2, 2]
    assert pack_top([(), ()], table, arrays) is None


def test_json_in_a_script_can_end_no_script() -> None:
    hostile = "</script><!--<script>&\u2028\ud800"
    packed = script_json({"a": hostile})
    assert not set("<>&\u2028") & set(packed)
    assert json.loads(packed) == {"a": hostile}
