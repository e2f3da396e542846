"""Changes to the tiny project of fixtures_cli, from which tables of mistakes are made; each returns a function."""

from fixtures_cli import bert

HIDDEN = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse"}
ATTENTION = {"layer_T": 1, "layer_S": 1, "feature": "attention", "loss": "attention_mse"}


def matches(*entries):
    return lambda project: project.recipe(student={"matches": list(entries)})


def student(**fields):
    return lambda project: project.recipe(student=fields)


def stage(**fields):
    return lambda project: project.recipe(stage=fields)


def data(**fields):
    return lambda project: project.recipe(data=fields)


def config(**fields):
    return lambda project: project.write("student.json", bert(**fields))


def file(name, content):
    return lambda project: project.write(name, content)


def ltp_folder(*files):
    """An LTP perceptron folder that has its config and these files."""

    def make(project):
        project.write("ltp/config.json", {"nerual": False, "tasks": {"cws": "cws_model.bin"}})
        for name in files:
            project.write(f"ltp/{name}", "version https://git-lfs.github.com/spec/v1\n")
        project.recipe(data={"segmenter": "ltp:ltp"})

    return make


def data_json(content):
    def make(project):
        project.write("data.json", content)
        project.recipe(defaults={"data": "data.json", "steps": 2, "max_seq_length": 32})

    return make


def cut(name):
    """Keeps the first half of a file."""

    def make(project):
        path = project.root / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return make


def teacher(**fields):
    return lambda project: project.model("teacher", num_hidden_layers=4, **fields)


def both(*changes):
    def make(project):
        for change in changes:
            change(project)

    return make


def other_vocabulary(name, vocab):
    return lambda project: project.tokenizer(name, vocab)


def init_from(name, **fields):
    def make(project):
        project.model(name, **fields)
        project.recipe(student={"init": name})

    return make
