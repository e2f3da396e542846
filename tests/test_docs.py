"""What the documentation says can be typed: commands, options and links exist; the classifier's page is walked."""

import itertools
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import typer
from fixtures_cli import bert, run

from distill import cli
from distill.downstream.task import Task
from distill.errors import InputError
from distill.recipe_file import resolve_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
pytest_plugins = ["fixtures_cli"]


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def typed_commands(page: Path) -> list[list[str]]:
    """Arguments of each `distill` command in a page's shell blocks, up to a pipe: what a reader types as it stands."""
    return arguments(line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines())


def commands(page: Path) -> list[list[str]]:
    """The same, and those in code spans, which may leave options out."""
    spans = re.findall(r"`(distill [a-z-]+ [^`\n]*)`", page.read_text(encoding="utf-8"))
    return typed_commands(page) + arguments(spans)


def arguments(lines: Iterable[str]) -> list[list[str]]:
    found = []
    for line in lines:
        words = shlex.split(line.replace("\\|", "|"), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        words = list(itertools.takewhile(lambda word: word != "|", words))
        if words[:1] == ["distill"]:
            found.append([word for word in words[1:] if word not in ("...", "[--")])
    return found


TYPED = [(page.name, words) for page in PAGES for words in typed_commands(page)]
COMMANDS = [(page.name, words) for page in PAGES for words in commands(page)]


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words begin with, and its name; LookupError if there is none."""
    command: Any = typer.main.get_command(cli.app)
    path: list[str] = []
    while hasattr(command, "commands"):  # a group
        name = words[len(path)].strip("[]")
        if name not in command.commands:
            raise LookupError(f"no command {' '.join([*path, name])}")
        command = command.commands[name]
        path.append(name)
    return command, path


def check_words(words: list[str]) -> None:
    """LookupError if the command line does not know a command or an option in it."""
    command, path = find_command(words)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "--debug"}
    if command.ignore_unknown_options:  # a recipe's fields, checked when the recipe is
        return
    for word in words[len(path) :]:
        option = word.strip("[]").partition("=")[0].replace("_", "-")
        if option.startswith("--") and option not in known:
            raise LookupError(f"{' '.join(path)} has no option {option}")


@pytest.mark.parametrize("page, words", COMMANDS, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in COMMANDS])
def test_a_command_in_the_documentation_exists(page, words):
    check_words(words)


@pytest.mark.parametrize("page, words", TYPED, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in TYPED])
def test_a_command_to_be_typed_is_complete(page, words):
    """Every argument and option that it needs is there, and every value is one that its option takes."""
    command, path = find_command(words)
    command.make_context(" ".join(path), words[len(path) :])


def test_a_command_that_lacks_something_would_be_noticed():
    assert len(TYPED) > 30
    for wrong in (["finetune", "x"], ["export", "x", "--output", "y", "--threads", "0"], ["vocab", "prune"]):
        command, path = find_command(wrong)
        with pytest.raises(Exception, match="Missing parameter|greater than or equal"):
            command.make_context(" ".join(path), wrong[len(path) :])


def test_pages_that_messages_name_are_there():
    named = {page for file in Path(cli.__file__).parent.rglob("*.py")
             for page in re.findall(r"docs/\w+\.md", file.read_text(encoding="utf-8"))}  # fmt: skip
    assert len(named) > 6 and not [page for page in named if not (ROOT / page).is_file()]


def test_a_command_that_does_not_exist_would_be_noticed():
    assert len(COMMANDS) > 60
    for wrong in (["finetun", "x"], ["finetune", "x", "--tsk", "y"], ["vocab", "prine"]):
        with pytest.raises(LookupError):
            check_words(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if re.match(r"https?:", target):
            continue
        path = (page.parent / file) if file else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}"


def test_both_readmes_have_the_same_commands_recipes_and_figures():
    english, chinese = ROOT / "README.md", ROOT / "README_zh.md"
    for language in ("json", "python"):
        assert blocks(english, language) == blocks(chinese, language) != []
    codes = [re.findall(r"^\| (`.*?`) \|", page.read_text(encoding="utf-8"), re.M) for page in (english, chinese)]
    codes = [[re.findall(r"`[^`]+`", cell) for cell in found] for found in codes]
    assert codes[0] == codes[1] != []
    figures = [
        re.findall(r"^\| [a-z-]+ +\|.*%.*$", page.read_text(encoding="utf-8"), re.M) for page in (english, chinese)
    ]
    assert figures[0] == figures[1] != []


def test_every_page_is_linked_from_another():
    linked = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES
              for target in re.findall(r"\]\(([^)\s]+\.md[^)\s]*)\)", page.read_text(encoding="utf-8"))}  # fmt: skip
    assert not [page.name for page in PAGES if page.parent.name == "docs" and page not in linked]


JSON = [(page.name, block) for page in PAGES for block in blocks(page, "json")]


def as_recipe(value: dict[str, Any]) -> dict[str, Any]:
    """A whole recipe around the part of one that a page shows: one stage, stages, a section, fields of a student."""
    if "output_dir" in value:
        return value
    stages = [value] if "students" in value else [{"name": "one", "students": {"small": {"config": "small.json"}}}]
    fields = {} if "students" in value else value
    whole = {"output_dir": "out", "stages": fields.pop("stages", stages)}
    whole |= {"finetune": fields.pop("finetune")} if "finetune" in fields else {}
    data = {"text": ["text"], "segmenter": "words"}
    return {**whole, "defaults": {"data": data, "steps": 2, "max_seq_length": 32, "global_batch_size": 2, **fields}}


@pytest.mark.parametrize("page, block", JSON, ids=[f"{page}: {block[:30]}" for page, block in JSON])
def test_json_in_the_documentation_is_a_recipe_a_part_of_one_or_a_task(page, block):
    value = json.loads(block if block.startswith("{") else f"{{{block}}}")
    if "kind" in value:
        Task.model_validate(value)
    else:
        assert resolve_recipe(as_recipe(value), where=page).stages


def test_a_field_in_the_documentation_that_does_not_exist_would_be_noticed():
    assert len(JSON) > 8
    for wrong in (
        {"stages": [{"name": "one", "stepps": 3, "students": {}}]},
        {"matchs": []},
        {"finetune": {"task": []}},
    ):
        with pytest.raises(InputError):
            resolve_recipe(as_recipe(wrong), where="page")


def write_reviews(project: Any) -> None:
    """The labelled CSV files and the task that the pages speak of."""
    project.write("reviews.json", blocks(ROOT / "docs/classifier.md", "json")[0])
    rows = [f"{'天气很好' if number % 2 else '中国人'}。,{'good' if number % 2 else 'bad'}" for number in range(32)]
    for name in ("train.csv", "dev.csv"):
        project.write(f"dataset/tasks/reviews/{name}", "\n".join(["text,label", *rows]) + "\n")


def walk(project: Any, walked: list[list[str]], capsys: Any) -> None:
    """Runs commands of a page one after the other, fine-tuning for one epoch and exporting whatever is lost."""
    extra = {"finetune": ["--epochs", "1"], "export": ["--min-cosine", "0", "--max-loss", "100", "--seconds", "0"]}
    for words in walked:
        words = list(words)
        for position, word in enumerate(words):
            if "*" in word:
                (match,) = project.root.glob(word)
                words[position] = str(match.relative_to(project.root))
        assert run(*words, *extra.get(words[0], [])) == 0, capsys.readouterr().err
    exported = {path.name for path in Path("exported/reviews").iterdir()}
    assert {"model.onnx", "model_int8.onnx", "export.json"} <= exported


@pytest.mark.slow
def test_the_classifier_page_leads_to_an_export_that_answers(project, capsys):
    """Hub ids stand for local folders here, and epochs are one."""
    write_reviews(project)
    sizes = {"hfl/chinese-roberta-wwm-ext": 32, "hfl/minirbt-h256": 16}
    models = {name: project.model(Path(name).name, hidden_size=size, max_position_embeddings=128)
              for name, size in sizes.items()}  # fmt: skip
    walked = [[str(models.get(word, word)) for word in words] for words in typed_commands(ROOT / "docs/classifier.md")]
    assert [words[0] for words in walked] == ["finetune", "finetune", "export"]
    walk(project, walked, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_the_walkthrough_leads_from_text_to_an_export(project, capsys):
    """Its recipe and its commands as they stand; text, teacher and student are the tiny project's."""
    page = ROOT / "docs/walkthrough.md"
    write_reviews(project)
    project.write("recipe.json", blocks(page, "json")[0])
    project.write("dataset/train/mytext.txt", (project.root / "text/a.txt").read_text("utf-8").replace(" ", ""))
    project.model("teacher", hidden_size=32, num_hidden_layers=4, max_position_embeddings=128)
    project.write("small.json", bert(max_position_embeddings=128))
    walked = typed_commands(page)
    assert [words[0] for words in walked] == ["doctor", "train", "finetune", "export"]
    walk(project, walked, capsys)
    assert Path("saves/mine/report/index.html").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("number, last", [(0, "h256-final"), (1, "h256")], ids=["width in steps", "short rows first"])
def test_stages_of_the_quality_page_lead_to_a_model(project, number, last, capsys):
    """With a tiny teacher in place of RBT6, widths of 24 and 16 for 512 and 256, rows an eighth as long, two steps."""
    recipe = json.loads(project.recipe().read_text())
    recipe["stages"] = json.loads(f"{{{blocks(ROOT / 'docs/quality.md', 'json')[number]}}}")["stages"]
    for stage in recipe["stages"]:
        teacher = "teacher" if stage["teacher"] == "rbt6" else stage["teacher"]
        stage.update(teacher=teacher, steps=2, max_seq_length=stage.get("max_seq_length", 256) // 8)
    project.write("recipe.json", recipe)
    project.model("teacher", hidden_size=32, num_hidden_layers=4)
    for name, width in (("h512", 24), ("h256", 16)):
        project.write(f"{name}.json", bert(hidden_size=width))
    assert run("train", "recipe.json") == 0, capsys.readouterr().err
    assert json.loads((project.root / f"out/models/{last}/config.json").read_text())["hidden_size"] == 16
