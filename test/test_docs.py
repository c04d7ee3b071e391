"""README and docs/: every option is explained, links lead somewhere, sentences are short, and both READMEs have the same commands."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
ENGLISH = [REPO / "README.md"] + sorted(REPO.glob("docs/*.md"))
CHINESE = {REPO / "README.md": REPO / "README_zh-CN.md", REPO / "docs/atlas.md": REPO / "docs/zh-CN/atlas.md"}
PAGES = ENGLISH + sorted(CHINESE.values()) + [REPO / "bench/README.md", REPO / "demo/README.md"]
LONGEST_README, LONGEST_PAGE = 190, 150  # lines
HELP = 45, 80  # lines and columns of --help
LONGEST_SENTENCE, MEAN_SENTENCE = 40, 16  # words


def short(path):
    return str(path.relative_to(REPO))


def options():
    """The options of all scripts: the strings that begin with a dash in the calls of add_argument."""
    for path in sorted(REPO.glob("*.py")) + sorted(REPO.glob("tsm/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
                names = [word.value for word in node.args if isinstance(word, ast.Constant) and str(word.value).startswith("-")]
                hidden = any(word.arg == "help" and getattr(word.value, "attr", "") == "SUPPRESS" for word in node.keywords)
                if names and not hidden:
                    yield path, max(names, key=len)


def test_every_option_is_explained():
    text = "".join(page.read_text(encoding="utf-8") for page in ENGLISH)
    missing = {"%s of %s" % (name, short(path)) for path, name in options()
               if name not in ("--help", "--version") and path.parent != REPO / "tsm/chain" or path.stem == "plan"
               if not re.search(re.escape(name) + r"(?![\w-])", text)}
    assert not missing


@pytest.mark.parametrize("script", [path.name for pattern in ("*.py", "*.sh") for path in sorted(REPO.glob(pattern))])
def test_help_fits_a_screen_and_begins_with_a_command(works, tmp_path, script):
    lines = works(script, "--help", cwd=tmp_path).splitlines()
    assert len(lines) <= HELP[0] and max(map(len, lines)) <= HELP[1], [line for line in lines if len(line) > HELP[1]]
    assert any(line.startswith("  ") and script in line for line in lines[:20]) or script == "setup.sh"


def prose(page):
    """The sentences of a page: no code, no tables, no headings, links by their text alone."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = ["" if line.startswith(("|", "#")) else re.sub(r"^ *(-|\d+\.) ", "\n\n", line) for line in text.splitlines()]
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", "\n".join(lines)).replace("**", "")
    for paragraph in re.split(r"\n\s*\n", text):
        words = re.sub(r"`[^`]*`", "code", " ".join(paragraph.split()))
        yield from filter(None, re.split(r"(?<=[.!?])\s+", words))


@pytest.mark.parametrize("page", ENGLISH, ids=short)
def test_a_page_is_short_and_so_are_its_sentences(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= (LONGEST_README if page.name == "README.md" else LONGEST_PAGE)
    counts = {sentence: len(sentence.split()) for sentence in prose(page)}
    long = [sentence for sentence, count in counts.items() if count > LONGEST_SENTENCE]
    assert not long
    assert sum(counts.values()) / len(counts) <= MEAN_SENTENCE


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("english, chinese", sorted(CHINESE.items()), ids=short)
def test_the_chinese_page_has_the_same_commands_and_figures(english, chinese):
    texts = [page.read_text(encoding="utf-8") for page in (english, chinese)]
    blocks = [[re.sub("#.*", "", block) for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)] for text in texts]
    assert blocks[0] == blocks[1]
    numbers = [sorted(re.findall(r"\d+\.\d+", re.sub(r"```.*?```", "", text, flags=re.DOTALL))) for text in texts]
    assert numbers[0] == numbers[1]
    assert [text.count("\n#") for text in texts][0] == texts[1].count("\n#")
