"""Tables as pandas DataFrames; pandas is optional and imported on use."""

from typing import Any

from kdpipe.schemas.errors import UsageError


def data_frame(columns: Any) -> Any:
    """A DataFrame of columns or records."""
    try:
        import pandas
    except ImportError:
        raise UsageError("pandas is not installed", hint="pip install pandas") from None
    return pandas.DataFrame(columns)
