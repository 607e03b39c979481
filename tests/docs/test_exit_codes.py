"""docs/exit-codes.md has a section for every exit code that the code can end with, and for no other."""

import ast
import re
from pathlib import Path

import dimat.errors
from dimat.errors import DimatError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
ENDERS = {"exit", "_exit", "Exit", "SystemExit", "abort"}


def constants() -> dict[str, int]:
    return {name: value for name, value in vars(dimat.errors).items() if name.startswith("EXIT_")}


def codes_in(source: str) -> set[int]:
    """Numbers that a module ends a process with, or that its commands return."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ENDERS:
                found |= literals(node.args) | literals([word.value for word in node.keywords])
        elif isinstance(node, ast.FunctionDef) and node.name.endswith("_command"):
            found |= literals([part.value for part in ast.walk(node) if isinstance(part, ast.Return) and part.value])
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(getattr(target, "id", "") == "exit_code" for target in targets):
                found |= literals([node.value])
    return found


def literals(expressions: list[ast.expr]) -> set[int]:
    """Whole numbers that stand in an expression as its value, or as one of its two values."""
    found = set()
    for expression in expressions:
        if isinstance(expression, ast.IfExp):
            found |= literals([expression.body, expression.orelse])
        elif isinstance(expression, ast.Constant) and type(expression.value) is int:
            found.add(expression.value)
        elif isinstance(expression, ast.Name | ast.Attribute):
            name = expression.attr if isinstance(expression, ast.Attribute) else expression.id
            found |= {constants()[name]} if name in constants() else set()
    return found


def subclasses(kind: type[DimatError]) -> set[type[DimatError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def codes() -> set[int]:
    found = set(constants().values()) | {kind.exit_code for kind in subclasses(DimatError)}
    for path in (ROOT / "dimat").rglob("*.py"):
        found |= codes_in(path.read_text(encoding="utf-8"))
    for script in [*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")]:
        found |= {int(code) for code in re.findall(r"(?:^|[;{&|\s])exit (\d+)", script.read_text(), re.M)}
    return found


def sections() -> dict[int, str]:
    parts = re.split(r"^## ", TEXT, flags=re.M)[1:]
    return {int(part.partition(":")[0]): part for part in parts if re.match(r"\d+:", part)}


def test_every_code_has_a_section_and_every_section_a_code() -> None:
    assert set(sections()) == codes()


def test_every_section_says_what_it_means_and_how_to_cure_it() -> None:
    for code, text in sections().items():
        for words in ("**What it means.**", "**How to cure it.**"):
            assert words in text, f"exit code {code}"
        assert f"[{code}](#" in TEXT, "the table has it"


def test_links_lead_to_sections() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line).strip().replace(" ", "-").lower() for line in re.findall(r"^## (.*)$", TEXT, re.M)
    }
    assert {*re.findall(r"\]\(#([^)]+)\)", TEXT)} <= headings


def test_a_new_code_would_be_seen() -> None:
    assert codes_in("import sys\nsys.exit(7)") == {7}
    assert codes_in("def x_command():\n    return 8 if bad else EXIT_DONE") == {8, 0}
    assert codes_in("import os\nos._exit(9)") == {9}
    assert codes_in("class A:\n    exit_code = 11") == {11}
    assert codes_in("def helper():\n    return 12") == set()
