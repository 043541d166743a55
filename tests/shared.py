"""What takes long to make and is the same for all tests: made once, whatever the number of pytest's processes."""

import pickle

from filelock import FileLock

_folders = []


def use_folder(path):
    """Folder of this session; the processes of pytest-xdist share it. Called by `conftest.py`."""
    _folders[:] = [path]


def session_folder():
    """The folder that all processes of this session share."""
    if not _folders:
        raise RuntimeError("the folder of the session is known inside of tests and fixtures only")
    return _folders[0]


def made_once(name, make):
    """What `make(folder)` returns, from the first process that asks for it; the others read what it left.

    `folder` is theirs alone, and exists. The value is pickled.
    """
    folder = session_folder() / name
    with FileLock(f"{folder}.lock"):
        made = folder / "made.pickle"
        if not made.is_file():
            folder.mkdir(exist_ok=True)
            value = make(folder)
            made.write_bytes(pickle.dumps(value))
        return pickle.loads(made.read_bytes())
