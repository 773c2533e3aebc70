"""Runs in the sandbox: a generated program that answers calls, or its test, which calls it and states the result.

In: `program` or `test`, a source, the name of a function, descriptors. Out: answers, or the result of the test. Program
and test are two processes that exchange plain data: the program can read neither the test nor write its result.
`sandbox.py` copies this file into the sandbox; it imports the standard library only.
"""

import json
import os
import runpy
import sys
from collections.abc import Callable
from typing import IO, Any

PASSED = "passed"
SCALARS = (type(None), bool, int, float, str)
COLLECTIONS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> Any:
    """A value of plain data as JSON: types are exact, so that no method of a program's own class is called."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is dict:
        return ["dict", *([encode(key), encode(item)] for key, item in value.items())]
    if kind.__name__ in COLLECTIONS and kind is COLLECTIONS[kind.__name__]:
        return [kind.__name__, *map(encode, value)]
    if kind is bytes:
        return ["bytes", value.hex()]
    if kind is complex:
        return ["complex", value.real, value.imag]
    raise TypeError(f"not plain data: {kind.__name__}")


def decode(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "dict":
        return {decode(key): decode(item) for key, item in items}
    if kind == "bytes":
        return bytes.fromhex(items[0])
    if kind == "complex":
        return complex(*items)
    return COLLECTIONS[kind](map(decode, items))


def answer_calls(function: Callable[..., Any], calls: IO[str], answers: IO[str]) -> None:
    """Call a function with the arguments of each line; its value is the answer."""
    for line in calls:
        try:
            answer = {"value": encode(function(*decode(json.loads(line))))}
        except Exception as error:
            answer = {"error": type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def remote(calls: IO[str], answers: IO[str]) -> Callable[..., Any]:
    """A function that is called in the other process."""

    def call(*arguments: Any) -> Any:
        calls.write(json.dumps(encode(arguments)) + "\n")
        calls.flush()
        line = answers.readline()
        if not line:
            raise EOFError("the program ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return decode(answer["value"])

    return call


def main(folder: str, mode: str, name: str, descriptors: list[int]) -> None:
    calls, answers = (os.fdopen(number, how) for number, how in zip(descriptors, _modes(mode), strict=False))
    if mode == "program":
        answer_calls(runpy.run_path(os.path.join(folder, "source.py"))[name], calls, answers)
        return
    with os.fdopen(descriptors[2], "w") as result:
        try:
            check = runpy.run_path(os.path.join(folder, "source.py"))["check"]
            # A test may also call the function by its name.
            check.__globals__[name] = function = remote(calls, answers)
            check(function)
            result.write(PASSED)
        except Exception as error:
            result.write(f"{type(error).__name__}: {error}"[:200])


def _modes(mode: str) -> tuple[str, str]:
    return ("r", "w") if mode == "program" else ("w", "r")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], [int(number) for number in sys.argv[4:]])
