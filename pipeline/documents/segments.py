"""`Segment`: a document as the teacher reads it, or as much of a long one as fits into a sequence.

In: nothing. Out: the record that tokenizing makes, packing arranges and the teacher answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.schemas.choices import SplitName


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """T tokens of one document; the teacher reads them alone, from the first one on.

    `document` is its number in `split`, `offset` the place of the first token in the document. Row t of `loss_mask` is
    true when token t + 1 is in the piece and is to be learnt. `digest` is 16 bytes of the sha256 of the tokens.
    `text` is what the tokens stand for, when it is kept.
    """

    split: SplitName
    document: int
    offset: int
    tokens: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.bool_]
    token_bytes: npt.NDArray[np.uint32]
    digest: bytes
    columns: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None

    def __len__(self) -> int:
        return len(self.tokens)
