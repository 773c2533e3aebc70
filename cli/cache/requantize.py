"""`kdpipe cache requantize`: a smaller cache from a cache, without its teacher."""

from typing import Annotated

import typer

from kdpipe.cli.cache.reshaping import answer
from kdpipe.cli.common_options import CacheOut, FinishedCache, Json, Quiet, RetryFor, retries
from kdpipe.cli.progress import shown_progress
from kdpipe.schemas.choices import Profile, RequantizedKind
from kdpipe.schemas.errors import ConfigError


def requantize(
    cache: FinishedCache,
    out: CacheOut,
    targets: Annotated[
        RequantizedKind | None,
        typer.Option("--targets", help="Another kind of targets; only for a cache of states."),
    ] = None,
    profile: Annotated[
        Profile | None,
        typer.Option("--profile", help="threshold: tau is 1/10, 1/25 or 1/50."),
    ] = None,
    tau: Annotated[
        float | None, typer.Option("--tau", metavar="P", help="threshold: a higher tau than the cache's.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", metavar="N", help="sampled: fewer draws per position.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", metavar="K", help="topk: fewer ids per position.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", metavar="P", help="topp: a lower probability mass.")] = None,
    temperatures: Annotated[
        str | None, typer.Option("--temperatures", metavar="T,T", help="A subset of the cache's temperatures, or none.")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="WHAT", help="Leave out draw-values, boundary, entropy or hidden (repeatable)."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Random seed [the cache's].")] = None,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a smaller cache with fewer ids, draws or arrays.

    The teacher is not needed; settings that need more than the cache contains are refused.
    """
    from kdpipe.pipeline.requantize import requantize as run
    from kdpipe.schemas.reshape import requantize_spec
    from kdpipe.schemas.target_kinds import PROFILES

    if profile is not None and tau is not None:
        raise ConfigError("--profile and --tau both set tau", hint="give one of them")
    typed = {
        "targets": targets,
        "tau": tau if profile is None else PROFILES[profile],
        "draws": draws,
        "top_k": top_k,
        "top_p": top_p,
        "temperatures": None if temperatures is None else _numbers(temperatures),
        "drop": tuple(drop or ()),
        "seed": seed,
    }
    with shown_progress(quiet=quiet) as progress:
        report = run(cache, out, requantize_spec(typed), progress, retries(retry_for, progress.message))
    answer(report, json)


def _numbers(text: str) -> tuple[float, ...]:
    """A comma list of numbers, or `none`."""
    try:
        return () if text.strip() == "none" else tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--temperatures {text} is not a list of numbers", hint="for example 2, or 2,4, or none"
        ) from None
