"""Temperatures at which a cache holds little of the teacher's distribution: a line, a warning or a refusal.

In: a cache, the temperatures of a run. Out: the exact mass at each, and commands that make a better cache. At any
temperature but that of the samples everything outside the exact ids is one bin, of which only the mass is known.
"""

import shlex
from collections.abc import Sequence

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.collate import BatchContents, make_batch
from kdpipe.pipeline.losses.teacher_bins import kept_mass
from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.losses import LOGIT_LOSSES
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.progress import Progress

# Exact mass below which a run is warned, and below which it is refused.
LEAST_MASS, REFUSED_MASS = 0.5, 0.2
SAMPLED = 8
ON_BINS = {name for name, loss in LOGIT_LOSSES.items() if loss.compares == "bins"}


def check_masses(cache: Cache, curriculum: Curriculum, allowed: bool, progress: Progress) -> None:
    """Report the exact mass at each coarse temperature; too little is refused unless allowed."""
    for temperature, mass in exact_masses(cache, curriculum).items():
        text = f"at temperature {temperature:g} the exact ids have {mass:.0%} of the teacher's probability mass"
        if mass >= LEAST_MASS:
            progress.message(text)
        elif mass >= REFUSED_MASS or allowed:
            progress.warning(f"{text}, the rest is one bin; {remedy(cache.url, cache.manifest, temperature)}")
        else:
            raise Incompatible(
                f"{text}, below {REFUSED_MASS:.0%}; the rest is one bin without detail",
                hint=f"{remedy(cache.url, cache.manifest, temperature)}. --allow-coarse trains on it anyway",
            )


def exact_masses(cache: Cache, curriculum: Curriculum) -> dict[float, float]:
    """The mean mass of the exact ids at the temperatures of a run other than that of the samples."""
    spec = cache.manifest.targets
    temperatures = sorted(curriculum.temperatures - {spec.target_temperature})
    if not curriculum.terms & ON_BINS or not spec.tail_known:
        return {}
    return masses_at(cache, temperatures)


def masses_at(cache: Cache, temperatures: Sequence[float]) -> dict[float, float]:
    """The mean mass of the exact ids, over a few sequences of a cache whose tail is known."""
    if not temperatures:
        return {}
    targets = make_batch(cache, range(min(SAMPLED, len(cache))), BatchContents(targets=True)).targets
    assert targets is not None
    return {temperature: float(kept_mass(targets, temperature).mean()) for temperature in temperatures}


def remedy(url: str, manifest: Manifest, temperature: float) -> str:
    """The commands that make a cache for a temperature and train from it; fill in words in capitals."""
    teacher = manifest.teacher
    name = "TEACHER" if teacher is None or teacher.name == "unknown" else teacher.hub_id or teacher.name
    source = manifest.data.source
    out = _new_location(url, temperature)
    making = ["kdpipe", "cache-teacher", "--teacher", name, "--data", "DATA" if " + " in source else source]
    making += [*manifest.targets.keep.flags(), "--target-temperature", f"{temperature:g}", "--out", out]
    training = ["kdpipe", "train", "--from-cache", out, "--temperature", f"{temperature:g}"]
    return f"make a cache for this temperature and train from it: `{shlex.join(making)}`, then `{shlex.join(training)}`"


def _new_location(url: str, temperature: float) -> str:
    """A writable location next to a cache: web servers and the Hub accept no single parts."""
    plain = url.rstrip("/")
    if plain.startswith(("http://", "https://", "hf://")):
        plain = plain.rpartition("/")[2]
    return f"{plain}-t{temperature:g}"
