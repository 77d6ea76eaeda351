"""The winner's recipe as a few lines of Python for somebody's own training loop."""

from __future__ import annotations

import ast

from wellposed.workbench.report.words import Document, dig

WIDTH = 88


def snippet(document: Document) -> str:
    """About 15 lines that train with the winner's recipe in a plain PyTorch loop.

    `document` is a results document with a winner. Raises `ValueError` when it has none.
    """
    winner = document.get("winner")
    if winner is None:
        raise ValueError("this comparison has no winner, so there is no recipe to paste; run more seeds")
    row = next(row for row in document["rows"] if row["id"] == winner["id"])
    rate = dig(document["plan"], "setting", "lr") or 2e-3
    return loop(row["recipe"], document["data"], document["plan"]["epochs"], rate, document["headline"])


def loop(recipe: str, data: dict[str, object], epochs: int, rate: float, remark: str = "") -> str:
    """The loop for the `repr` of a recipe and the facts of a task (`task` and `classes` in `data`)."""
    task = {"classification": f"wp.Classify(classes={data['classes']})", "regression": "wp.Regress()",
            "language": "wp.NextToken()"}[str(data["task"])]  # fmt: skip
    note = " ".join(remark.split())
    lines = [
        "import torch",
        "import wellposed as wp",
        "",
        *([f"# {note if len(note) < WIDTH else note[: WIDTH - 3].rsplit(' ', 1)[0] + ' ...'}"] if note else []),
        *_assignment(recipe),
        f"recipe.attach(model, {task}, steps={epochs} * len(loader))",
        f"optimizer = torch.optim.AdamW(model.parameters(), lr={rate:g}, weight_decay=0.0)  # or your own",
        "",
        f"for epoch in range({epochs}):",
        "    for x, y, index in loader:  # index: the row number of each sample",
        '        terms = recipe.step({"x": x, "y": y, "index": index}, optimizer)',
        '    print(epoch, float(terms["total"]))',
        "",
        "recipe.finish()  # the model now holds the final weights; the recipe is no longer needed",
    ]
    return "\n".join(lines) + "\n"


def _assignment(recipe: str) -> list[str]:
    """`recipe = wp.Recipe(...)`, with a line for each method when one line would be too long."""
    try:
        call = ast.parse(recipe, mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call):
        raise ValueError(f"{recipe!r} is not the repr of a recipe; expected e.g. Recipe(SAM(rho=0.5))")
    called = _InPackage().visit(call)
    line = f"recipe = {ast.unparse(called)}"
    if len(line) <= WIDTH:
        return [line]
    parts = [*called.args, *called.keywords]
    return [f"recipe = {ast.unparse(called.func)}(", *(f"    {ast.unparse(part)}," for part in parts), ")"]


class _InPackage(ast.NodeTransformer):
    """`SAM(...)` becomes `wp.SAM(...)`; `float`, `torch` and other lower-case names stay."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        ours = node.id[0].isupper()
        return ast.Attribute(ast.Name("wp", ast.Load()), node.id, ast.Load()) if ours else node
