"""A small language for native code: functions in the syntax of Python whose values are all machine words.

What CPython does in C for its own types, `dispatch.py` and `eager.py` do for ours: read slots, compare pointers, count
references, call the C API. They are written as Python functions so that they read as such, and are translated, not run:

    def wrap(value):                           define i64 @wrap(i64 %value.in) {
        out = py.PyType_GenericAlloc(              %value = alloca i64
            env.array, 0)                          store i64 %value.in, ptr %value
        if out:                                    %out = alloca i64
            out[ARRAY_VALUE] = value               %1 = load i64, ptr getelementptr (i64, ptr @env, i64 0)
        return out                                 %2 = call i64 @PyType_GenericAlloc(i64 %1, i64 0)
                                                   store i64 %2, ptr %out
                                                   ...

A word is a pointer or a signed integer. `x[i]` is the word at address x + 8 * i, read or assigned. `py.NAME(...)` calls
the C API, `env.NAME` is the address of an object that the process supplies, `stack(n)` is the address of n words that
hold 0 until the function returns, `invoke(f, ...)` calls the function at an address. Names of ints in the module are
constants, names of functions in the module and what it imports are calls. Statements: assignment to names and to
subscripts, `if`, `while`, `for i in range(n)`, `break`, `continue`, `return` (the caller gets 0 without one).
Expressions: `+ - * & ^` and shifts, one comparison, `and`, `or`, `not`, `a if c else b`. Anything else is refused.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from types import FunctionType, ModuleType
from typing import Any

_ARITHMETIC = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.LShift: "shl",
               ast.RShift: "ashr", ast.BitAnd: "and", ast.BitXor: "xor"}  # fmt: skip
_COMPARISON = {ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "slt", ast.LtE: "sle", ast.Gt: "sgt", ast.GtE: "sge"}

C_INT = frozenset([
    "PyDict_Contains", "PyDict_Next", "PyDict_SetItem", "PyFrame_GetLasti", "PyList_Append", "PyObject_RichCompareBool",
    "PyObject_SetAttr", "PyObject_SetItem", "PySequence_SetItem",
    "PyType_IsSubtype",
])  # fmt: skip
"""Functions of the C API that return an int; the others return a pointer, a Py_ssize_t, a long or nothing."""


class _Outside:
    """What `py`, `env`, `stack` and `invoke` are to Python: names that only the translator understands."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("native code is translated, not run")

    __call__ = __getattr__


def builtin(function: Any) -> Any:
    """Marks what Python will call, as METH_FASTCALL says where nothing else does: `function(self, arguments, count)`.
    Others are internal.
    """
    return function


py: Any = _Outside()
env: Any = _Outside()
stack: Any = _Outside()
invoke: Any = _Outside()


class Translation:
    """The LLVM IR of some modules: `text`, the symbols that it `exports`, the names of `env` in order (the words of the
    external `@env`), and the functions of the C API that it calls. `numbered` asks for builtins of one function that
    differ in a number, its last argument: NAME_0, NAME_1 and so on.
    """

    def __init__(self, modules: Sequence[ModuleType], numbered: tuple[str, int]):
        self.environment: dict[str, int] = {}
        self.called: dict[str, int] = {}  # function of the C API -> number of arguments
        self.exports: list[str] = []
        functions = []
        defined: set[str] = set()
        for module in modules:
            for node in ast.parse(inspect.getsource(module)).body:
                if isinstance(node, ast.FunctionDef):
                    if node.name in defined:
                        raise SyntaxError(f"{node.name} is defined twice")
                    defined.add(node.name)
                    if node.decorator_list:
                        self.exports.append(node.name)
                    functions.append(_Function(self, vars(module), node).text())
        name, count = numbered
        for i in range(count):
            self.exports.append(f"{name}_{i}")
            functions.append(_NUMBERED.format(name=name, i=i))
        declared = [f"declare {_result(name)} @{name}({', '.join(['i64'] * count)})"
                    for name, count in self.called.items()]  # fmt: skip
        self.text = "\n".join(["@env = external global i64", _MEMSET, *declared, "", *functions])


_NUMBERED = """define i64 @{name}_{i}(i64 %self, i64 %arguments, i64 %count) {{
  %result = call i64 @{name}(i64 %self, i64 %arguments, i64 %count, i64 {i})
  ret i64 %result
}}
"""
_MEMSET = "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"


def _result(name: str) -> str:
    return "i32" if name in C_INT else "i64"


class _Function:
    """The translation of one function. Variables are stack slots, which LLVM turns into registers."""

    def __init__(self, module: Translation, names: dict[str, Any], node: ast.FunctionDef):
        self.module, self.names, self.node = module, names, node
        self.lines: list[str] = []
        self.slots: list[str] = []  # at the function's entry
        self.variables: set[str] = set()
        self.count = 0
        self.loops: list[tuple[str, str]] = []  # labels of (the next round, the end)

    def text(self) -> str:
        parameters = [a.arg for a in self.node.args.args]
        for name in parameters:
            self.assign(name, f"%{name}.in")
        self.block(self.node.body)
        self.emit("ret i64 0")
        linkage = "" if self.node.decorator_list else "internal "
        head = f"define {linkage}i64 @{self.node.name}({', '.join([f'i64 %{p}.in' for p in parameters])}) {{"
        return "\n".join([head, *self.slots, *self.lines, "}", ""])

    # -- pieces of text -----------------------------------------------------------------------------------------------
    def emit(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def value(self, line: str) -> str:
        """The name of what an instruction computes."""
        self.count += 1
        self.emit(f"%.{self.count} = {line}")
        return f"%.{self.count}"

    def label(self) -> str:
        self.count += 1
        return f"l{self.count}"

    def place(self, label: str) -> None:
        """Begin a block, into which the one before falls."""
        self.emit(f"br label %{label}")
        self.lines.append(f"{label}:")

    def branch(self, condition: str, then: str, otherwise: str) -> None:
        self.emit(f"br i1 {condition}, label %{then}, label %{otherwise}")

    def jump(self, label: str) -> None:
        self.emit(f"br label %{label}")
        self.lines.append(f"{self.label()}:")  # nothing reaches it

    def assign(self, name: str, value: str) -> None:
        if name not in self.variables:
            self.variables.add(name)
            self.slots.append(f"  %{name} = alloca i64")
        self.emit(f"store i64 {value}, ptr %{name}")

    # -- statements ---------------------------------------------------------------------------------------------------
    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            getattr(self, f"do_{type(statement).__name__}", self.refuse)(statement)

    def refuse(self, node: Any) -> Any:
        raise SyntaxError(f"{self.node.name}, line {node.lineno}: {ast.unparse(node)!r} has no translation")

    def do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.word(node.value)

    def do_Assign(self, node: ast.Assign) -> None:
        (target,) = node.targets
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            for name, value in zip(target.elts, [self.word(v) for v in node.value.elts], strict=True):
                self.store(name, value)
        else:
            self.store(target, self.word(node.value))

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        self.store(node.target, self.word(ast.copy_location(ast.BinOp(node.target, node.op, node.value), node)))

    def store(self, target: ast.expr, value: str) -> None:
        if isinstance(target, ast.Name):
            self.assign(target.id, value)
        elif isinstance(target, ast.Subscript):
            self.emit(f"store i64 {value}, ptr {self.address(target)}")
        else:
            self.refuse(target)

    def do_If(self, node: ast.If) -> None:
        then, otherwise, after = self.label(), self.label(), self.label()
        self.branch(self.truth(node.test), then, otherwise)
        self.lines.append(f"{then}:")
        self.block(node.body)
        self.emit(f"br label %{after}")
        self.lines.append(f"{otherwise}:")
        self.block(node.orelse)
        self.place(after)

    def do_While(self, node: ast.While) -> None:
        again, inside, after = self.label(), self.label(), self.label()
        self.place(again)
        self.branch(self.truth(node.test), inside, after)
        self.lines.append(f"{inside}:")
        self.loops.append((again, after))
        self.block(node.body)
        self.loops.pop()
        self.emit(f"br label %{again}")
        self.lines.append(f"{after}:")

    def do_For(self, node: ast.For) -> None:
        call: Any = node.iter
        if not (isinstance(node.target, ast.Name) and isinstance(call, ast.Call) and len(call.args) == 1):
            self.refuse(node)
        name = node.target.id  # type: ignore[attr-defined]
        count = self.word(call.args[0])
        again, inside, following, after = (self.label() for _ in range(4))
        self.assign(name, "0")
        self.place(again)
        self.branch(self.value(f"icmp slt i64 {self.load(name)}, {count}"), inside, after)
        self.lines.append(f"{inside}:")
        self.loops.append((following, after))
        self.block(node.body)
        self.loops.pop()
        self.place(following)
        self.assign(name, self.value(f"add i64 {self.load(name)}, 1"))
        self.emit(f"br label %{again}")
        self.lines.append(f"{after}:")

    def do_Break(self, node: ast.Break) -> None:
        self.jump(self.loops[-1][1])

    def do_Continue(self, node: ast.Continue) -> None:
        self.jump(self.loops[-1][0])

    def do_Return(self, node: ast.Return) -> None:
        self.emit(f"ret i64 {self.word(node.value) if node.value else 0}")
        self.lines.append(f"{self.label()}:")  # nothing reaches it

    # -- expressions --------------------------------------------------------------------------------------------------
    def word(self, node: ast.expr) -> str:
        """The value of an expression."""
        result: str = getattr(self, f"word_{type(node).__name__}", self.refuse)(node)
        return result

    def load(self, name: str) -> str:
        return self.value(f"load i64, ptr %{name}")

    def address(self, node: ast.Subscript) -> str:
        base, index = self.word(node.value), self.word(node.slice)
        return self.value(f"getelementptr i64, ptr {self.value(f'inttoptr i64 {base} to ptr')}, i64 {index}")

    def truth(self, node: ast.expr) -> str:
        """The value of a condition, an i1."""
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISON:
            left, right = self.word(node.left), self.word(node.comparators[0])
            return self.value(f"icmp {_COMPARISON[type(node.ops[0])]} i64 {left}, {right}")
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.value(f"xor i1 {self.truth(node.operand)}, true")
        if isinstance(node, ast.BoolOp):
            return self.either(node)
        if isinstance(node, ast.Compare):
            self.refuse(node)
        return self.value(f"icmp ne i64 {self.word(node)}, 0")

    def either(self, node: ast.BoolOp) -> str:
        """`and` and `or`, whose operands are computed as far as needed."""
        self.count += 1
        slot, done = f"%.{self.count}", self.label()
        self.slots.append(f"  {slot} = alloca i1")
        for operand in node.values:
            following, found = self.label(), self.truth(operand)
            self.emit(f"store i1 {found}, ptr {slot}")
            self.branch(found, *((following, done) if isinstance(node.op, ast.And) else (done, following)))
            self.lines.append(f"{following}:")
        self.place(done)
        return self.value(f"load i1, ptr {slot}")

    def word_Compare(self, node: ast.Compare) -> str:
        return self.value(f"zext i1 {self.truth(node)} to i64")

    word_BoolOp = word_Compare

    def word_UnaryOp(self, node: ast.UnaryOp) -> str:
        if isinstance(node.op, ast.USub):
            return self.value(f"sub i64 0, {self.word(node.operand)}")
        return self.value(f"zext i1 {self.truth(node)} to i64")

    def word_Constant(self, node: ast.Constant) -> str:
        return str(int(node.value)) if isinstance(node.value, int) else self.refuse(node)

    def word_Name(self, node: ast.Name) -> str:
        if node.id in self.variables:
            return self.load(node.id)
        constant = self.names.get(node.id)
        return str(constant) if isinstance(constant, int) else self.refuse(node)

    def word_Attribute(self, node: ast.Attribute) -> str:
        if not (isinstance(node.value, ast.Name) and node.value.id == "env"):
            return self.refuse(node)
        index = self.module.environment.setdefault(node.attr, len(self.module.environment))
        return self.value(f"load i64, ptr getelementptr (i64, ptr @env, i64 {index})")

    def word_Subscript(self, node: ast.Subscript) -> str:
        return self.value(f"load i64, ptr {self.address(node)}")

    def word_BinOp(self, node: ast.BinOp) -> str:
        if type(node.op) not in _ARITHMETIC:
            return self.refuse(node)
        left, right = self.word(node.left), self.word(node.right)
        return self.value(f"{_ARITHMETIC[type(node.op)]} i64 {left}, {right}")

    def word_IfExp(self, node: ast.IfExp) -> str:
        self.count += 1
        slot, then, otherwise, after = f"%.{self.count}", self.label(), self.label(), self.label()
        self.slots.append(f"  {slot} = alloca i64")
        self.branch(self.truth(node.test), then, otherwise)
        for label, branch in ((then, node.body), (otherwise, node.orelse)):
            self.lines.append(f"{label}:")
            self.emit(f"store i64 {self.word(branch)}, ptr {slot}")
            self.emit(f"br label %{after}")
        self.lines.append(f"{after}:")
        return self.value(f"load i64, ptr {slot}")

    def word_Call(self, node: ast.Call) -> str:
        arguments = [self.word(a) for a in node.args]
        passed = ", ".join([f"i64 {a}" for a in arguments])
        function: Any = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "py":
            return self.c_api(function.attr, arguments)
        if not isinstance(function, ast.Name):
            return self.refuse(node)
        if function.id == "stack":
            pointer = self.value(f"alloca i64, i64 {arguments[0]}, align 16")
            size = self.value(f"mul i64 {arguments[0]}, 8")
            self.emit(f"call void @llvm.memset.p0.i64(ptr {pointer}, i8 0, i64 {size}, i1 false)")
            return self.value(f"ptrtoint ptr {pointer} to i64")
        if function.id == "invoke":
            pointer = self.value(f"inttoptr i64 {arguments[0]} to ptr")
            return self.value(f"call i64 {pointer}({', '.join([f'i64 {a}' for a in arguments[1:]])})")
        if not isinstance(self.names.get(function.id), FunctionType):
            return self.refuse(node)
        return self.value(f"call i64 @{function.id}({passed})")

    def c_api(self, name: str, arguments: list[str]) -> str:
        if self.module.called.setdefault(name, len(arguments)) != len(arguments):
            raise SyntaxError(f"{self.node.name}: {name} is called with different numbers of arguments")
        result = self.value(f"call {_result(name)} @{name}({', '.join([f'i64 {a}' for a in arguments])})")
        return self.value(f"sext i32 {result} to i64") if name in C_INT else result
