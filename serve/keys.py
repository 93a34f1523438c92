"""API keys: made, kept as hashes, compared in constant time. Knows nothing of HTTP or Ray.

A key is 32 random bytes, so a single SHA-256 of it cannot be reversed and needs no salt. The file
holds one line a key, NAME HASH; a running service reads it again when it changes.

    python -m serve.keys add shop --file keys.txt      # prints the key, once
    python -m serve.keys list --file keys.txt
    python -m serve.keys remove shop --file keys.txt
"""

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from dreampose.errors import InputError
from dreampose.options.parser import CommandParser, run_command
from serve.service.store import checked_name, write_atomically

PREFIX = "dp_"
LINE = re.compile(r"(\S+)\s+([0-9a-f]{64})")


def hashed(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """The keys of one file; without a file there are none, and everybody is nobody.

    Args:
        path: the file; empty where no keys are in use.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path) if path else None
        self._hashes: dict[str, str] = {}
        self._stamp: tuple[int, int] | None = None

    @property
    def in_use(self) -> bool:
        """Whether a key must be shown, be it that the file holds none."""
        return self.path is not None

    def hashes(self) -> dict[str, str]:
        """Hash of each name's key, as the file has them now.

        Raises:
            InputError: the file is missing or holds a line that is none.
        """
        if self.path is None:
            return {}
        try:
            state = self.path.stat()
        except OSError as error:
            raise InputError(f"keys must be an existing file, got {str(self.path)!r}") from error
        stamp = state.st_mtime_ns, state.st_size
        if stamp != self._stamp:
            self._hashes, self._stamp = _read(self.path), stamp
        return self._hashes

    def owner(self, key: str) -> str | None:
        """Name of a key, None if there is no such key. Takes equally long for any wrong key."""
        given, found = hashed(key), None
        for name, known in self.hashes().items():
            # Every line is compared, so that the time does not tell which one came close.
            if hmac.compare_digest(given, known):
                found = name
        return found

    def add(self, name: str) -> str:
        """Makes a key and gives it; it cannot be read again.

        Raises:
            InputError: the name is taken or no name.
        """
        assert self.path is not None
        known = _read(self.path) if self.path.exists() else {}
        if checked_name("name", name) in known:
            raise InputError(f"name must be new, got {name!r}, which has a key: remove that first")
        key = PREFIX + secrets.token_urlsafe(32)
        self._write(known | {name: hashed(key)})
        return key

    def remove(self, name: str) -> None:
        """Takes a key away; a running service refuses it from now on.

        Raises:
            InputError: no key has that name.
        """
        known = dict(self.hashes())
        if known.pop(name, None) is None:
            raise InputError(f"name must be one that has a key, got {name!r}")
        self._write(known)

    def _write(self, hashes: dict[str, str]) -> None:
        assert self.path is not None
        text = "".join(f"{name} {value}\n" for name, value in hashes.items())
        write_atomically(self.path, text.encode(), mode=0o600)


def _read(path: Path) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(f"keys must be lines of NAME and hash, got another in line {number}")
        hashes[match[1]] = match[2]
    return hashes


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; gives its exit code."""
    parser = CommandParser(prog="serve.keys", description="Makes and removes API keys.")
    parser.add_argument("action", choices=("add", "list", "remove"))
    parser.add_argument("name", nargs="?", help="whose key it is; requests are counted by it")
    parser.add_argument("--file", required=True, type=Path, help="what `keys` in Settings names")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    keys = Keys(args.file)
    if args.action == "list":
        sys.stdout.writelines(f"{name}\n" for name in keys.hashes())
        return
    if not args.name:
        raise InputError(f"name must be given to {args.action} a key, got none")
    if args.action == "remove":
        keys.remove(args.name)
    else:
        sys.stdout.write(keys.add(args.name) + "\n")


if __name__ == "__main__":
    sys.exit(main())
