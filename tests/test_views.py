import pytest

from stepalign.views import View


def view(prompt: int = 3, completion: int = 4, start: int = 0, stop: int | None = None, first: int = 10) -> View:
    ids = tuple(range(first, first + prompt + completion))
    stop = completion if stop is None else stop
    return View(prompt_ids=ids[:prompt], completion_ids=ids[prompt:], loss_start=start, loss_stop=stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 5)])
def test_a_view_counts_within_its_completion(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="a span within the completion's 4 ids"):
        view(start=start, stop=stop)
    with pytest.raises(ValueError, match="a view needs a prompt"):
        view(prompt=0)
