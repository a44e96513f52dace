import time

import pytest

from stepalign.probing.markdown import ATTRIBUTES, ELEMENTS, parse


def flat(trees) -> str:
    return "".join(tree if isinstance(tree, str) else flat(tree[2:]) for tree in trees)


def elements(trees) -> list[str]:
    return [name for tree in trees if not isinstance(tree, str) for name in (tree[0], *elements(tree[2:]))]


@pytest.mark.parametrize(
    "latex", ["$x=2$", "$$x=2$$", r"\(x=2\)", r"\[x=2\]", "$ x = 2 $", r"\boxed{2}", "$$\nx\n\n= 2\n$$"]
)
def test_mathematics_becomes_mathml(latex: str) -> None:
    assert "math" in elements(parse(f"so {latex} then"))


@pytest.mark.parametrize("text", ["It costs $5 and $6.", "$5+$6", "a $ b", r"\$5$", "$<<9*2=18>>18 every day for $2"])
def test_money_stays_money(text: str) -> None:
    assert parse(text) == [["div", {"class": "paragraph"}, text]]


def test_headings_rules_and_bold() -> None:
    assert elements(parse("### Step 1: *Go*\n**so**\n---\nend")) == ["h4", "div", "strong", "hr", "div"]


@pytest.mark.parametrize("latex", [r"$\nosuchcommand{x}$", "$a^{b_$", "$" + "{" * 900 + "$", r"\boxed{}$"])
def test_what_cannot_be_read_stays_as_it_was_written(latex: str) -> None:
    assert latex.replace("$", "") in flat(parse(latex)).replace("$", "") or "boxed" in latex


def test_a_tree_holds_known_elements_and_attributes_only() -> None:
    trees = parse(
        r"$\href{javascript:alert(1)}{x} \style{color:red}{y} \class{z}{w} \text{<script>}$" + "\n<img src=x>"
    )

    def check(tree) -> None:
        if not isinstance(tree, str):
            assert tree[0] in ELEMENTS
            assert set(tree[1]) <= ATTRIBUTES
            for child in tree[2:]:
                check(child)

    for tree in trees:
        check(tree)
    assert not {"href", "style"} & ATTRIBUTES


@pytest.mark.parametrize("sign", ["\\boxed{", "\\(", "$a", "**a", "$$", "\\[", "x"])
def test_a_megabyte_of_signs_is_read_at_once_and_stays_as_written(sign: str) -> None:
    text = sign * (1_000_000 // len(sign))
    start = time.process_time()
    assert parse(text) == [["div", {"class": "paragraph"}, text]]
    assert time.process_time() - start < 2
