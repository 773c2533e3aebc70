"""Options of the commands that generate text: the model, how it is loaded, and how tokens are chosen.

In: a command. Out: the command with these options after its own; it receives them as one `SamplingOptions`.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdpipe.cli.common_options import SEED, Devices, RunModelCode
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.pipeline.sample import ModelRequest
    from kdpipe.schemas.sample_report import SamplingSettings


def _option(kind: Any, name: str, help_text: str, metavar: str | None = None, **limits: Any) -> Any:
    return Annotated[kind, typer.Option(name, metavar=metavar, help=help_text, show_default=False, **limits)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """The options as given."""

    model: str
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    greedy: bool
    revision: str | None
    trust_remote_code: bool
    devices: str

    def settings(self) -> "SamplingSettings":
        """The settings of the options; --greedy sets the temperature to 0."""
        if not 0 < self.top_p <= 1:
            raise UsageError(
                f"--top-p {self.top_p:g} is not a share above 0 and at most 1", hint="give one such as 0.9"
            )
        from kdpipe.schemas.sample_report import SamplingSettings

        return SamplingSettings(
            temperature=0.0 if self.greedy else self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )

    def request(self) -> "ModelRequest":
        """The model to load."""
        from kdpipe.pipeline.sample import ModelRequest

        return ModelRequest(
            name=self.model,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            devices=self.devices,
        )


MODEL = Annotated[str, typer.Argument(metavar="MODEL", help="A run folder, a model folder, or a Hub id.")]
# Types and defaults by name, in the order of the help page.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "temperature": (_option(float, "--temperature", "Sampling temperature [0.7].", "T", min=0.0), 0.7),
    "top_p": (_option(float, "--top-p", "Sample from the top tokens that have this share of the mass [1].", "P"), 1.0),
    "seed": (_option(int, SEED.name, SEED.help, SEED.metavar, min=0), 0),
    "greedy": (_option(bool, "--greedy", "Always take the most probable token."), False),
    "revision": (_option(str | None, "--revision", "Commit, tag or branch of the model on the Hub.", "NAME"), None),
    "trust_remote_code": (RunModelCode, False),
    "devices": (Devices, "auto"),
}


def with_sampling_options(max_new_tokens: int, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with these options; its first parameter receives them. `what` is generated up to `max_new_tokens`."""
    length = _option(int, "--max-new-tokens", f"Maximum length of {what}, in tokens [{max_new_tokens}].", "N", min=1)
    options = {"max_new_tokens": (length, max_new_tokens), **OPTIONS}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]
        types = {"model": MODEL} | {parameter.name: parameter.annotation for parameter in own}
        types |= {name: kind for name, (kind, _) in options.items()}
        types |= {name: types.pop(name) for name in ("quiet", "json") if name in types}
        defaults = {name: default for name, (_, default) in options.items()}
        defaults |= {parameter.name: parameter.default for parameter in own}

        @functools.wraps(command)
        def run(**typed: Any) -> None:
            given = SamplingOptions(**{name: typed.pop(name) for name in ("model", *options)})
            command(given, **typed)

        run.__annotations__ = types
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads the options from it
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=kind,
                    default=defaults.get(name, inspect.Parameter.empty),
                )
                for name, kind in types.items()
            ]
        )
        return run

    return decorate
