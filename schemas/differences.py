"""Differences between two records, by the names of settings.

In: two JSON values. Out: lines such as `targets.keep.tau: existing 0.04, requested 0.1`, or, for two manifests, `--tau:
existing 0.04, requested 0.1`.
"""

import re
from collections.abc import Iterator
from typing import Any

Leaf = tuple[str, Any, Any]
FORM = "existing {}, requested {}"
# The setting for a key of the manifest, most important first; the longest matching prefix counts.
CALLED = {
    "history": "source caches",
    "history.note": "selection",
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
    "plan.splits": "the assignment of documents to parts",
    "targets.keep.kind": "--targets",
    "targets.keep.tau": "--tau",
    "targets.keep.k": "--top-k",
    "targets.keep.p": "--top-p",
    "targets.keep.draws": "--draws",
    "targets.keep.max_entries": "targets.max_entries",
    "targets.target_temperature": "--target-temperature",
    "targets.temperatures": "--temperatures",
    "targets.draw_values": "targets.draw_values",
    "hidden.pooled": "layers pooled over documents",
    "hidden.rows": "--hidden-layers",
    "hidden.rows.width": "--hidden-dim",
    "hidden.rows.projection": "hidden.projection",
    "seed": "--seed",
}
# Keys that follow from others, and are not reported next to them.
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


def differing_keys(existing: Any, requested: Any, place: str = "", form: str = FORM) -> list[str]:
    """Every leaf in which two values differ, in words of the given form."""
    leaves = _leaves(existing, requested, place)
    return [f"{place}: {form.format(_short(a), _short(b))}" for place, a, b in leaves]


def differing_settings(existing: Any, requested: Any, form: str = FORM) -> list[str]:
    """The differences between two manifests by setting, without those that follow from others."""
    leaves = {re.sub(r"\[\d+\]", "", place): (a, b) for place, a, b in _leaves(existing, requested, "")}
    named = {_name(place): pair for place, pair in leaves.items() if not _is_consequence(place, leaves)}
    order = {name: place for place, name in enumerate(CALLED.values())}
    names = sorted(named, key=lambda name: order.get(name, len(order)))
    return [f"{name}: {form.format(*map(_in_words, named[name]))}" for name in names]


def _leaves(existing: Any, requested: Any, place: str) -> Iterator[Leaf]:
    if isinstance(existing, dict) and isinstance(requested, dict):
        for name in sorted(existing.keys() | requested.keys()):
            yield from _leaves(existing.get(name), requested.get(name), f"{place}.{name}".lstrip("."))
    elif isinstance(existing, list) and isinstance(requested, list) and len(existing) == len(requested):
        for n, (a, b) in enumerate(zip(existing, requested, strict=True)):
            yield from _leaves(a, b, f"{place}[{n}]")
    elif existing != requested:
        yield place, existing, requested


def _name(place: str) -> str:
    known = [key for key in CALLED if f"{place}.".startswith(f"{key}.")]
    return CALLED[max(known, key=len)] if known else place


def _is_consequence(place: str, leaves: dict[str, Any]) -> bool:
    others = [other for other in leaves if other != place and not other.startswith(("arrays", "tables"))]
    causes = [cause for key, named in FOLLOWS.items() if f"{place}.".startswith(f"{key}.") for cause in named]
    return any(other.startswith(cause) for cause in causes for other in others)


def _in_words(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict) and "action" in value:
        return f"{value['action']} ({value.get('note', '')})"
    if isinstance(value, dict):  # a layer, a column, a teacher
        return str(value.get("layer", value.get("name", _short(value))))
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value)
    return f"{value[:8]}..." if isinstance(value, str) and SHA256.match(value) else _short(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
