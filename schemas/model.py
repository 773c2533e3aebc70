"""Which model is meant: the teacher of stage one, the student of stage two.

In: flags and files. Out: a name that transformers loads, a folder or a hub id, and what goes with it.
Before it: `records.py`. After it: `stage_one.py`, `stage_two.py`; `pipeline/models/shapes.py` reads the config.
"""

from typing import Annotated

from pydantic import Field

from kdpipe.schemas.records import Record

Name = Annotated[str, Field(min_length=1, max_length=2000)]


class ModelSettings(Record):
    """A model folder or hub id; its own code runs only when asked."""

    name: Name | None = None
    revision: Name | None = None
    trust_remote_code: bool = False
