"""The assistant's turns in a rendered conversation, found by rendering the conversation up to each turn.

In: a conversation, its template and its text. Out: spans of characters, from the start of a reply to the end of its
turn.

whole   <user>Hi<end><assistant>Hello<end><user>...
    head    <user>Hi<end><assistant>                       messages before the turn, with the generation prompt
    tail    <user>Hi<end><assistant>Hello<end>             up to and including the turn
"""

import re
from collections.abc import Iterator, Sequence

from kdpipe.pipeline.documents.chat_template import ChatTemplate, RenderError
from kdpipe.pipeline.documents.columns import Message
from kdpipe.schemas.errors import Untrainable

Span = tuple[int, int]
# Some templates drop the thinking of earlier turns.
THOUGHT_END = "</think>"


def assistant_spans(chat: ChatTemplate, messages: Sequence[Message], whole: str, place: str) -> tuple[Span, ...]:
    """The span of every assistant turn."""
    spans: list[Span] = []
    for i, turn in enumerate(messages):
        if turn["role"] == "assistant":
            start, end = _span(chat, messages, i, whole, place)
            if spans and start < spans[-1][1]:
                raise _unstable(place, i, "adding it changes how the previous turn is rendered")
            spans.append((start, end))
    return tuple(spans)


def _span(chat: ChatTemplate, messages: Sequence[Message], i: int, whole: str, place: str) -> Span:
    content = str(messages[i].get("content") or "")
    try:
        head, tail = chat.text(messages[:i], True), chat.text(messages[: i + 1])
        prompted = chat.opens_turns and whole.startswith(head)
        # Without a generation prompt, or if finished turns do not begin with it, use the messages before the turn.
        before = head if prompted else chat.text(messages[:i])
    except RenderError as error:
        raise _unstable(place, i, f"it rejects the messages up to there: {error}") from None
    if not whole.startswith(before):
        raise _unstable(place, i, "adding it changes how earlier messages are rendered")
    end = len(tail) if whole.startswith(tail) else _after_stop(whole, len(before), content, chat.turn_ends)
    if end is not None:
        start = len(before) if prompted else _after_header(whole, len(before), end, content)
        if start is not None and start < end:
            return start, end
    raise _unstable(place, i, "later turns change how it is rendered")


def _replies(content: str) -> Iterator[str]:
    """The content of a turn, and the part of it that templates keep in earlier turns."""
    for reply in (content.strip(), content.split(THOUGHT_END)[-1].strip()):
        if reply:
            yield reply


def _after_stop(whole: str, before: int, content: str, turn_ends: Sequence[str]) -> int | None:
    """The end of a turn that is rendered differently when it is the last: after the stop token after its content."""
    stops = "|".join(re.escape(stop) for stop in sorted(turn_ends, key=len, reverse=True))
    for reply in _replies(content):
        match = re.compile(rf"{re.escape(reply)}\s*(?:{stops})").search(whole, before) if stops else None
        if match:
            return match.end()
    return None


def _after_header(whole: str, before: int, end: int, content: str) -> int | None:
    """The start of a reply without a generation prompt; a space before it belongs to it."""
    for reply in _replies(content):
        place = whole.rfind(reply, before, end)
        if place >= 0:
            header = whole[before:place]
            return before + len(header.rstrip(" ")) if header.strip() else before
    return None


def _unstable(place: str, i: int, why: str) -> Untrainable:
    return Untrainable(
        f"{place}: cannot locate the assistant's reply in message {i + 1} of the rendered chat: {why}",
        hint="set data.chat_template to a template with {% generation %} marks, or set data.train_on=all",
    )
