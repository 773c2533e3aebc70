"""The typed keywords of the Python functions are exactly the flags and the settings, with the same choices."""

import types
import typing
from typing import Annotated, Any, Literal, Union

import pytest
from pydantic import BaseModel, BeforeValidator

from kdpipe.capture_keywords import CaptureKeywords, PlanKeywords
from kdpipe.cli import capture_options, train_options
from kdpipe.cli.flags import Flag
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.train_settings import TrainSettings
from kdpipe.train_keywords import EvalKeywords, TrainKeywords

TABLES = [(PlanKeywords, CaptureSettings, capture_options.FLAGS), (TrainKeywords, TrainSettings, train_options.FLAGS)]
OWN = {"teacher", "data", "cache", "student", "out"}  # parameters of the functions themselves


def members(annotation: Any) -> set[Any]:
    """The types that a value may have, without Annotated: literals one by one, lists and groups as the class."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        text = {str} if any(isinstance(item, BeforeValidator) for item in arguments[1:]) else set()
        return members(arguments[0]) | text
    if origin in (Union, types.UnionType):
        return {member for argument in arguments for member in members(argument)}
    if origin is Literal:
        return set(arguments)
    if origin in (tuple, typing.get_origin(typing.Sequence[int])):
        return {list}
    is_group = typing.is_typeddict(annotation) or (isinstance(annotation, type) and issubclass(annotation, BaseModel))
    return {dict if is_group else annotation}


def fields(kind: Any) -> dict[str, Any]:
    return {
        name: Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        for name, field in kind.model_fields.items()
    }


def groups(annotation: Any) -> list[Any]:
    """The groups in a type, also as items of a list."""
    arguments = typing.get_args(annotation)
    if not arguments:
        return [annotation] if members(annotation) == {dict} else []
    return [group for argument in arguments for group in groups(argument)]


def check_group(keywords: Any, settings: Any) -> None:
    typed, stated = typing.get_type_hints(keywords), fields(settings)
    assert typed.keys() == stated.keys(), keywords
    for name, annotation in stated.items():
        assert members(annotation) <= members(typed[name]), (keywords, name)
        for inner, group in zip(groups(typed[name]), groups(annotation), strict=True):
            check_group(inner, group)


@pytest.mark.parametrize(("keywords", "settings", "flags"), TABLES)
def test_keywords_are_the_flags_and_the_settings(keywords: Any, settings: Any, flags: tuple[Flag, ...]) -> None:
    typed, stated = typing.get_type_hints(keywords), fields(settings)
    names = {flag.name.removeprefix("--").replace("-", "_"): flag for flag in flags}
    single = {name for name, annotation in stated.items() if members(annotation) == {dict}}
    assert {*names, *single} - OWN - {"from_cache"} == typed.keys() - OWN - {"resume_from", "overwrite"}
    for name, flag in names.items():
        if name in typed and typing.get_origin(flag.type) is Literal:
            assert set(typing.get_args(flag.type)) <= members(typed[name]), name
    for name in single - OWN:
        (group,) = groups(typed[name])
        check_group(group, stated[name])


def test_groups_that_are_parameters_are_the_settings() -> None:
    from kdpipe.capture_keywords import DataKeywords, TeacherKeywords
    from kdpipe.train_keywords import CacheKeywords, StudentKeywords

    for keywords, name in ((TeacherKeywords, "teacher"), (DataKeywords, "data")):
        check_group(keywords, CaptureSettings.model_fields[name].annotation)
    for keywords, name in ((CacheKeywords, "cache"), (StudentKeywords, "student")):
        check_group(keywords, TrainSettings.model_fields[name].annotation)


def test_other_keywords_are_those_of_the_commands() -> None:
    from kdpipe.pipeline.evaluate import EvalRequest

    assert CaptureKeywords.__annotations__.keys() - PlanKeywords.__annotations__.keys() == {"extend"}
    own = {"cache", "student", "split", "limit", "device"}
    assert EvalKeywords.__annotations__.keys() == EvalRequest.__dataclass_fields__.keys() - own | {"devices"}
