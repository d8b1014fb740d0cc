"""What the site does with a docstring that is written to be read as it stands, in `help()` and in notebooks.

Its examples become blocks of code, and wherever a text names a public name, that becomes a link to the page of it.
"""

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor

PACKAGE = Path(__file__).parents[2] / "src" / "keras_graft" / "__init__.py"
FENCE = re.compile(r"\s*(```|~~~)")


def on_config(config):
    config.markdown_extensions.append(Docstrings())
    return config


class Docstrings(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        # Before blocks of code are taken out of the text, which happens at 25.
        md.preprocessors.register(Examples(md), "examples", 26)
        # After the texts of lines are parsed, which happens at 20.
        md.treeprocessors.register(Links(public_names()), "public_names", 15)


class Examples(Preprocessor):
    """Puts examples that stand at the margin, as `>>> f(x)`, between fences."""

    def run(self, lines: list[str]) -> list[str]:
        written: list[str] = []
        fenced = in_example = False
        for line in lines:
            fenced ^= bool(FENCE.match(line))
            if in_example and not line.strip():
                written.append("```")
                in_example = False
            elif not in_example and not fenced and line.startswith(">>> "):
                written.append("```pycon")
                in_example = True
            written.append(line)
        return [*written, "```"] if in_example else written


class Links(Treeprocessor):
    """Makes a link of each public name in backticks, outside of headings and of other links."""

    CLOSED = ("a", "autoref", "h1", "h2", "h3", "h4", "h5", "h6", "pre")

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def run(self, root: ElementTree.Element) -> None:
        for index, child in enumerate(root):
            if child.tag == "code" and child.text in self.names:
                root[index] = linked(child)
            elif child.tag not in self.CLOSED:
                self.run(child)


def linked(code: ElementTree.Element) -> ElementTree.Element:
    """The element of the plugin `autorefs`, which finds the page."""
    link = ElementTree.Element("autoref", identifier=f"keras_graft.{code.text}")
    link.tail, code.tail = code.tail, None
    link.append(code)
    return link


def public_names() -> set[str]:
    """`keras_graft.__all__`, read without importing TensorFlow."""
    tree = ast.parse(PACKAGE.read_text(encoding="utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    return set(ast.literal_eval(values["__all__"]))
