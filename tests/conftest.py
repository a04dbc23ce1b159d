"Fixtures shared by every test: the folder of reference material (skipped when absent) and one thread per process."
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root():
    "The project's top folder."
    return ROOT


@pytest.fixture(scope="session")
def shared():
    "A function from a relative path to the reference material beside the project; skips, and says so, where it is not."
    def find(relative):
        path = ROOT.parent / "shared" / relative
        if not path.exists():
            pytest.skip(f"reference material ../shared/{relative} is not here")
        return path
    return find


@pytest.fixture
def serve():
    "A function that starts a server of what a test says it should do; all are stopped at the end."
    from toy_server import Server
    started = []
    def start(behave):
        started.append(Server(behave))
        return started[-1]
    yield start
    for server in started: server.close()
