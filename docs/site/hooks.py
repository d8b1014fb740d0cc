"""What the site does with docstrings, which are written to be read as they stand, and with notebooks.

The examples of docstrings become blocks of code, and wherever a text names a public name, that becomes a link to the
page of it. A notebook becomes a page, with the outputs of its last run by `make docs`, and can be downloaded there.
"""

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import nbformat
from jinja2 import DictLoader
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "keras_graft" / "__init__.py"
RUNS = ROOT / "build" / "notebooks"
FENCE = re.compile(r"\s*(```|~~~)")


def on_config(config):
    config.markdown_extensions.append(Docstrings())
    return config


def on_files(files, config):
    for source in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(source)
        for file in notebook_files(source, config):
            files.append(file)
    return files


class NotebookPage(File):
    def is_documentation_page(self) -> bool:
        return True


def notebook_files(source: File, config) -> list[File]:
    """The page of a notebook, its figures, and the notebook itself, which the page offers."""
    folder, name = source.src_uri.rsplit("/", 1)
    resources = {"output_files_dir": "figures", "unique_key": source.name, "download": f"download/{name}"}
    exporter = MarkdownExporter(
        template_file="page",
        extra_loaders=[DictLoader({"page": PAGE})],
        preprocessors=[CoalesceStreamsPreprocessor(enabled=True)],
    )
    text, resources = exporter.from_notebook_node(last_run(source), resources)
    page = NotebookPage.generated(config, source.src_uri, content=text)
    download = File.generated(config, f"{folder}/download/{name}", abs_src_path=source.abs_src_path)
    figures = resources["outputs"].items()
    return [page, download, *(File.generated(config, f"{folder}/{path}", content=figure) for path, figure in figures)]


def last_run(source: File) -> nbformat.NotebookNode:
    """The notebook with its outputs, or without, where none of its runs is of the cells that it has now."""
    notebook = nbformat.read(source.abs_src_path, as_version=4)
    path = RUNS / f"{source.name}.ipynb"
    if not path.exists():
        return notebook
    run = nbformat.read(path, as_version=4)
    return run if [cell.source for cell in run.cells] == [cell.source for cell in notebook.cells] else notebook


# What stands in a cell of text is Markdown already. The metadata of a cell that draws say what there is to see. What
# went to stderr is about the machine that built the site, and is left out.
PAGE = """
{%- extends "markdown/index.md.j2" -%}
{%- block markdowncell scoped %}
{{ cell.source }}
{% if cell is sameas nb.cells[0] %}
[Download this page as a notebook]({{ resources.download }})
{% endif %}
{%- endblock markdowncell -%}
{%- block input %}
```python
{{ cell.source }}
```
{% endblock input -%}
{%- block stream %}
{%- if output.name == "stdout" %}
```{ .text .output }
{{ output.text | strip_ansi | trim("\n") }}
```
{% endif %}
{%- endblock stream -%}
{%- block data_text scoped %}
```{ .text .output }
{{ output.data["text/plain"] }}
```
{% endblock data_text -%}
{%- block data_png %}
![{{ cell.metadata.alt }}]({{ output.metadata.filenames["image/png"] | path2url }})
{% endblock data_png -%}
"""


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
