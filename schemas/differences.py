"""Two records side by side: which keys differ, in words a person can act on.

In: two JSON values. Out: lines such as `targets.keep.tau: 0.04 there, 0.1 asked`, or, for two manifests, `--tau: 0.04
there, 0.1 asked`.
"""

import re
from collections.abc import Iterator
from typing import Any

Leaf = tuple[str, Any, Any]
# What a person knows a key of the manifest by, what matters most first; the longest that a key begins with counts.
CALLED = {
    "history": "what it was made from",
    "history.note": "what was chosen",
    "teacher": "the teacher",
    "teacher.name": "the teacher's name",
    "teacher.hub_id": "the teacher",
    "teacher.weights_sha256": "the teacher's weights",
    "teacher.revision": "--revision",
    "tokenizer": "the tokenizer",
    "data.fingerprint": "the documents, or how they are read",
    "data.source": "the name of the data",
    "data.columns": "data.columns.keep",
    "data.text": "--for-other-tokenizers",
    "data.train_on": "data.train_on",
    "plan.sequence_length": "--seq-len",
    "plan.packed": "whether documents are packed",
    "teacher.dtype": "--dtype",
    "teacher.n_layers": "the teacher's layers",
    "teacher.hidden_size": "the teacher's hidden size",
    "teacher.license": "the teacher's license",
    "teacher.remote_code": "--trust-remote-code",
    "tokenizer.chat_template_sha256": "the chat template",
    "tokenizer.files": "the tokenizer's files",
    "plan.splits": "how documents are shared out among parts",
    "targets.keep.kind": "--targets",
    "targets.keep.tau": "--tau",
    "targets.keep.k": "--top-k",
    "targets.keep.p": "--top-p",
    "targets.keep.draws": "--draws",
    "targets.keep.max_entries": "targets.max_entries",
    "targets.target_temperature": "--target-temperature",
    "targets.temperatures": "--temperatures",
    "targets.draw_values": "targets.draw_values",
    "hidden.pooled": "layers that are pooled over documents",
    "hidden.rows": "--hidden-layers",
    "hidden.rows.width": "--hidden-dim",
    "hidden.rows.projection": "hidden.projection",
    "seed": "--seed",
}
# What follows from something else, and is not told beside it.
FOLLOWS = {
    "data.fingerprint": ("history",),
    "data.source": ("history",),
    "arrays": ("",),
    "tables": ("",),
    "tokenizer.files": ("tokenizer.fingerprint",),
    "tokenizer.vocabulary_size": ("tokenizer.fingerprint",),
    "plan.splits": ("data.fingerprint", "tokenizer.fingerprint"),
    "targets.keep": ("targets.keep.kind",),
    "targets.boundary": ("data.text", "targets.keep.kind"),
    "targets.entropy": ("targets.keep.kind",),
    "hidden.pooled.projection.seed": ("seed",),
    "hidden.rows.projection.seed": ("seed",),
    "hidden.rows.group": ("hidden.rows.width",),
}
SHA256 = re.compile(r"^[0-9a-f]{64}$")


def differing_keys(there: Any, asked: Any, place: str = "") -> list[str]:
    """Every leaf in which two values differ."""
    return [f"{place}: {_short(a)} there, {_short(b)} asked" for place, a, b in _leaves(there, asked, place)]


def differing_settings(there: Any, asked: Any) -> list[str]:
    """What differs between two manifests, as those who give settings know it; what follows from it is left out."""
    leaves = {re.sub(r"\[\d+\]", "", place): (a, b) for place, a, b in _leaves(there, asked, "")}
    named = {_name(place): pair for place, pair in leaves.items() if not _follows(place, leaves)}
    order = {name: place for place, name in enumerate(CALLED.values())}
    names = sorted(named, key=lambda name: order.get(name, len(order)))
    return [f"{name}: {_said(named[name][0])} there, {_said(named[name][1])} asked" for name in names]


def _leaves(there: Any, asked: Any, place: str) -> Iterator[Leaf]:
    if isinstance(there, dict) and isinstance(asked, dict):
        for name in sorted(there.keys() | asked.keys()):
            yield from _leaves(there.get(name), asked.get(name), f"{place}.{name}".lstrip("."))
    elif isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        for n, (a, b) in enumerate(zip(there, asked, strict=True)):
            yield from _leaves(a, b, f"{place}[{n}]")
    elif there != asked:
        yield place, there, asked


def _name(place: str) -> str:
    known = [key for key in CALLED if f"{place}.".startswith(f"{key}.")]
    return CALLED[max(known, key=len)] if known else place


def _follows(place: str, leaves: dict[str, Any]) -> bool:
    others = [other for other in leaves if other != place and not other.startswith(("arrays", "tables"))]
    causes = [cause for key, named in FOLLOWS.items() if f"{place}.".startswith(f"{key}.") for cause in named]
    return any(other.startswith(cause) for cause in causes for other in others)


def _said(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict) and "action" in value:  # what was done to other caches
        return f"{value['action']} ({value.get('note', '')})"
    if isinstance(value, dict):  # a layer, a column, a teacher
        return str(value.get("layer", value.get("name", _short(value))))
    if isinstance(value, list):
        return ", ".join(_said(each) for each in value)
    return f"{value[:8]}..." if isinstance(value, str) and SHA256.match(value) else _short(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
