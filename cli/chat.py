"""`kdpipe chat`: a conversation with a model on the terminal."""

from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console, interrupts
from kdpipe.cli.common_options import Devices, RunModelCode
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.sample import (
    Greedy,
    Revision,
    SampledModelName,
    SamplingSeed,
    Temperature,
    TopP,
    sampling_settings,
)
from kdpipe.schemas.errors import ConfigError

if TYPE_CHECKING:
    from kdpipe.pipeline.chat import Conversation


def chat(
    model: SampledModelName,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message before the conversation.")
    ] = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            min=1,
            metavar="N",
            help="Maximum length of a reply, in tokens [512].",
            show_default=False,
        ),
    ] = 512,
    seed: SamplingSeed = 0,
    greedy: Greedy = False,
    revision: Revision = None,
    trust_remote_code: RunModelCode = False,
    devices: Devices = "auto",
) -> None:
    """Chat with a model that has a chat template.

    /reset starts over; /exit, Ctrl-D or Ctrl-C ends the conversation.
    """
    settings = sampling_settings(temperature, top_p, max_new_tokens, seed, greedy=greedy)
    from kdpipe.pipeline.chat import Conversation
    from kdpipe.pipeline.sample import ModelRequest, loaded_model

    request = ModelRequest(name=model, revision=revision, trust_remote_code=trust_remote_code, devices=devices)
    with shown_progress() as progress, loaded_model(request, progress) as (generator, record):
        conversation = Conversation(generator, settings, model, system)
        progress.message(f"{record.name}: {record.n_parameters:,} parameters in {record.dtype} on {record.device}")
        progress.message("/reset starts over; /exit, Ctrl-D or Ctrl-C ends")
        with interrupts.ending():
            _converse(conversation)


def _converse(conversation: "Conversation") -> None:
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
