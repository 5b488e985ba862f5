"""The messages that the runtime sends to Metal are those that Metal declares, as two published descriptions have it.

abi_sources.json is what abi_sources.py found in pyobjc-framework-Metal's metadata and in metal-cpp.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mlxir.runtime.metal.abi import CONSTANTS, FUNCTIONS, MESSAGES, SIZE

SOURCES = json.loads(Path(__file__).with_name("abi_sources.json").read_text())
PYOBJC, METAL_CPP = SOURCES["pyobjc"], SOURCES["metal_cpp"]
NOT_DECLARED = {"new", "stringWithUTF8String:"}  # Foundation's; neither source has them
INHERITED = {  # where metal-cpp declares it
    "retain": "NSReferencing", "release": "NSReferencing", "endEncoding": "MTLCommandEncoder",
}  # fmt: skip
CODES = {
    "bool": "Z", "const char*": "*", "void": "v", "uint64_t": "Q", "NS::UInteger": "Q", "NS::Integer": "q",
    "MTL::Size": SIZE, "NS::Error**": "^@", "SEL": ":", "const void*": "^v",
}  # fmt: skip


def code_of(type_: str) -> str:
    """The Objective-C code of a C++ type of metal-cpp."""
    if type_.startswith("void (^"):
        return "@?"
    type_ = re.sub(r"\s+\w+$", "", type_) if not type_.endswith("*") else type_  # a parameter's name
    if type_ in CODES:
        return CODES[type_]
    enum = type_.removeprefix("MTL::")
    return CODES[METAL_CPP["enums"][enum]] if enum in METAL_CPP["enums"] else "@" if type_.endswith("*") else type_


@pytest.mark.parametrize("selector", MESSAGES)
def test_a_message_has_an_argument_for_each_colon(selector: str) -> None:
    assert len(MESSAGES[selector].arguments) == selector.count(":")
    assert MESSAGES[selector].owned == selector.startswith("new")


@pytest.mark.parametrize("selector", sorted(PYOBJC["messages"]))
def test_types_are_those_of_pyobjc(selector: str) -> None:
    message = MESSAGES[selector]
    for returns, arguments in PYOBJC["messages"][selector]:
        if selector == "status":  # two classes have it, with NSInteger and NSUInteger; pyobjc keeps one
            assert returns in ("q", "Q")
        elif returns is not None:
            assert returns == message.returns.lstrip("+")
        assert arguments == list(message.arguments)


@pytest.mark.parametrize("selector", sorted(set(MESSAGES) - NOT_DECLARED))
def test_types_and_receivers_are_those_of_metal_cpp(selector: str) -> None:
    message, owner = MESSAGES[selector], INHERITED.get(selector, MESSAGES[selector].owner)
    declared = [(returns, text) for name, returns, text in METAL_CPP["messages"][selector] if name == owner]
    assert declared, f"{owner} has no {selector}"
    for returns, text in declared:
        assert code_of(returns) == message.returns.lstrip("+")
        arguments = [code_of(a) for a in re.split(r", (?![^(]*\))", text) if a]
        assert (arguments[1:] if selector == "respondsToSelector:" else arguments) == list(message.arguments)


def test_every_message_of_metal_is_in_a_source() -> None:
    known = set(PYOBJC["messages"]) | set(METAL_CPP["messages"])
    assert set(MESSAGES) - known == NOT_DECLARED
    assert len(PYOBJC["messages"]) >= 25


def test_constants_and_functions() -> None:
    assert PYOBJC["constants"] == CONSTANTS
    assert PYOBJC["functions"] == list(FUNCTIONS)


@pytest.mark.parametrize(
    ("type_", "code"),
    [("MTL::MathMode mathMode", "q"), ("MTL::Size grid", SIZE), ("const NS::String* name", "@"), ("bool on", "Z")],
)
def test_the_reading_of_types(type_: str, code: str) -> None:
    assert code_of(type_) == code
