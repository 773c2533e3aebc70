"""Records in one line and as HTML tables."""

from kdpipe.schemas.display import MAX_LINE, MAX_TABLE_ROWS, html_table, one_line
from kdpipe.schemas.verify_report import Problem, VerifyReport

PROBLEM = Problem(part=3, file="parts/3/<b>", what="bytes differ", do="copy it again")


def report(*problems: Problem) -> VerifyReport:
    return VerifyReport(ok=not problems, level="fast", cache_id=None, parts=1204, bytes=5, problems=problems)


def test_a_record_is_one_short_line() -> None:
    assert repr(report()) == "VerifyReport(ok=True, level='fast', parts=1204, bytes=5, problems=(), notes=())"
    long = one_line("Long", dict.fromkeys("abcdefgh", "x" * 500))
    assert len(long) < MAX_LINE + 20 and long.endswith("...)") and "\n" not in long


def test_a_table_escapes_text_and_has_no_colors() -> None:
    page = report(PROBLEM)._repr_html_()
    assert "parts/3/&lt;b&gt;" in page and "<b>" not in page
    assert "1,204" in page and "cache_id" not in page, "numbers are grouped, empty values are left out"
    assert "color" not in page


def test_a_table_of_many_records_is_cut() -> None:
    page = report(*[PROBLEM] * 1000)._repr_html_()
    assert page.count("copy it again") == MAX_TABLE_ROWS and "1,000" in page
    assert len(html_table("Long", {"x": ["y" * 10_000], "z": {"a": {"b": 0.123456}}})) < 1000
