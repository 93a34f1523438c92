"""API keys, stored as hashes and compared in constant time.

A key is 32 random bytes, so a plain SHA-256 cannot be reversed and needs no salt. The file holds
one line per key, NAME HASH; a running service reads it again when it changes.

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
    """SHA-256 of a key, as stored in the file."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """Keys of one file.

    Args:
        path: of the file; empty disables keys.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path) if path else None
        self._hashes: dict[str, str] = {}
        self._stamp: tuple[int, int] | None = None

    @property
    def in_use(self) -> bool:
        """Whether requests need a key, even if the file is empty."""
        return self.path is not None

    def hashes(self) -> dict[str, str]:
        """Hash of each key by name, as currently in the file.

        Raises:
            InputError: the file is missing or holds an invalid line.
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
        """Name of a key, None for an unknown one, in time independent of the key."""
        given, found = hashed(key), None
        for name, known in self.hashes().items():
            # No early exit: the time must not reveal which line was close.
            if hmac.compare_digest(given, known):
                found = name
        return found

    def add(self, name: str) -> str:
        """Creates and returns a key; only its hash is stored.

        Raises:
            InputError: the name is taken or invalid.
        """
        assert self.path is not None
        known = _read(self.path) if self.path.exists() else {}
        if checked_name("name", name) in known:
            raise InputError(f"name: {name!r} already has a key; remove it first")
        key = PREFIX + secrets.token_urlsafe(32)
        self._write(known | {name: hashed(key)})
        return key

    def remove(self, name: str) -> None:
        """Deletes a key; a running service rejects it from now on.

        Raises:
            InputError: no key has that name.
        """
        known = dict(self.hashes())
        if known.pop(name, None) is None:
            raise InputError(f"name: no key is called {name!r}")
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
            raise InputError(f"keys: line {number} of the file is not 'NAME SHA256'")
        hashes[match[1]] = match[2]
    return hashes


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = CommandParser(prog="serve.keys", description="Creates, lists and removes API keys.")
    parser.add_argument("action", choices=("add", "list", "remove"))
    parser.add_argument("name", nargs="?", help="name of the key; limits are counted per name")
    parser.add_argument(
        "--file", required=True, type=Path, help="key file, the setting `keys` of the service"
    )
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    keys = Keys(args.file)
    if args.action == "list":
        sys.stdout.writelines(f"{name}\n" for name in keys.hashes())
        return
    if not args.name:
        raise InputError(f"name is required to {args.action} a key")
    if args.action == "remove":
        keys.remove(args.name)
    else:
        sys.stdout.write(keys.add(args.name) + "\n")


if __name__ == "__main__":
    sys.exit(main())
