"""The page in a real browser. Run with `pytest -m slow -s`; the load time of a large page is printed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepalign.probing import page
from stepalign.report.display import HIDDEN

pytestmark = pytest.mark.slow

HOSTILE = (
    "### Step 1: Break out\n</script><script>alert(1)</script><img src=x onerror=alert(1)> \"'&amp; {{ 7 * 7 }}\n"
    "read \u202eexe.gnp\u202c \u200b\x07\x00\x0d \u2028\ufeff <!-- --> \U0001f469\u200d\U0001f52c\n"
    "### Final Answer:\n\\boxed{4}"
)


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Callable[..., Any]:
    """A function: open a probe's page and wait for its first rollout. Anything on the console fails the test."""
    from selenium.webdriver.support.ui import WebDriverWait

    def open_(probe: Any, fragment: str = "") -> Any:
        path = tmp_path / "probe.html"
        path.write_text(page.render(probe, figures={}), encoding="utf-8")
        browser.get(f"{path.as_uri()}{fragment}")
        WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.documentElement.dataset.ready"))
        assert browser.get_log("browser") == []
        return browser

    return open_


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def active(browser: Any) -> int:
    return int(browser.execute_script("return state.token"))


def settled(browser: Any, script: str, wanted: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 5).until(lambda b: b.execute_script(f"return {script}") == wanted)


def test_keys_lead_through_rollouts_and_tokens(show, build_probe) -> None:
    from selenium.webdriver.common.keys import Keys

    probe = build_probe(4, tokens=80)
    browser = show(probe, "#rollout=1&contexts=1")
    press(browser, "j")
    settled(browser, "state.rollout", 1)
    press(browser, "e")
    error = int(browser.execute_script("return rollout.mark.wrong"))
    assert active(browser) == error
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert active(browser) == error + 1
    press(browser, Keys.ARROW_DOWN)
    below = active(browser)
    assert below > error + 1
    press(browser, Keys.ARROW_UP)
    assert active(browser) < below
    press(browser, Keys.END)
    assert active(browser) == 79
    press(browser, Keys.PAGE_UP)
    assert browser.execute_script("return rollout.sections.some((section) => section.first === state.token)")
    press(browser, Keys.HOME)
    assert active(browser) == 0
    described = browser.execute_script(
        "const list = document.activeElement; const option = document.getElementById(list.getAttribute("
        "'aria-activedescendant')); return [list.getAttribute('role'), option.getAttribute('role'), option.ariaLabel]"
    )
    assert described[:2] == ["listbox", "option"]
    assert "nats under stepalign, student" in described[2]
    press(browser, "/")
    press(browser, *"pens/002")
    settled(browser, "order.join()", "2")
    press(browser, Keys.ENTER)
    settled(browser, "state.rollout", 2)
    press(browser, Keys.ESCAPE, "c")
    settled(browser, "state.shown.join()", "1")
    press(browser, "s")
    settled(browser, "document.querySelectorAll('#solution .tokens').length", 2)


def test_arrows_in_the_list_show_the_next_rollout_and_a_head_sorts(show, build_probe) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = show(build_probe(4), "#rollout=1&contexts=1")
    browser.execute_script("document.querySelector('#rows .current button').focus()")
    press(browser, Keys.ARROW_DOWN)
    settled(browser, "document.activeElement.textContent", "pens/001")
    browser.find_element("css selector", "#columns th[data-key=at] button").click()
    ordered = browser.execute_script("return order.map((k) => INDEX.rollouts[k].measures[0].at ?? null)")
    assert ordered[:2] == sorted(ordered[:2], reverse=True)
    assert ordered[2:] == [None, None]
    assert browser.find_element("css selector", "#columns th[data-key=at]").get_attribute("aria-sort") == "descending"


def test_the_page_opens_on_a_marked_solution_with_tinted_tokens(show, build_probe) -> None:
    browser = show(build_probe(4))
    assert browser.execute_script("return rollout.mark !== null")
    assert browser.execute_script(
        "return state.rollout === INDEX.first.rollout && state.shown[0] === INDEX.first.context"
    )
    strengths = (
        "[...document.querySelectorAll('#solution .token')].map((t) => parseInt(t.style.getPropertyValue('--mix')))"
    )
    assert max(browser.execute_script(f"return {strengths}")) > 0


@pytest.mark.parametrize("key", [*"jkcsere?", "/"])
@pytest.mark.parametrize("place", ["#solution .tokens", "#rows .current button", "#next", "#previous"])
def test_no_key_loses_the_focus(show, build_probe, place: str, key: str) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = show(build_probe(4), "#rollout=2&contexts=1")
    browser.execute_script("document.querySelector(arguments[0]).focus()", place)
    for _ in range(2):
        press(browser, key)
        if key in "/?":
            press(browser, Keys.ESCAPE)
        settled(browser, "document.activeElement !== document.body", True)
    if key in "/?cs":
        there = "return document.activeElement.closest(arguments[0].split(' ')[0]) !== null"
        assert browser.execute_script(there, place)


def test_the_card_has_the_records_numbers(show, build_probe) -> None:
    probe = build_probe(2, contexts=2)
    browser = show(probe, "#rollout=2")
    from selenium.webdriver.common.action_chains import ActionChains

    at = 5
    token = browser.find_element("css selector", f".token[data-i='{at}']")
    ActionChains(browser).move_to_element(token).perform()
    card = browser.find_element("id", "card")
    assert card.is_displayed()
    first, second = [credit for credit in probe.credits if credit.rollout_id == "pens/001"]
    rows = [row.text.split() for row in card.find_elements("css selector", "tbody tr")]
    for row, credit in zip(rows, (first, second), strict=False):
        assert row[0] == credit.context
        shown = [float(number.replace("−", "-")) for number in row[1:3]]
        assert shown == pytest.approx([credit.values[at], credit.teacher[at]], abs=0.0011)
    assert rows[2][0] == "student"
    listed = [item.text.split("\n")[0] for item in card.find_elements("css selector", ".tops div:last-child li code")]
    wanted = [probe.tokens[token].replace(" ", "␣").replace("\n", "↵") for token, _ in first.teacher_top[at]]
    assert listed[:5] == wanted


def test_hostile_text_stays_text(show, build_probe) -> None:
    import dataclasses

    probe = build_probe(2, texts=(HOSTILE, HOSTILE))
    hostile = dataclasses.replace(
        probe,
        problems=tuple(dataclasses.replace(one, statement=HOSTILE, solution=HOSTILE) for one in probe.problems),
        credits=tuple(dataclasses.replace(one, prompt=HOSTILE) for one in probe.credits),
        tokens={token: f"</script>{text}\u202e" for token, text in probe.tokens.items()},
    )
    browser = show(hostile, "#rollout=2&token=3")
    before = browser.execute_script("return document.querySelectorAll('script').length")
    shown = browser.execute_script("return document.querySelector('#solution .tokens').textContent")
    assert shown == HIDDEN.sub(lambda match: f"U+{ord(match[0]):04X}", HOSTILE)
    folded = browser.execute_script(
        "return [...document.querySelectorAll('#asides pre')].map((pre) => pre.textContent)"
    )
    assert set(folded) == {shown}
    press(browser, "e")
    press(browser, "r")
    assert (
        browser.execute_script("return document.querySelectorAll('main img, main a, main script, main iframe').length")
        == 0
    )
    assert browser.execute_script("return document.querySelectorAll('script').length") == before
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text


def test_the_policy_forbids_network_foreign_scripts_and_markup_from_text(show, build_probe) -> None:
    browser = show(build_probe(1))
    asked = browser.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('went'), () => done('refused'))"
    )
    assert asked == "refused"
    assert any("Content Security Policy" in line["message"] for line in browser.get_log("browser"))
    assert (
        browser.execute_script("try { document.body.innerHTML = '<b>x</b>' } catch { return 'refused' }") == "refused"
    )
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    browser.get_log("browser")  # refusals are logged; the next test wants an empty log


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_reaches_over_the_window(show, build_probe, in_window, width: int) -> None:
    browser = show(build_probe(2, tokens=200, contexts=4), "#rollout=2&contexts=1-2-3-4")
    with in_window(width):
        press(browser, "e")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        box = browser.find_element("id", "card").rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_the_switch_makes_it_dark(show, build_probe) -> None:
    browser = show(build_probe(1))
    colour = "getComputedStyle(document.body).backgroundColor"
    browser.execute_script("document.querySelector('input[value=dark]').click()")
    settled(browser, colour, "rgb(20, 23, 26)")
    browser.execute_script("document.querySelector('input[value=light]').click()")
    settled(browser, colour, "rgb(255, 255, 255)")


def test_two_hundred_rollouts_of_five_hundred_tokens_open_soon(show, build_probe, tmp_path) -> None:
    browser = show(build_probe(200, tokens=500, contexts=4))
    loads = []
    for _ in range(5):
        browser.refresh()
        settled(browser, "document.documentElement.dataset.ready", "true")
        loads.append(browser.execute_script("return performance.getEntriesByName('interactive')[0].startTime"))
    size = (tmp_path / "probe.html").stat().st_size
    print(f"\n200 × 500 tokens × 4 contexts: {size / 1e6:.1f} MB, interactive after {sorted(map(round, loads))} ms")
    assert min(loads) < 10_000  # a bound for a broken page, not a claim of speed


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\u200b" * 5_000 + "y" * 900_000], ids=["plain", "hidden"])
def test_a_megabyte_without_spaces_does_not_hang_the_page(text: str, show, build_probe) -> None:
    import dataclasses
    import time

    probe = build_probe(2)
    long = dataclasses.replace(
        probe,
        problems=tuple(dataclasses.replace(one, statement=text, solution=text) for one in probe.problems),
        credits=tuple(dataclasses.replace(one, prompt=text) for one in probe.credits),
    )
    browser = show(long, "#rollout=2&token=1")
    start = time.perf_counter()
    press(browser, "r")
    browser.execute_script("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
    assert browser.execute_script("return document.body.getBoundingClientRect().height") > 0
    print(f"\n{len(text):,} characters in each fold: read and unfolded after {time.perf_counter() - start:.1f} s")
    assert browser.execute_script("return document.getElementById('problem').textContent.length") >= 900_000
