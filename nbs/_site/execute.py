"Runs a notebook top to bottom in a kernel of its own, as JupyterLab would, skipping what nbdev's directives skip."
import hashlib
import os
import re
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError  # noqa: F401 (for whoever calls execute)

ROOT = Path(__file__).resolve().parents[2]
DIRECTIVE = re.compile(r"^\s*#\|\s*(.+?)\s*$", re.M)


class LocalKernel(AsyncKernelManager):
    "A kernel spoken to through sockets in a folder of its own: no ports to collide when several start at once."

    def __init__(self, **kwargs):
        self.sockets = tempfile.TemporaryDirectory(prefix="kernel-")
        super().__init__(transport="ipc", ip=f"{self.sockets.name}/k", **kwargs)


def notebooks(*folders):
    "Every notebook under nbs, or under the given folders of it, in reading order; checkpoints and _folders left out."
    nbs = ROOT / "nbs"
    found = [p for folder in folders or ("",) for p in (nbs / folder).rglob("*.ipynb")]
    return sorted(p for p in found if not any(part[0] in "._" for part in p.relative_to(nbs).parts))


def test_flags():
    "The words after `#|` that mark a cell as not for every run (settings.ini: tst_flags)."
    ini = ConfigParser()
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return set(ini["DEFAULT"].get("tst_flags", "").split())


def is_skipped(source, flags):
    "Whether nbdev would leave this cell out of a test run."
    words = DIRECTIVE.findall(source)
    return "nbdev_export(" in source or any(w.split(":")[0].strip() in flags or re.match(r"eval:\s*false", w) for w in words)


def state_key(path):
    "A hash of all that decides a page's outputs: the notebook, the package, the pinned versions."
    digest = hashlib.sha256(Path(path).read_bytes())
    for file in [*sorted((ROOT / "semgbook").glob("*.py")), ROOT / "constraints.txt"]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def execute(path, keep=None, timeout=600):
    "The executed notebook; raises CellExecutionError with the cell and its traceback. `keep`: folder for the result."
    path, flags = Path(path).resolve(), test_flags()
    nb = nbformat.read(path, 4)
    skipped = [c for c in nb.cells if c.cell_type == "code" and is_skipped(c.source, flags)]
    for cell in skipped:
        cell.cell_type = "raw"
    client = NotebookClient(nb, timeout=timeout, kernel_name="python3", kernel_manager_class=LocalKernel, shutdown_kernel="immediate",
                            resources={"metadata": {"path": str(path.parent)}})
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}  # it would leak into the kernel and swallow the figures
    client.execute(env={**env, "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1"), "IN_TEST": "1"})
    for cell in skipped:
        cell.cell_type = "code"
    nb.metadata["semgbook"] = {"key": state_key(path)}
    if keep:
        out = Path(keep) / path.relative_to(ROOT / "nbs")
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_suffix(f".{os.getpid()}.tmp")
        nbformat.write(nb, part)
        os.replace(part, out)
    return nb


def is_fresh(path, keep):
    "Whether `keep` holds this notebook as executed in the present state of everything."
    done = Path(keep) / Path(path).resolve().relative_to(ROOT / "nbs")
    return done.exists() and nbformat.read(done, 4).metadata.get("semgbook", {}).get("key") == state_key(path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(name)
        print("ran", name)
