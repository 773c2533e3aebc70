"""`kdpipe chat`: a conversation with a model on the terminal."""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console, interrupts
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.sampling_options import SamplingOptions, with_sampling_options
from kdpipe.schemas.errors import ConfigError

if TYPE_CHECKING:
    from kdpipe.pipeline.chat import Conversation


@with_sampling_options(max_new_tokens=512, what="a reply")
def chat(
    given: SamplingOptions,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message before the conversation.")
    ] = None,
) -> None:
    """Chat with a model that has a chat template.

    /reset starts over; /exit, Ctrl-D or Ctrl-C ends the conversation.
    """
    settings = given.settings()
    from kdpipe.pipeline.sample import loaded_model

    with shown_progress() as progress, loaded_model(given.request(), progress) as (generator, record):
        from kdpipe.pipeline.chat import Conversation

        conversation = Conversation(generator, settings, given.model, system)
        progress.message(f"{record.name}: {record.n_parameters:,} parameters in {record.dtype} on {record.device}")
        progress.message("/reset starts over; /exit, Ctrl-D or Ctrl-C ends")
        with interrupts.ending():
            _read_turns(conversation)


def _read_turns(conversation: "Conversation") -> None:
    while (line := console.ask("> ")) is not None:
        match line.strip():
            case "":
                pass
            case "/exit":
                return
            case "/reset":
                conversation.reset()
                console.note("the conversation is empty")
            case text:
                try:
                    conversation.reply(text, console.stream)
                except ConfigError as error:
                    console.failure(error.message, error.hint or "start over with /reset")
                console.answer("")
