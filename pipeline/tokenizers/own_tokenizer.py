"""The tokenizer that comes with a model, beside the one that is used with it.

In: the settings of a teacher and a loaded tokenizer. Out: what differs by content, or a refusal. Ids of another
vocabulary mean other tokens to the teacher: everything that it predicts for them is nonsense, and looks well-formed.
"""

from pathlib import Path

from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, has_tokenizer, load_tokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import difference
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.errors import ConfigError, Incompatible

ALLOW = "--allow-foreign-tokenizer"
# What a manifest says of the teacher where that was allowed.
FOREIGN_NOTE = f"its tokenizer is not its own ({ALLOW})"


def foreign_difference(settings: TeacherSettings, given: LoadedTokenizer) -> str | None:
    """What a tokenizer has instead of the teacher's own; refused unless that is allowed, None where nothing differs."""
    try:
        found = difference_from_own(settings, given)
    except ConfigError as error:
        if settings.allow_foreign_tokenizer:
            return f"the teacher's own cannot be loaded: {error.message}"
        raise ConfigError(
            f"{given.name} cannot be compared with the tokenizer of {settings.name}: {error.message}",
            hint=f"leave --tokenizer out, or give {ALLOW} if you know that every id means the same to the teacher",
        ) from error
    if found is not None and not settings.allow_foreign_tokenizer:
        raise Incompatible(
            f"{given.name} is another tokenizer than that of {settings.name}: {found}",
            hint=f"leave --tokenizer out; {ALLOW} caches predictions for ids that mean other tokens to the teacher",
        )
    return found


def difference_from_own(settings: TeacherSettings, given: LoadedTokenizer) -> str | None:
    """What a tokenizer has instead of the teacher's own, by content; None where the teacher comes without one."""
    assert settings.name is not None, "a teacher whose tokenizer is compared is named"
    if _is_same_place(settings.name, given.name) or not has_tokenizer(settings.name, settings.revision):
        return None
    own = load_tokenizer(
        settings.name,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        chat_template="none",
    )
    return difference(given, own)


def _is_same_place(one: str, other: str) -> bool:
    folder = Path(one).expanduser()
    return folder.is_dir() and folder.resolve() == Path(other).expanduser().resolve()
