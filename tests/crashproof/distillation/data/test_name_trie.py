import pytest

from crashproof.distillation.data.name_trie import allowed_next


def test_where_names_diverge_each_may_continue() -> None:
    assert [[1], [2, 5], [3]] == allowed_next([1, 2, 3], [[1, 2, 3], [1, 5, 3]])


def test_a_name_that_is_a_prefix_of_another_is_recognized_by_its_end() -> None:
    search, search_web = [7, 1], [7, 8, 9, 1]

    assert [[7], [1, 8]] == allowed_next(search, [search, search_web])
    assert [[7], [1, 8], [9], [1]] == allowed_next(search_web, [search, search_web])


def test_one_offered_name_leaves_nothing_to_choose() -> None:
    assert [[4], [2]] == allowed_next([4, 2], [[4, 2]])


@pytest.mark.parametrize("chosen", [[1, 2, 9], [1, 3, 9], [4, 9]])
def test_each_chosen_token_is_among_the_allowed(chosen: list[int]) -> None:
    allowed = allowed_next(chosen, [[1, 2, 9], [1, 3, 9], [4, 9]])

    assert all(token in ids for token, ids in zip(chosen, allowed, strict=True))
