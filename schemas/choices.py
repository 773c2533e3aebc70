"""Closed choices, each defined once: what records check and what the command line offers.

In: nothing but the standard library. Out: `Literal`s.
"""

from typing import Literal

StudentSource = Literal["preset", "config", "folder", "hub"]
OptimizerName = Literal["adamw", "muon"]
# Of a student's parameters, by what they do: linear maps within the model, embeddings and head, everything else.
Role = Literal["matrices", "tables", "vectors"]
