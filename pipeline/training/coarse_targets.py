"""Temperatures at which a cache holds little of the teacher: reported with the commands that fix it, or refused.

In: a cache, the temperatures of a run. Out: what is said or warned of, or `Incompatible` (exit 4) with these commands.
At any temperature but that of the draws everything outside the exact ids is one bin: a student is trained on its mass
and on nothing of what is in it.
"""

import shlex

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.collate import BatchContents, make_batch
from kdpipe.pipeline.losses.teacher_bins import kept_mass
from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.pipeline.watch import TrainWatch
from kdpipe.schemas.capture_settings import PROFILES
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.losses import LOGIT_LOSSES
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.targets import Sampled, Threshold

# Mass of the exact ids below which a run is warned, and below which it is refused.
LEAST_MASS, REFUSED_MASS = 0.5, 0.2
SAMPLED = 8
ON_BINS = {name for name, loss in LOGIT_LOSSES.items() if loss.compares == "bins"}


def check_masses(cache: Cache, curriculum: Curriculum, allowed: bool, watch: TrainWatch) -> None:
    """Say what mass the exact ids hold at each coarse temperature; little is refused unless allowed."""
    for temperature, mass in kept_masses(cache, curriculum).items():
        text = f"at temperature {temperature:g} the exact ids hold {mass:.0%} of the teacher's mass"
        if mass >= LEAST_MASS:
            watch.say(text)
        elif mass >= REFUSED_MASS or allowed:
            watch.warn(f"{text}, the rest is one bin; {cure(cache.url, cache.manifest, temperature)}")
        else:
            raise Incompatible(
                f"{text}, below {REFUSED_MASS:.0%}: the rest is one bin, which teaches nothing",
                hint=f"{cure(cache.url, cache.manifest, temperature)}. --allow-coarse trains on it nevertheless",
            )


def kept_masses(cache: Cache, curriculum: Curriculum) -> dict[float, float]:
    """The mass that the exact ids hold, on average over a few sequences, at temperatures the draws are not for."""
    spec = cache.manifest.targets
    temperatures = sorted(curriculum.temperatures - {spec.target_temperature})
    if not temperatures or not curriculum.terms & ON_BINS or not spec.tail_known:
        return {}
    targets = make_batch(cache, range(min(SAMPLED, len(cache))), BatchContents(targets=True)).targets
    assert targets is not None
    return {temperature: float(kept_mass(targets, temperature).mean()) for temperature in temperatures}


def cure(url: str, manifest: Manifest, temperature: float) -> str:
    """The commands that make a cache for a temperature and train from it; words in capitals are to be filled in."""
    teacher = manifest.teacher
    name = "TEACHER" if teacher is None or teacher.name == "unknown" else teacher.hub_id or teacher.name
    source = manifest.data.source
    out = _beside(url, temperature)
    making = ["kdpipe", "cache-teacher", "--teacher", name, "--data", "DATA" if " + " in source else source]
    making += [*_targets(manifest), "--target-temperature", f"{temperature:g}", "--out", out]
    training = ["kdpipe", "train", "--from-cache", out, "--temperature", f"{temperature:g}"]
    return f"make a cache for it and train from that: `{shlex.join(making)}`, then `{shlex.join(training)}`"


def _targets(manifest: Manifest) -> list[str]:
    """The options that keep as much as this cache does; kinds without draws give way to the default."""
    keep = manifest.targets.keep
    if isinstance(keep, Sampled):
        return ["--targets", "sampled", "--draws", str(keep.draws)]
    if isinstance(keep, Threshold) and keep.tau != PROFILES["standard"]:
        return ["--tau", f"{keep.tau:g}"]
    return []


def _beside(url: str, temperature: float) -> str:
    """A place beside a cache that can be written: web servers and the hub take no parts one by one."""
    plain = url.rstrip("/")
    if plain.startswith(("http://", "https://", "hf://")):
        plain = plain.rpartition("/")[2]
    return f"{plain}-t{temperature:g}"
