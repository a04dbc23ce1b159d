"A notebook is refused before any work if its parameters are not as declared; what ran is kept, and says what it found."
import nbformat
import pytest

from semgbook.notebooks import NotebookError, check_parameters, declared_parameters, did_you_mean, execute, parse_parameters, remember, remembered

DECLARED = {"seed": 0, "scale": 1.5, "corpus": "embedded", "rest": False}


def write(path, *sources, tagged=1):
    "A notebook of code cells, so many of them tagged."
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    for cell in cells[:tagged]: cell.metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_defaults_are_read_and_not_executed(tmp_path):
    notebook = write(tmp_path / "n.ipynb", "seed = 0  # of everything\nscale = 1.5\ncorpus = 'embedded'  # name or folder\nrest = False", "1 / 0")
    assert declared_parameters(notebook) == DECLARED


@pytest.mark.parametrize("line", ["half = seed / 2", "print(1)", "import os", "seed: int = 2", "a, b = 1, 2", "seed += 1"])
def test_a_line_that_is_no_literal_is_refused(line, tmp_path):
    with pytest.raises(NotebookError, match=r"n\.ipynb: line 2"): declared_parameters(write(tmp_path / "n.ipynb", f"seed = 0\n{line}"))


@pytest.mark.parametrize("tagged", [0, 2])
def test_one_cell_is_tagged(tagged, tmp_path):
    with pytest.raises(NotebookError, match=f"has {tagged} cells"): declared_parameters(write(tmp_path / "n.ipynb", "seed = 0", "seed = 1", tagged=tagged))


@pytest.mark.parametrize("given", [{"sede": 1}, {"seed": "1"}, {"seed": 1.5}, {"seed": True}, {"corpus": 3}, {"rest": 1}, {"scale": True}, {"scale": "2"}, {"seed": None}])
def test_what_was_not_declared_is_refused(given):
    "The message names the notebook, and the parameter as it should be."
    with pytest.raises(NotebookError, match="n.ipynb.*(seed|corpus|rest|scale)"): check_parameters(DECLARED, given, "n.ipynb")


def test_whole_numbers_stand_for_floats():
    given = {"seed": 4, "scale": 2, "corpus": "", "rest": True}
    assert check_parameters(DECLARED, given, "n.ipynb") == given


def test_words_are_read_by_the_declared_type():
    assert parse_parameters(["seed=4", "scale=2", "corpus=12", "rest=True"], DECLARED, "n") == {"seed": 4, "scale": 2, "corpus": "12", "rest": True}
    assert parse_parameters(["corpus=a=b c"], DECLARED, "n") == {"corpus": "a=b c"}


@pytest.mark.parametrize("word", ["seed", "sede=1", "seed=one", "seed=1.5", "seed=", "rest=yes", "seed=int('4')"])
def test_words_that_cannot_be_read_are_refused(word):
    with pytest.raises(NotebookError, match=word.split("=")[0]): parse_parameters([word], DECLARED, "n")


def test_the_nearest_word_is_offered():
    assert did_you_mean("sede", DECLARED) == "did you mean 'seed'?" and did_you_mean("xyz", ("a", "b")) == "known: a, b"


def test_values_reach_the_notebook_and_come_back(tmp_path):
    "In the notebook's own folder, under its final name only; the environment says that waiting threads sleep."
    lines = ("from semgbook.notebooks import remember", "import os", "remember('at', os.getcwd())", "remember('seed', 1)",
             "remember('seed', seed)", "remember('waits', os.environ['OMP_WAIT_POLICY'])")
    notebook = write(tmp_path / "n.ipynb", "seed = 0", *lines)
    done = execute(notebook, tmp_path / "deep" / "out.ipynb", {"seed": 7})
    assert remembered(done) == {"at": str(tmp_path), "seed": 7, "waits": "PASSIVE"} and remembered(notebook) == {}
    assert [p.name for p in done.parent.iterdir()] == ["out.ipynb"]


def test_a_wrong_value_never_starts_a_kernel(tmp_path):
    with pytest.raises(NotebookError, match="sede"): execute(write(tmp_path / "n.ipynb", "seed = 0"), tmp_path / "deep" / "out.ipynb", {"sede": 1})
    assert not (tmp_path / "deep").exists()


def test_remembering_shows_the_value_too(capsys):
    remember("product", 49)
    assert "product = 49" in capsys.readouterr().out


def test_a_lost_tag_is_refused(tmp_path):
    notebook = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("seed = 0")]), notebook)
    with pytest.raises(NotebookError, match="parameters"): execute(notebook, tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failing_notebook_is_kept_with_its_traceback(tmp_path):
    cell = nbformat.v4.new_code_cell("seed = 0")
    cell.metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("1 / seed")]), tmp_path / "n.ipynb")
    with pytest.raises(Exception, match="ZeroDivision"): execute(tmp_path / "n.ipynb", tmp_path / "out.ipynb", {"seed": 0})
    assert "ZeroDivisionError" in (tmp_path / "out.ipynb").read_text() and not (tmp_path / "out.partial.ipynb").exists()


def test_an_idle_kernel_is_not_interrupted(tmp_path, capfd):
    "Papermill ends a kernel as soon as its last question is answered; one that still tidies up then has no reason to complain."
    cell = nbformat.v4.new_code_cell("seed = 0")
    cell.metadata["tags"] = ["parameters"]
    slow = """import inspect, time
answer = (handlers := get_ipython().kernel.shell_handlers)["kernel_info_request"]
async def answer_and_tidy_up(*message):
    if inspect.isawaitable(said := answer(*message)): await said
    time.sleep(1)
handlers["kernel_info_request"] = answer_and_tidy_up"""
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(slow)]), tmp_path / "n.ipynb")
    execute(tmp_path / "n.ipynb", tmp_path / "out.ipynb", {})
    assert "KeyboardInterrupt" not in "".join(capfd.readouterr())
