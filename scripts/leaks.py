"""No tracked file holds a secret: tokens of the hub, of GitHub, AWS and Slack, private keys, passwords in addresses.

    python scripts/leaks.py [FOLDER]        each place it finds, as file:line and the kind of secret; then exit code 1

Tests that need something like a token put it together, so that no line of theirs looks like one.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

KINDS = {
    "a token of the hub": r"\bhf_[A-Za-z0-9]{16,}",
    "a token of GitHub": r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^/\s:@{}'\"]+:[^/\s:@{}'\"$*]{9,}@",
    "a secret that is set": r"(?i)\b[A-Z_]*(token|secret|passw(or)?d|api_?key)\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{32,}",
}


def leaks(folder: Path) -> Iterator[str]:
    """`file:line: kind`, never the secret itself. Files that are no text are left out."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        try:
            text = (folder / name).read_text()
        except (UnicodeDecodeError, OSError):  # a picture; a link to nowhere
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield from (f"{name}:{number}: {kind}" for kind, pattern in KINDS.items() if re.search(pattern, line))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    found = list(leaks(parser.parse_args().folder))
    print("\n".join([*found, f"{len(found)} secrets in tracked files"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
