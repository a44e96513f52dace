import base64
import dataclasses
import json
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import html5lib
import numpy as np
import pytest

from stepalign.probing import figures, page
from stepalign.probing.folder import Probe

HOSTILE = (
    "### Step 1: Break out\n</script><script>alert(1)</script><img src=x onerror=alert(1)> \"'&amp; {{ 7 * 7 }}\n"
    "read \u202eexe.gnp\u202c \u200b\x07\x00 \u2028 \ufeff <!-- --> $\\href{javascript:alert(1)}{x}$\n"
    "### Final Answer:\n\\boxed{4}"
)

SOLUTION = "### Step 1: Add\n2 + 3 = 5\n\n### Step 2: Add 41\n5 + 41 = 46\n\n### Final Answer:\n\\boxed{46}"


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def hostile(probe: Probe) -> Probe:
    """The probe with hostile text wherever a model, a data set or a user can put some."""
    bad = "</script><script>alert(1)</script>"
    return dataclasses.replace(
        probe,
        problems=tuple(
            dataclasses.replace(one, statement=HOSTILE, solution=HOSTILE, answer=bad) for one in probe.problems
        ),
        rollouts=tuple(dataclasses.replace(one, id=bad + one.id) for one in probe.rollouts),
        critic_results=tuple(
            dataclasses.replace(one, rollout_id=bad + one.rollout_id, text=HOSTILE, critic=bad)
            for one in probe.critic_results
        ),
        marks=tuple(dataclasses.replace(one, rollout_id=bad + one.rollout_id) for one in probe.marks),
        credits=tuple(
            dataclasses.replace(one, rollout_id=bad + one.rollout_id, context=bad + one.context, prompt=HOSTILE)
            for one in probe.credits
        ),
        tokens={token: bad + text for token, text in probe.tokens.items()},
        manifest={"created": bad, "asked": {"model": {"name_or_path": bad}}},
    )


def test_the_page_asks_nothing_of_a_network_and_runs_only_its_own_script(build_probe) -> None:
    html = page.render(build_probe(), figures={})
    assert not re.search(r"https?://(?!www\.w3\.org/)", html)
    tags = Page(html).tags
    assert not [
        tag for tag, of in tags if {"src", "href"} & set(of) and not (of.get("href") or "#").startswith(("#", "data:,"))
    ]
    (policy,) = [of["content"] for _, of in tags if of.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'; script-src 'sha256-" in policy
    assert sum(tag == "script" and "type" not in of for tag, of in tags) == 1


def test_hostile_text_makes_no_element(build_probe) -> None:
    plain = build_probe(2, contexts=1)
    tame, wild = (
        Page(page.render(one, figures={})).tags
        for one in (plain, hostile(build_probe(2, contexts=1, texts=(HOSTILE, HOSTILE))))
    )
    assert [tag for tag, _ in wild] == [tag for tag, _ in tame]
    assert not [of for _, of in wild if "onerror" in of]


@pytest.mark.parametrize("wild", [False, True])
def test_the_html_is_valid(build_probe, wild: bool) -> None:
    probe = build_probe(2, texts=(HOSTILE,) if wild else ())
    html5lib.HTMLParser(strict=True).parse(page.render(hostile(probe) if wild else probe, figures={}))


def test_scripts_never_parse_markup() -> None:
    script = page.join_scripts()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(", script
    )
    assert "</script" not in script.lower()
    assert "<!--" not in script


def decode(block: str) -> Any:
    """Decode a block as `page.js` does."""
    head, _, planes = zlib.decompress(base64.b64decode(block)).partition(b"\0")
    numbers = np.frombuffer(planes, np.uint8).reshape(3, -1).T @ [1, 256, 65536]
    found = json.loads(head)
    for scored in filter(None, [found.get("student"), *found.get("credits", [])]):
        scored["logs"] = -page.UNIT * numbers[slice(*scored["logs"])]
        if scored["top"]:
            scored["top"] = {
                "ids": numbers[slice(*scored["top"]["ids"])],
                "logs": -page.UNIT * numbers[slice(*scored["top"]["logs"])],
            }
    return found


def test_a_block_holds_the_records_numbers_and_the_student_once(build_probe) -> None:
    probe = build_probe(4, contexts=2)
    _, blocks = page.pack(probe)
    assert list(blocks) == ["tokens", *(f"rollout-{number}" for number in range(4))]
    assert decode(blocks["tokens"]) == {str(token): text for token, text in probe.tokens.items()}
    for number, rollout in enumerate(probe.rollouts):
        found = decode(blocks[f"rollout-{number}"])
        assert "".join(found["pieces"]) == rollout.text
        assert tuple(found["ids"]) == rollout.completion_ids
        credits = [credit for credit in probe.credits if credit.rollout_id == rollout.id]
        np.testing.assert_allclose(found["student"]["logs"], credits[0].student, atol=page.UNIT / 2)
        for credit, packed in zip(credits, found["credits"], strict=True):
            assert packed["prompt"] == credit.prompt
            np.testing.assert_allclose(packed["logs"], credit.teacher, atol=page.UNIT / 2)
            ids, logs = zip(*(entry for entries in credit.teacher_top for entry in entries), strict=True)
            assert tuple(packed["top"]["ids"]) == ids
            np.testing.assert_allclose(packed["top"]["logs"], logs, atol=page.UNIT / 2)
            assert "student" not in packed


def test_a_block_keeps_large_token_ids_and_small_probabilities(build_probe) -> None:
    probe = build_probe(1, contexts=1, top=1)
    rollout, credit = probe.rollouts[0], probe.credits[0]
    size = len(rollout.completion_ids)
    rare = dataclasses.replace(
        credit, teacher=(-200.0,) * size, teacher_top=(((200_000, -0.0004),),) * size, student_top=()
    )
    (packed,) = decode(page.pack(dataclasses.replace(probe, credits=(rare,)))[1]["rollout-0"])["credits"]
    assert set(packed["logs"]) == {-200.0}
    assert (set(packed["top"]["ids"]), set(packed["top"]["logs"])) == ({200_000}, {0.0})


def test_json_in_a_script_can_end_no_script(build_probe) -> None:
    foreign = "</script><!--<script>&\u2028"
    probe = build_probe(1)
    probe = dataclasses.replace(probe, rollouts=(dataclasses.replace(probe.rollouts[0], id=foreign),), marks=())
    html = page.render(probe, figures={})
    packed = html.split('<script type="application/json" id="index">')[1].split("</script>")[0]
    assert not set("<>&\u2028") & set(packed)
    assert json.loads(packed)["rollouts"][0]["id"] == foreign


def test_the_list_has_each_rollouts_own_measures(build_probe) -> None:
    index, _ = page.pack(build_probe(2, contexts=2))
    right, wrong = index["rollouts"]
    assert (right["correct"], right["step"], wrong["correct"], wrong["step"]) == (True, None, False, 1)
    assert set(right["measures"][0]) == {"mean", "negative"}
    assert set(wrong["measures"][1]) == {"mean", "negative", "before", "at", "after"}
    assert "two boxes of 12 pens" in right["search"]


def test_sections_tile_the_tokens(build_probe) -> None:
    probe = build_probe(1, texts=("Well.\n\n" + SOLUTION,))
    rollout = decode(page.pack(probe)[1]["rollout-0"])
    assert [section["label"] for section in rollout["sections"]] == ["", "step 1", "step 2", "answer"]
    assert rollout["sections"][0]["first"] == 0
    assert "".join(rollout["pieces"][rollout["sections"][2]["first"] :]).startswith("### Step 2")


def test_a_probe_without_likeliest_tokens_or_marks_or_credit_is_a_page(build_probe) -> None:
    bare = dataclasses.replace(build_probe(2, top=0), marks=(), critic_results=(), problems=())
    assert "none known" in page.render(bare, figures={})
    assert page.render(Probe(problems=(), rollouts=()), figures={})


def test_what_is_written_has_the_pictures_in_it(build_probe, tmp_path) -> None:
    probe = build_probe()
    html = page.write(
        probe, tmp_path / "probe.html", figures.write(probe, tmp_path / "figures", rollouts=1)
    ).read_text()
    assert html.count("<svg") == 4
    assert html.count('class="narrow"') == 2
    assert "at the error" in html
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--series-1)" in drawn
    assert "DejaVu" not in drawn
