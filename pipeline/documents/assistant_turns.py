"""Where the assistant speaks: found by rendering a conversation as far as each of its turns.

In: a conversation, its template and its text. Out: spans of characters, each from the first thing that the assistant
says to the end of its turn.

whole   <user>Hi<end><assistant>Hello<end><user>...
    head    <user>Hi<end><assistant>                       messages before the turn, with the generation prompt
    tail    <user>Hi<end><assistant>Hello<end>             the turn included
"""

import re
from collections.abc import Iterator, Sequence

from kdpipe.pipeline.documents.chat import ChatTemplate, RenderError
from kdpipe.pipeline.documents.columns import Message
from kdpipe.schemas.errors import Untrainable

Span = tuple[int, int]
# Some templates leave out what the assistant thought in earlier turns.
THOUGHT_END = "</think>"


def assistant_spans(chat: ChatTemplate, messages: Sequence[Message], whole: str, place: str) -> tuple[Span, ...]:
    """The span of every assistant turn."""
    spans: list[Span] = []
    for i, turn in enumerate(messages):
        if turn["role"] == "assistant":
            start, end = _span(chat, messages, i, whole, place)
            if spans and start < spans[-1][1]:
                raise _unstable(place, i, "the turn before it is written differently once it is there")
            spans.append((start, end))
    return tuple(spans)


def _span(chat: ChatTemplate, messages: Sequence[Message], i: int, whole: str, place: str) -> Span:
    content = str(messages[i].get("content") or "")
    try:
        head, tail = chat.text(messages[:i], True), chat.text(messages[: i + 1])
        asked = chat.opens_turns and whole.startswith(head)
        # Without a generation prompt, or with one that finished turns do not begin with, what comes before must do.
        before = head if asked else chat.text(messages[:i])
    except RenderError as error:
        raise _unstable(place, i, f"it refuses the messages up to there: {error}") from None
    if not whole.startswith(before):
        raise _unstable(place, i, "what comes before the turn is written differently once the turn is there")
    end = len(tail) if whole.startswith(tail) else _behind_stop(whole, len(before), content, chat.turn_ends)
    if end is not None:
        start = len(before) if asked else _behind_header(whole, len(before), end, content)
        if start is not None and start < end:
            return start, end
    raise _unstable(place, i, "the turn is written differently once others follow")


def _said(content: str) -> Iterator[str]:
    """What a turn says, and what of it some templates keep once others follow."""
    for said in (content.strip(), content.split(THOUGHT_END)[-1].strip()):
        if said:
            yield said


def _behind_stop(whole: str, before: int, content: str, turn_ends: Sequence[str]) -> int | None:
    """The end of a turn that is not written the same when it is the last: behind the stop token after its content."""
    stops = "|".join(re.escape(stop) for stop in sorted(turn_ends, key=len, reverse=True))
    for said in _said(content):
        found = re.compile(rf"{re.escape(said)}\s*(?:{stops})").search(whole, before) if stops else None
        if found:
            return found.end()
    return None


def _behind_header(whole: str, before: int, end: int, content: str) -> int | None:
    """Where the assistant begins to speak without having been asked to; a space before it is its own."""
    for said in _said(content):
        place = whole.rfind(said, before, end)
        if place >= 0:
            header = whole[before:place]
            return before + len(header.rstrip(" ")) if header.strip() else before
    return None


def _unstable(place: str, i: int, why: str) -> Untrainable:
    return Untrainable(
        f"{place}: the chat template does not tell where the assistant speaks in message {i + 1}: {why}",
        hint="name a template with {% generation %} marks with data.chat_template, or set data.train_on=all",
    )
