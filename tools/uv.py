"""Run uv, fetching it into `.uv/` first where it is missing.

    python3 tools/uv.py run collimate vision-language train

Only Python, pip and a package index are needed; nothing outside this folder is touched.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".uv"


def main() -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=FOLDER / "bin") or fetch()
    try:
        status = subprocess.call([uv, *sys.argv[1:]])
    except KeyboardInterrupt:  # the child had the signal too, and ends by itself
        status = 130
    raise SystemExit(status)


def fetch() -> str:
    print(f"uv is not installed: fetching it into {FOLDER}", file=sys.stderr, flush=True)
    # --target is allowed where the system's Python refuses installs, and needs no venv module.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", os.fspath(FOLDER), "uv"]
    if subprocess.call(pip) != 0:
        raise SystemExit("pip could not fetch uv. Install pip (`python3 -m ensurepip`) or uv, and run this again.")
    found = shutil.which("uv", path=FOLDER / "bin")
    if found is None:
        raise SystemExit(f"uv was installed into {FOLDER}, but there is no program in {FOLDER / 'bin'}.")
    return found


if __name__ == "__main__":
    main()
