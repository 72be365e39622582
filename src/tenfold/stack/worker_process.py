"""The workers of the user's Celery app, as a process of the stack.

.venv/bin/python /…/tenfold/stack/launch.py worker_process package.module:attribute FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tenfold.errors import SettingsError
from tenfold.stack.import_string import exit_with_message, load


def main(target: str, folder: str) -> int:
    """Load the app, and run its workers until a signal arrives."""
    app = load(target, Path(folder))
    from tenfold.tasks.worker import run_workers

    os.environ["PYTHONPATH"] = os.pathsep.join(
        [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    )  # for Celery's own command, after the standard library
    try:
        return run_workers(app, target)
    except SettingsError as error:
        exit_with_message(str(error))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
