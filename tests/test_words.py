"""Plain words: no file has more of the phrases in words.txt than words_allowed.txt still allows."""

from support.words import allowed, counts, found


def test_no_file_has_more_of_a_banned_phrase_than_is_allowed() -> None:
    known = allowed()
    more = {f"{name}: {phrase!r}": n for (name, phrase), n in found().items() if n > known.get((name, phrase), 0)}
    assert not more


def test_what_is_allowed_is_still_there() -> None:
    now = found()
    assert {key: n for key, n in allowed().items() if now.get(key, 0) < n} == {}, "run make words"


def test_phrases_are_found_in_names_strings_comments_and_across_lines() -> None:
    source = "def _told(whoEver):\n    # goes\n    return 'is\\n none', 'forgone one', learnt_rows  # it goes on\n"
    assert counts(source, is_python=True) == {"told": 1, "goes on": 1, "learnt": 1}
    assert counts("It goes\non, 28 bytes a position; untold.", is_python=False) == {
        "goes on": 1,
        next(phrase for phrase in counts("bytes a row", is_python=False)): 1,
    }
