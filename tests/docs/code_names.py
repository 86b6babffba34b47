"""Names of the code as documents write them: looked up in the syntax of the files, so that nothing is imported."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Code:
    """The syntax of every module, by its path from the root of the checkout."""

    modules: dict[str, ast.Module]

    @classmethod
    def of(cls, root: Path, *folders: str) -> "Code":
        paths = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
        return cls({str(path.relative_to(root)): ast.parse(path.read_text(encoding="utf-8")) for path in paths})

    def classes(self, name: str) -> list[ast.ClassDef]:
        return [node for module in self.modules.values() for node in module.body if isinstance(node, ast.ClassDef) and node.name == name]

    def member(self, owner: ast.Module | ast.ClassDef, name: str) -> ast.AST | None:
        """What defines a name in a module or a class, or in a class that it inherits from."""
        own = next((node for node in owner.body if name in _defined(node)), None)
        if own is not None or isinstance(owner, ast.Module):
            return own
        bases = [base for node in owner.bases if isinstance(node, ast.Name) for base in self.classes(node.id)]
        return next((found for base in bases if (found := self.member(base, name)) is not None), None)

    def follow(self, owner: ast.AST | None, names: list[str]) -> ast.AST | None:
        for name in names:
            owner = self.member(owner, name) if isinstance(owner, ast.Module | ast.ClassDef) else None
        return owner

    def owners(self, name: str) -> list[ast.Module | ast.ClassDef]:
        """The modules whose file has this name, and the classes that have it."""
        return [module for path, module in self.modules.items() if Path(path).stem == name] + self.classes(name)

    def find(self, dotted: str) -> list[ast.AST]:
        """What ``module.function``, ``Class.method`` or ``Class`` can mean."""
        first, *rest = dotted.split(".")
        return [found for owner in self.owners(first) if (found := self.follow(owner, rest)) is not None]

    def fields(self, owner: ast.ClassDef) -> dict[str, str]:
        """Annotated fields of a class and their types."""
        inherited = [self.fields(base) for node in owner.bases if isinstance(node, ast.Name) for base in self.classes(node.id)]
        own = {node.target.id: ast.unparse(node.annotation) for node in owner.body
               if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}  # fmt: skip
        return {name: text for fields in inherited for name, text in fields.items()} | own

    def parameters(self, node: ast.AST) -> list[str] | None:
        """Names of what a function or the constructor of a class takes; None where that cannot be told."""
        node = (self.member(node, "__init__") or node) if isinstance(node, ast.ClassDef) else node
        if not isinstance(node, Function):
            return None
        arguments = node.args
        return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, Function | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
